"""The bridge of the Kamailio shim between a proxy's socket and a session, with both in the hand of the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import cast

from sipnap.client.keys import Key, SuspensionKey, key_of
from sipnap.client.outstanding import Suspended
from sipnap.client.request_head import complete
from sipnap.client.session import FrontEndSession
from sipnap.shim.kamailio.bridge import Bridge
from sipnap.shim.kamailio.inbox import Address
from sipnap.v1 import suspension_pb2 as pb

EPOCH = 1_700_000_000
APPLIED, GONE, REJECTED = (
    pb.CONTINUE_OUTCOME_APPLIED,
    pb.CONTINUE_OUTCOME_GONE,
    pb.CONTINUE_OUTCOME_REJECTED,
)


def request(method: bytes = b"INVITE", branch: bytes = b"z9hG4bK1") -> bytes:
    return (
        b"%s sip:b@h SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=%s\r\nFrom: <sip:a@h>;tag=1\r\nTo: <sip:b@h>\r\n"
        b"Call-ID: c\r\nCSeq: 1 %s\r\n\r\n" % (method, branch, method)
    )


def suspend(nap: int = 1, *, index: int = 5, epoch: int = EPOCH, message: bytes | None = None) -> bytes:
    """The datagram of a nap."""
    sip = request() if message is None else message
    return b"SN1 S %d %d 6 %d 1000 RESUME 127.0.0.1 5060 %d\n%ssip:b@h" % (epoch, index, nap, len(sip), sip)


def key(nap: int = 1, *, index: int = 5) -> SuspensionKey:
    return SuspensionKey("kamailio", EPOCH, index, 6, nap)


def order(
    nap: int = 1, *, index: int = 5, values: dict[str, bytes] | None = None, **fields: object
) -> tuple[SuspensionKey, pb.Continue]:
    """A continue for a nap, or with nap number 0 for a task, and its key."""
    made = pb.Continue(resume_route="RESUME", status=pb.CONTINUE_STATUS_OK)
    made.key.MergeFrom(key(nap, index=index).to_message())
    made.key.ClearField("front_end_id")
    for name, value in fields.items():
        setattr(made, name, value)
    for name, text in (values or {}).items():
        made.values.add(name=name).value.text = text
    return key(nap, index=index), made


class HandSession:
    """What the bridge sees of a session."""

    def __init__(self) -> None:
        self.is_open = True
        self.kept: dict[Key, Suspended] = {}
        self.suspended: list[pb.Suspension] = []
        self.delays: list[float] = []
        self.cancelled: list[SuspensionKey] = []
        self.answers: list[tuple[SuspensionKey, int]] = []
        self.epochs: list[int] = []
        self.gate: Callable[[bool], None] = lambda is_open: None
        self.hand_on: Callable[[Sequence[tuple[Key, pb.Continue]]], None] = lambda continues: None
        self.hand_on_due: Callable[[Sequence[Suspended]], None] = lambda due: None

    @property
    def outstanding(self) -> int:
        return len(self.kept)

    def on_gate(self, callback: Callable[[bool], None]) -> None:
        self.gate = callback

    def on_continues(self, callback: Callable[[Sequence[tuple[Key, pb.Continue]]], None]) -> None:
        self.hand_on = callback

    def on_due(self, callback: Callable[[Sequence[Suspended]], None]) -> None:
        self.hand_on_due = callback

    def submit(self, suspended: Suspended, *, is_urgent: bool = False) -> bool:
        if suspended.key in self.kept:
            return False
        suspension = pb.Suspension.FromString(suspended.encoded)
        assert is_urgent == bool(suspension.operations), "those begin when they have arrived"
        assert suspended.key == ("kamailio", *key_of(suspension.key)[1:])
        assert suspended.route == suspension.resume_route
        assert suspended.delay_seconds <= suspension.delay.ToMilliseconds() / 1000, "less what it lay in the socket"
        complete(suspension.state)
        self.suspended.append(suspension)
        self.delays.append(suspended.delay_seconds)
        self.kept[suspended.key] = suspended
        return True

    def find(self, key: Key) -> Suspended | None:
        return self.kept.get(key)

    def cancel(self, key: Key) -> None:
        self.kept.pop(key).outcome = GONE
        self.cancelled.append(SuspensionKey._make(key))

    def applied(self, batch: Iterable[Suspended]) -> None:
        for suspended in batch:
            self.answer(suspended.key, APPLIED)

    def answer(self, key: Key, outcome: pb.ContinueOutcome) -> None:
        if (suspended := self.kept.pop(key, None)) is not None:
            suspended.outcome = outcome
        self.answers.append((SuspensionKey._make(key), outcome))

    def set_boot_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)
        self.kept.clear()


class Hand:
    """The proxy's socket, the session, and the bridge between them."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setblocking(False)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            listen = Address(*probe.getsockname())
        self.session = HandSession()
        self.bridge = Bridge(
            cast(FrontEndSession, self.session),
            front_end_id="kamailio",
            listen=listen,
            proxy=Address(*self.socket.getsockname()),
        )
        self.socket.connect(listen)
        self.received: list[bytes] = []

    # The proxy

    def send(self, datagram: bytes) -> None:
        self.socket.send(datagram)

    def answer(self, result: int, user: bytes) -> None:
        """To a single request; E in its user part is the epoch."""
        self.send(b"SN1 A %d %d %s" % (EPOCH, result, user.replace(b"E", b"%d" % EPOCH)))

    def answers(self, results: bytes, user: bytes) -> None:
        """To a batch."""
        self.send(b"SN1 B %d %s %s" % (EPOCH, results, user.replace(b"E", b"%d" % EPOCH)))

    async def knows(self, most: bytes) -> None:
        """Have the proxy answer a heartbeat; `most` is what its script puts behind the user part."""
        self.answer(200, b"open.1" + most)
        await until(lambda: self.session.epochs)

    async def nap(self, *indexes: int, nap: int = 1) -> None:
        count = len(self.session.suspended) + len(indexes)
        for index in indexes:
            self.send(suspend(nap, index=index))
        await until(lambda: len(self.session.suspended) == count)

    def drain(self) -> list[bytes]:
        """All that came, heartbeats aside."""
        while True:
            try:
                request = self.socket.recv(65536)
            except BlockingIOError:
                return self.received
            if b"@gate" not in request:
                self.received.append(request)

    async def nap_requests(self, count: int) -> list[bytes]:
        await until(lambda: len(self.drain()) >= count)
        return self.received

    def requests(self) -> list[bytes]:
        """User and host of all that has come since the last call, with E in place of the epoch."""
        received, self.received = self.drain(), []
        return [one.split(b" ")[1].removeprefix(b"sip:").replace(b"%d" % EPOCH, b"E") for one in received]

    # The sidecar

    def order(self, nap: int = 1, *, values: dict[str, bytes] | None = None, **fields: object) -> None:
        """Have the sidecar continue a nap, or with nap number 0 run a task."""
        self.session.hand_on([order(nap, index=5, values=values, **fields)])

    def due(self, *indexes: int, nap: int = 1) -> None:
        """Have these end as they were asked for."""
        self.session.hand_on_due([self.session.kept[key(nap, index=index)] for index in indexes])


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def running(most: bytes = b"") -> AsyncIterator[Hand]:
    """A bridge that has found its proxy, whose script says how many naps a batch may have."""
    hand = Hand()
    task = asyncio.create_task(hand.bridge.run())
    try:
        await hand.knows(most)
        yield hand
    finally:
        task.cancel()
        await asyncio.sleep(0)
        hand.bridge._awaiting.clear()  # it would wait for the answers
        await asyncio.gather(task, return_exceptions=True)
        hand.socket.close()
