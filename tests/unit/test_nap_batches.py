"""Several naps in one NAP request: who goes together, who does not, and what each part of the answer means."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipnap.client.keys import Key, SuspensionKey
from sipnap.client.session import FrontEndSession
from sipnap.shim.kamailio import bridge as module
from sipnap.shim.kamailio import datagram, nap_request
from sipnap.shim.kamailio.bridge import Address, Bridge
from sipnap.v1 import suspension_pb2 as pb

EPOCH = 1_700_000_000
APPLIED, GONE, REJECTED = (
    pb.CONTINUE_OUTCOME_APPLIED,
    pb.CONTINUE_OUTCOME_GONE,
    pb.CONTINUE_OUTCOME_REJECTED,
)
INVITE = (
    b"INVITE sip:b@h SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: <sip:a@h>;tag=1\r\nTo: <sip:b@h>\r\n"
    b"Call-ID: c\r\nCSeq: 1 INVITE\r\n\r\n"
)

# What is written, what is read

numbers = st.tuples(st.integers(0, 65535), st.integers(0, 2**32 - 1), st.integers(1, 12))


@given(st.lists(numbers, min_size=2, max_size=32, unique=True), st.data())
def test_each_result_is_that_of_its_nap(naps: list[tuple[int, int, int]], data: st.DataObject) -> None:
    names = [nap_request.nap_name(SuspensionKey("k", EPOCH, *nap)) for nap in naps]
    request = nap_request.batch_request(names)
    found = re.match(
        rb"NAP sip:([-0-9./ok]+)@batch SIP/2\.0\r\n"
        rb"Via: SIP/2\.0/UDP 127\.0\.0\.1;branch=z9hG4bK\r\nf:<sip:shim@sipnap>;tag=1\r\nt:<sip:proxy@sipnap>\r\n"
        rb"i:[-0-9.]+\r\nCSeq:1 NAP\r\n\r\n\Z",
        request,
    )
    assert found, request
    assert len(request) < 1400, "it fits into one packet of any network"
    results = [data.draw(st.sampled_from([200, 404, 481])) for _ in names]
    answer = b"SN1 B %d %s %s" % (EPOCH, b" ".join(b"%d" % result for result in results), found[1])
    assert datagram.read(answer) == datagram.Answers(EPOCH, list(zip(names, results, strict=True)))


def test_the_first_is_as_in_a_single_one() -> None:
    """A script that knows no batches would take it for that one alone."""
    names = [b"5.6.1.%d" % EPOCH, b"7.-8.2.%d" % EPOCH]
    single, batch = nap_request.plain_request(names[0]), nap_request.batch_request(names)
    assert batch == single.replace(b".ok@plain", b".ok/7.-8.2@batch")


@pytest.mark.parametrize(
    "malformed",
    [
        b"SN1 B",
        b"SN1 B 1700000000",
        b"SN1 B 1700000000 1.2.3.4.ok/5.6.7",
        b"SN1 B 1700000000 200 1.2.3.4.ok/5.6.7",
        b"SN1 B 1700000000 200 200 200 1.2.3.4.ok/5.6.7",
        b"SN1 B 1700000000 200 x 1.2.3.4.ok/5.6.7",
        b"SN1 B 1700000000 200  1.2.3.4.ok/5.6.7",
        b"SN1 B x 200 200 1.2.3.4.ok/5.6.7",
        b"SN1 B 1700000000 200 200 ",
    ],
)
def test_an_answer_that_is_not_one(malformed: bytes) -> None:
    with pytest.raises(datagram.DatagramError):
        datagram.read(malformed)


@given(st.binary(max_size=60))
def test_no_answer_does_worse_than_be_refused(noise: bytes) -> None:
    try:
        read = datagram.read(b"SN1 B " + noise)
    except datagram.DatagramError:
        return
    assert isinstance(read, datagram.Answers)


# The bridge


class HandSession:
    """What the bridge sees of a session."""

    is_open = True
    outstanding = 0

    def __init__(self) -> None:
        self.suspended: list[Key] = []
        self.answers: list[tuple[Key, int]] = []
        self.epochs: list[int] = []
        self.send: Callable[[Sequence[tuple[Key, pb.Continue]]], None] = lambda continues: None

    def on_gate(self, callback: Callable[[bool], None]) -> None:
        pass

    def on_continues(self, callback: Callable[[Sequence[tuple[Key, pb.Continue]]], None]) -> None:
        self.send = callback

    def suspend_encoded(self, key: Key, *_: object, **__: object) -> None:
        self.suspended.append(key)

    def answer(self, key: Key, outcome: int) -> None:
        self.answers.append((key, outcome))

    def set_boot_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


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

    async def knows(self, most: bytes) -> None:
        """Have the proxy answer a heartbeat; `most` is what its script puts behind the user part."""
        self.socket.send(b"SN1 A %d 200 open.1%s" % (EPOCH, most))
        await until(lambda: self.session.epochs)

    async def nap(self, *indexes: int, nap: int = 1) -> None:
        count = len(self.session.suspended) + len(indexes)
        for index in indexes:
            self.socket.send(
                b"SN1 S %d %d 6 %d 1000 RESUME 127.0.0.1 5060 %d\n%ssip:b@h" % (EPOCH, index, nap, len(INVITE), INVITE)
            )
        await until(lambda: len(self.session.suspended) == count)

    def due(self, *indexes: int, **fields: object) -> None:
        """Have these end at once."""
        self.session.send([(key(index), order(**fields)) for index in indexes])

    def requests(self) -> list[bytes]:
        """User and host of all that has come meanwhile, heartbeats aside."""
        found: list[bytes] = []
        while True:
            try:
                request = self.socket.recv(65536)
            except BlockingIOError:
                return [uri for uri in found if not uri.endswith(b"@gate")]
            found.append(request.split(b" ")[1].removeprefix(b"sip:").replace(b"%d" % EPOCH, b"E"))

    def answers(self, results: bytes, user: bytes) -> None:
        self.socket.send(b"SN1 B %d %s %s" % (EPOCH, results, user.replace(b"E", b"%d" % EPOCH)))


def key(index: int, nap: int = 1) -> Key:
    return ("kamailio", EPOCH, index, 6, nap)


def order(**fields: object) -> pb.Continue:
    made = pb.Continue(resume_route="RESUME", status=pb.CONTINUE_STATUS_OK, attempt=1)
    made.key.nap_number = 1
    for name, value in fields.items():
        if name == "values":
            made.values.add(name="n").value.integer = 1
        else:
            setattr(made, name, value)
    return made


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def running(most: bytes = b".8") -> AsyncIterator[Hand]:
    hand = Hand()
    task = asyncio.create_task(hand.bridge.run())
    try:
        await hand.knows(most)
        hand.requests()
        yield hand
    finally:
        task.cancel()
        await asyncio.sleep(0)
        hand.bridge._sent.clear()  # it would wait for the answers
        await asyncio.gather(task, return_exceptions=True)
        hand.socket.close()


async def test_what_is_due_together_goes_together() -> None:
    async with running() as hand:
        await hand.nap(*range(10))
        hand.due(*range(10))
        first = b"0.6.1.E.ok" + b"".join(b"/%d.6.1" % index for index in range(1, 8))
        assert hand.requests() == [first + b"@batch", b"8.6.1.E.ok/9.6.1@batch"]
        hand.answers(b"200 481 200 404 200 200 200 200", first)
        await until(lambda: len(hand.session.answers) == 8)
        outcomes = {1: GONE, 3: REJECTED}
        assert hand.session.answers == [(key(index), outcomes.get(index, APPLIED)) for index in range(8)]
        assert hand.bridge.unanswered == 2


async def test_one_alone_is_a_plain_one() -> None:
    async with running() as hand:
        await hand.nap(1, 2, 3)
        hand.due(1)
        assert hand.requests() == [b"1.6.1.E.ok@plain"]
        hand.due(2)
        hand.due(3)
        assert hand.requests() == [b"2.6.1.E.ok@plain", b"3.6.1.E.ok@plain"]


@pytest.mark.parametrize("most", [b"", b".0", b".1", b".x", b".-8", b".8x", b".", b".8.8", b"." + b"9" * 5000])
async def test_a_script_that_knows_no_batches_gets_none(most: bytes) -> None:
    async with running(most) as hand:
        await hand.nap(1, 2)
        hand.due(1, 2)
        assert hand.requests() == [b"1.6.1.E.ok@plain", b"2.6.1.E.ok@plain"]


async def test_no_batch_is_larger_than_a_loop_of_the_script_may_be() -> None:
    async with running(b".999") as hand:
        await hand.nap(*range(40))
        hand.due(*range(40))
        assert [request.count(b"/") + 1 for request in hand.requests()] == [32, 8]


async def test_the_script_of_another_life_of_the_proxy_is_another_one() -> None:
    async with running() as hand:
        hand.socket.send(b"SN1 C %d\n%s" % (EPOCH + 1, INVITE.replace(b"INVITE", b"CANCEL")))
        await until(lambda: hand.session.epochs == [EPOCH, EPOCH + 1])
        hand.session.send([(("kamailio", EPOCH + 1, index, 6, 1), order()) for index in (1, 2)])
        assert not [request for request in hand.requests() if b"@batch" in request], "it has not said what it takes"


async def test_what_brings_more_goes_alone() -> None:
    async with running() as hand:
        await hand.nap(*range(8))
        more = (order(status=pb.CONTINUE_STATUS_TIMED_OUT), order(values=1), order(resume_route="OTHER"))
        hand.session.send([(key(index), more[index] if index < 3 else order()) for index in range(5)])
        assert sorted(hand.requests()) == [
            b"0.6.1.E.timed_out@full",
            b"1.6.1.E.ok@full",
            b"2.6.1.E.ok@full",
            b"3.6.1.E.ok/4.6.1@batch",
        ]


async def test_without_an_answer_each_is_sent_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESEND_SECONDS", (0.01, 60.0))
    monkeypatch.setattr(module, "_SWEEP_SECONDS", 0.005)
    async with running() as hand:
        await hand.nap(1, 2, 3)
        hand.due(1, 2, 3)
        got: list[bytes] = []
        await until(lambda: _gather(hand, got, 4))
        batch = b"1.6.1.E.ok/2.6.1/3.6.1"
        assert got == [batch + b"@batch", b"1.6.1.E.ok@plain", b"2.6.1.E.ok@plain", b"3.6.1.E.ok@plain"]

        # The batch has 1 done and works on 2 when the repetitions come; another worker takes 3 before it is its turn.
        hand.socket.send(b"SN1 A %d 481 1.6.1.%d.ok" % (EPOCH, EPOCH))
        hand.socket.send(b"SN1 A %d 481 2.6.1.%d.ok" % (EPOCH, EPOCH))
        hand.socket.send(b"SN1 A %d 200 3.6.1.%d.ok" % (EPOCH, EPOCH))
        await until(lambda: hand.session.answers)
        assert hand.session.answers == [(key(3), APPLIED)]
        hand.answers(b"200 200 481", batch)
        await until(lambda: len(hand.session.answers) == 3)
        assert sorted(hand.session.answers) == [(key(index), APPLIED) for index in (1, 2, 3)]
        assert hand.bridge.unanswered == 0


async def test_one_that_nobody_finds_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESEND_SECONDS", (0.01, 60.0))
    monkeypatch.setattr(module, "_SWEEP_SECONDS", 0.005)
    async with running() as hand:
        await hand.nap(1, 2)
        hand.due(1, 2)
        got: list[bytes] = []
        await until(lambda: _gather(hand, got, 3))
        hand.answers(b"481 200", b"1.6.1.E.ok/2.6.1")
        await until(lambda: hand.session.answers)
        assert hand.session.answers == [(key(2), APPLIED)]
        hand.socket.send(b"SN1 A %d 481 1.6.1.%d.ok" % (EPOCH, EPOCH))
        await until(lambda: len(hand.session.answers) == 2)
        assert hand.session.answers[1] == (key(1), GONE)


async def test_an_answer_that_comes_twice_counts_once() -> None:
    async with running() as hand:
        await hand.nap(1, 2)
        hand.due(1, 2)
        for results in (b"200 200", b"481 481", b"200 481"):
            hand.answers(results, b"1.6.1.E.ok/2.6.1")
        hand.socket.send(b"SN1 A %d 200 closed.2.8" % EPOCH)
        await hand.nap(3)
        assert hand.session.answers == [(key(1), APPLIED), (key(2), APPLIED)]


async def test_a_part_of_a_batch_naps_again_before_its_answer() -> None:
    async with running() as hand:
        await hand.nap(1, 2)
        hand.due(1, 2)
        await hand.nap(1, nap=2)
        assert hand.session.answers == [(key(1), APPLIED)]
        hand.answers(b"200 200", b"1.6.1.E.ok/2.6.1")
        await until(lambda: len(hand.session.answers) == 2)
        assert hand.session.answers == [(key(1), APPLIED), (key(2), APPLIED)]
        hand.session.send([(key(1, nap=2), order())])
        assert hand.requests()[-1] == b"1.6.2.E.ok@plain"


async def test_an_answer_of_the_wrong_length_is_not_believed() -> None:
    async with running() as hand:
        await hand.nap(1, 2)
        hand.due(1, 2)
        hand.answers(b"200", b"1.6.1.E.ok/2.6.1")
        hand.answers(b"200 200 200", b"1.6.1.E.ok/2.6.1")
        await hand.nap(3)
        assert hand.session.answers == []
        assert hand.bridge.unanswered == 2


def _gather(hand: Hand, got: list[bytes], count: int) -> bool:
    got += hand.requests()
    return len(got) >= count
