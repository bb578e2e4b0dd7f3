"""The SIP proxy: transactions that nap, are resumed once, cancelled, or ended by the proxy's own timer.

It speaks the datagrams of `sipnap.cfg` and answers NAP requests as that does: 200 when the resume route has run, 481
when no such transaction waits.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from sipnap.v1 import suspension_pb2 as pb
from tests.simulator.loop import VirtualLoop
from tests.simulator.network import WORLD, Key, Network
from tests.simulator.work import Workload

EARLY_TOLERANCE_SECONDS = 1e-6
"""The journal keeps whole nanoseconds, the virtual clock a float's worth of them."""

_GATE_SECONDS = 3.0
_REQUEST = re.compile(rb"NAP sip:(?:([0-9]+)\.(-?[0-9]+)\.([0-9]+)\.([0-9]+)\.([a-z_]+)@(?:plain|full)|(\S+)@gate) ")
_BATCH = re.compile(rb"NAP sip:(([-0-9.]+)\.([0-9]+)\.ok((?:/[-0-9.]+)+))@batch ")


class State(enum.Enum):
    """Where a nap stands at the proxy."""

    WAITING = "waiting"
    RESUMED = "resumed"
    CANCELLED = "cancelled"
    BACKSTOP = "resumed by the proxy's own timer"
    DIED = "died with the proxy"


@dataclass(slots=True, eq=False)
class Nap:
    """One nap, and all that has become of it."""

    key: Key
    call_id: int
    began_seconds: float
    delay_seconds: float
    deadline_seconds: float | None
    """How long somebody waits for it, if that is said; counted like the delay."""
    state: State = State.WAITING
    status: str = ""
    """As the resumed route sees it."""
    ended_seconds: float = 0.0
    is_shipped: bool = False
    """The datagram for the shim was not lost."""
    taken_by: str = ""
    """Which life of the shim has handed it to its session."""
    taken_seconds: float = 0.0
    """When it has."""
    acknowledged_by: set[str] = field(default_factory=set)
    """Sidecars that have said that they have it."""
    operations: list[pb.Operation] = field(default_factory=list)
    """What workers are to do meanwhile; none: it only waits."""
    is_given_up: bool = False
    """The shim has asked the proxy in vain, as often as it does."""

    @property
    def due_seconds(self) -> float:
        return self.began_seconds + self.delay_seconds

    @property
    def last_seconds(self) -> float:
        """When nobody waits for it any more."""
        return self.began_seconds + (self.deadline_seconds or self.delay_seconds + 60.0)

    @property
    def slack_seconds(self) -> float:
        """How long somebody waits beyond its time."""
        return self.last_seconds - self.due_seconds

    def __str__(self) -> str:
        return "nap " + "/".join(map(str, self.key))


class Proxy:
    """The proxy over all its lives."""

    def __init__(
        self,
        loop: VirtualLoop,
        random: Random,
        network: Network,
        workload: Workload,
        violate: Callable[[str], None],
        to_shim: Callable[[bytes], None],
    ) -> None:
        self.naps: dict[Key, Nap] = {}
        self.boot_epoch = 1_700_000_000
        self.is_up = True
        self.most_at_once = random.choice([1, 1, 6])
        """How many requests come in at the same moment and nap for as long."""
        self.is_closing = False
        """Whether nothing naps any more."""
        self.margin_seconds = random.choice([None, None, None, 1.0, 5.0])
        """How long after its time a nap is ended by the proxy itself; None: much later than anything here takes."""
        self._obeys_gate = random.random() < 0.5
        self._gate_until_seconds = 0.0
        self._cancelled_share = random.choice([0.0, 0.1, 0.4])
        self._again_share = random.choice([0.0, 0.2])
        self._deadline_share = random.choice([0.0, 0.0, 0.3])
        self._longest_seconds = random.choice([0.3, 2.0, 6.0])
        self._most_in_batch = random.choice([0, 2, 32, 32])
        self._loop = loop
        self._random = random
        self._network = network
        self._workload = workload
        self._violate = violate
        self._to_shim = to_shim

    # What callers do

    def receive_call(self) -> None:
        """A request comes in and naps, or several at once do for as long, unless the gate is shut."""
        random = self._random
        if self.is_up and not (self._obeys_gate and self._loop.time() > self._gate_until_seconds):
            milliseconds = self._draw_milliseconds()
            for _ in range(random.randint(1, self.most_at_once)):
                self._suspend(random.getrandbits(32), random.getrandbits(32), 1, len(self.naps), milliseconds)

    def _draw_milliseconds(self) -> int:
        random = self._random
        return random.choice([1, random.randint(1, 50), random.randint(1, int(self._longest_seconds * 1000))])

    def _suspend(self, index: int, label: int, nap_number: int, call_id: int, milliseconds: int) -> None:
        random = self._random
        deadline = None
        if random.random() < self._deadline_share:
            deadline = milliseconds / 1000 + random.choice([0.001, random.uniform(0.0, 1.0), random.uniform(1.0, 9.0)])
        nap = Nap(
            (self.boot_epoch, index, label, nap_number), call_id, self._loop.time(), milliseconds / 1000, deadline
        )
        nap.operations = self._workload.draw(str(nap))
        self.naps[nap.key] = nap
        self._network.trace("proxy suspends %s for %d ms, deadline %s", nap, milliseconds, deadline)
        message = _request("INVITE", call_id)
        head = b"SN1 S %d %d %d %d %d RESUME 192.0.2.1 5060 %d\n" % (*nap.key, milliseconds, len(message))
        nap.is_shipped = self._send(head + message + b"sip:b@example.org")
        if random.random() < self._cancelled_share:
            seconds = random.choice(
                [
                    0.0, random.uniform(0.0, 0.01), random.uniform(0.0, milliseconds / 1000 + 0.1),
                    milliseconds / 1000 + random.uniform(0.0, 0.005),  # at about the time when it is resumed
                ]
            )  # fmt: skip
            self._loop.call_later(seconds, self._cancel, nap, context=WORLD)
        if self.margin_seconds is not None:
            self._loop.call_at(nap.due_seconds + self.margin_seconds, self._give_up, nap, context=WORLD)

    def _cancel(self, nap: Nap) -> None:
        if self._end(nap, State.CANCELLED):
            self._send(b"SN1 C %d\n%s" % (self.boot_epoch, _request("CANCEL", nap.call_id)))

    def _give_up(self, nap: Nap) -> None:
        self._end(nap, State.BACKSTOP)

    def restart(self) -> None:
        """A new life; no transaction of the old one is left."""
        self.boot_epoch += 1
        self.is_up = True
        self._gate_until_seconds = 0.0
        self._network.trace("proxy starts, boot epoch %d", self.boot_epoch)

    def die(self) -> None:
        """``kill -9``."""
        self.is_up = False
        self._network.trace("proxy is killed")
        for nap in self.naps.values():
            self._end(nap, State.DIED)

    # What the shim wants

    def receive(self, request: bytes) -> None:
        """A NAP request."""
        if not self.is_up:
            return
        match = _REQUEST.match(request)
        if match is None and (batch := _BATCH.match(request)) is not None:
            self._receive_batch(*batch.groups())
            return
        if match is None:
            self._violate(f"the proxy cannot read {request!r}")
            return
        index, label, nap_number, epoch, status, gate = match.groups()
        if gate is not None:
            self._gate_until_seconds = self._loop.time() + (_GATE_SECONDS if gate.startswith(b"open") else 0.0)
            self._answer(200, gate + b".%d" % self._most_in_batch if self._most_in_batch else gate)
            return
        nap = self.naps.get((int(epoch), int(index), int(label) % 2**32, int(nap_number)))
        is_applied = nap is not None and self._resume(nap, status.decode())
        self._answer(200 if is_applied else 481, b"%s.%s.%s.%s.%s" % (index, label, nap_number, epoch, status))
        self._go_on(nap, is_applied=is_applied)

    def _receive_batch(self, user: bytes, first: bytes, epoch: bytes, others: bytes) -> None:
        naps: list[tuple[Nap | None, bool]] = []
        for name in (first, *others[1:].split(b"/")):
            index, label, nap_number = map(int, name.split(b"."))
            nap = self.naps.get((int(epoch), index, label % 2**32, nap_number))
            naps.append((nap, nap is not None and self._resume(nap, "ok")))
        if not 1 < len(naps) <= self._most_in_batch:
            self._violate(f"a batch of {len(naps)}, where {self._most_in_batch} are the most")
        results = b" ".join(b"200" if is_applied else b"481" for _, is_applied in naps)
        self._send(b"SN1 B %d %s %s" % (self.boot_epoch, results, user), may_double=True)
        for nap, is_applied in naps:
            self._go_on(nap, is_applied=is_applied)

    def _go_on(self, nap: Nap | None, *, is_applied: bool) -> None:
        """What a transaction does that was resumed: some nap again."""
        if is_applied and nap is not None and not self.is_closing and self._random.random() < self._again_share:
            _, again_index, again_label, again_number = nap.key
            milliseconds = self._draw_milliseconds()
            self._suspend(again_index, again_label, again_number + 1, nap.call_id, milliseconds)

    def _resume(self, nap: Nap, status: str) -> bool:
        if not self._end(nap, State.RESUMED):
            return False
        nap.status = status
        if status == "ok" and not nap.operations and nap.ended_seconds < nap.due_seconds - EARLY_TOLERANCE_SECONDS:
            self._violate(f"{nap} was resumed {nap.due_seconds - nap.ended_seconds:.6f} s early")
        return True

    def _end(self, nap: Nap, state: State) -> bool:
        """End a nap, if it waits: this is what makes a continue apply once, as tm's t_continue does."""
        if nap.state is not State.WAITING:
            return False
        nap.state, nap.ended_seconds = state, self._loop.time()
        self._network.trace("%s: %s", nap, state.value)
        return True

    def _answer(self, result: int, user: bytes) -> None:
        self._send(b"SN1 A %d %d %s" % (self.boot_epoch, result, user), may_double=True)

    def _send(self, datagram: bytes, *, may_double: bool = False) -> bool:
        return self._network.send_datagram(datagram, self._to_shim, may_double=may_double)


def _request(method: str, call_id: int) -> bytes:
    return (
        f"{method} sip:b@example.org SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK{call_id}\r\n"
        f"From: <sip:a@example.org>;tag=1\r\nTo: <sip:b@example.org>\r\nCall-ID: {call_id}\r\nCSeq: 1 {method}\r\n\r\n"
    ).encode()
