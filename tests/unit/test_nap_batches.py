"""Several naps in one NAP request: who goes together, who does not, and what each part of the answer means."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipnap.client.keys import SuspensionKey
from sipnap.shim.kamailio import bridge as module
from sipnap.shim.kamailio import datagram, nap_request
from sipnap.v1 import suspension_pb2 as pb
from tests.support.bridge_hand import APPLIED, EPOCH, GONE, REJECTED, Hand, key, order, request, running, suspend, until

# What is written, what is read

numbers = st.tuples(st.integers(0, 65535), st.integers(0, 2**32 - 1), st.integers(1, 12))


@given(st.lists(numbers, min_size=2, max_size=32, unique=True), st.data())
def test_each_result_is_that_of_its_nap(naps: list[tuple[int, int, int]], data: st.DataObject) -> None:
    keys = [SuspensionKey("k", EPOCH, *nap) for nap in naps]
    user = nap_request.plain_user(keys)
    request = nap_request.plain_request(user)
    found = re.match(
        rb"NAP sip:([-0-9./ok]+)@batch SIP/2\.0\r\n"
        rb"Via: SIP/2\.0/UDP 127\.0\.0\.1;branch=z9hG4bK\r\nf:<sip:shim@sipnap>;tag=1\r\nt:<sip:proxy@sipnap>\r\n"
        rb"i:[-0-9.]+\r\nCSeq:1 NAP\r\n\r\n\Z",
        request,
    )
    assert found, request
    assert found[1] == user == nap_request.user_of(request)
    first, *others = user.split(b"/")
    names = [first.removesuffix(b".ok"), *(b"%s.%d" % (other, EPOCH) for other in others)]
    assert names == [nap_request.nap_name(key) for key in keys]
    assert len(request) < 1400, "it fits into one packet of any network"
    results = [data.draw(st.sampled_from([200, 404, 481])) for _ in keys]
    answer = b"SN1 B %d %s %s" % (EPOCH, b" ".join(b"%d" % result for result in results), found[1])
    assert datagram.read(answer) == datagram.Answers(EPOCH, results, user)


def test_the_first_is_as_in_a_single_one() -> None:
    """A script that knows no batches would take it for that one alone."""
    keys = [SuspensionKey("k", EPOCH, 5, 6, 1), SuspensionKey("k", EPOCH, 7, 2**32 - 8, 2)]
    single, batch = (nap_request.plain_request(nap_request.plain_user(some)) for some in (keys[:1], keys))
    assert single == nap_request.continue_request(nap_request.nap_name(keys[0]), pb.CONTINUE_STATUS_OK)
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


async def test_what_is_due_together_goes_together() -> None:
    async with running(b".8") as hand:
        await hand.nap(*range(10))
        hand.due(*range(10))
        first = b"0.6.1.E.ok" + b"".join(b"/%d.6.1" % index for index in range(1, 8))
        assert hand.requests() == [first + b"@batch", b"8.6.1.E.ok/9.6.1@batch"]
        hand.answers(b"200 481 200 404 200 200 200 200", first)
        await until(lambda: len(hand.session.answers) == 8)
        outcomes = {1: GONE, 3: REJECTED}
        assert hand.session.answers == [(key(index=index), outcomes.get(index, APPLIED)) for index in range(8)]
        assert hand.bridge.unanswered == 2


async def test_full_continues_that_say_no_more_go_together_too() -> None:
    """After a reconnect a sidecar knows no numbers."""
    async with running(b".8") as hand:
        await hand.nap(0, 1, 2)
        hand.session.hand_on([order(index=index) for index in range(3)])
        user = b"0.6.1.E.ok/1.6.1/2.6.1"
        assert hand.requests() == [user + b"@batch"]
        hand.answers(b"200 200 200", user)
        await until(lambda: len(hand.session.answers) == 3)
        assert hand.session.answers == [(key(index=index), APPLIED) for index in range(3)]
        assert left_over(hand) == 0


async def test_labels_of_every_size() -> None:
    async with running(b".8") as hand:
        for label in (0, 2**31 - 1, 2**31, 2**32 - 1):
            hand.send(suspend().replace(b" 5 6 1 ", b" 5 %d 1 " % label, 1))
        await until(lambda: len(hand.session.kept) == 4)
        hand.session.hand_on_due(list(hand.session.kept.values()))
        user = b"5.0.1.E.ok/5.2147483647.1/5.-2147483648.1/5.-1.1"
        assert hand.requests() == [user + b"@batch"]
        hand.answers(b"200 404 481 200", user)
        await until(lambda: len(hand.session.answers) == 4)
        assert [(key.transaction_label, outcome) for key, outcome in hand.session.answers] == [
            (0, APPLIED),
            (2**31 - 1, REJECTED),
            (2**31, GONE),
            (2**32 - 1, APPLIED),
        ]


async def test_one_alone_is_a_plain_one() -> None:
    async with running(b".8") as hand:
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
    async with running(b".8") as hand:
        hand.send(b"SN1 C %d\n%s" % (EPOCH + 1, request(b"CANCEL")))
        await until(lambda: hand.session.epochs == [EPOCH, EPOCH + 1])
        orders = [order(index=index) for index in (1, 2)]
        hand.session.hand_on([(key._replace(boot_epoch=EPOCH + 1), continued) for key, continued in orders])
        assert not [request for request in hand.requests() if b"@batch" in request], "it has not said what it takes"


async def test_what_brings_more_goes_alone() -> None:
    async with running(b".8") as hand:
        await hand.nap(*range(8))
        more = (
            order(index=0, status=pb.CONTINUE_STATUS_TIMED_OUT),
            order(index=1, values={"n": b"1"}),
            order(index=2, resume_route="OTHER"),
        )
        hand.session.hand_on([*more, order(index=3), order(index=4)])
        assert sorted(hand.requests()) == [
            b"0.6.1.E.timed_out@full",
            b"1.6.1.E.ok@full",
            b"2.6.1.E.ok@full",
            b"3.6.1.E.ok/4.6.1@batch",
        ]


async def test_without_an_answer_each_is_sent_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESEND_SECONDS", (0.01, 60.0))
    monkeypatch.setattr(module, "_SWEEP_SECONDS", 0.005)
    async with running(b".8") as hand:
        await hand.nap(1, 2, 3)
        hand.due(1, 2, 3)
        got: list[bytes] = []
        await until(lambda: _gather(hand, got, 4))
        batch = b"1.6.1.E.ok/2.6.1/3.6.1"
        assert got == [batch + b"@batch", b"1.6.1.E.ok@plain", b"2.6.1.E.ok@plain", b"3.6.1.E.ok@plain"]

        # The batch has 1 done and works on 2 when the repetitions come; another worker takes 3 before it is its turn.
        hand.send(b"SN1 A %d 481 1.6.1.%d.ok" % (EPOCH, EPOCH))
        hand.send(b"SN1 A %d 481 2.6.1.%d.ok" % (EPOCH, EPOCH))
        hand.send(b"SN1 A %d 200 3.6.1.%d.ok" % (EPOCH, EPOCH))
        await until(lambda: hand.session.answers)
        assert hand.session.answers == [(key(index=3), APPLIED)]
        hand.answers(b"200 200 481", batch)
        await until(lambda: len(hand.session.answers) == 3)
        assert sorted(hand.session.answers) == [(key(index=index), APPLIED) for index in (1, 2, 3)]
        assert hand.bridge.unanswered == 0


async def test_one_that_nobody_finds_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESEND_SECONDS", (0.01, 60.0))
    monkeypatch.setattr(module, "_SWEEP_SECONDS", 0.005)
    async with running(b".8") as hand:
        await hand.nap(1, 2)
        hand.due(1, 2)
        got: list[bytes] = []
        await until(lambda: _gather(hand, got, 3))
        hand.answers(b"481 200", b"1.6.1.E.ok/2.6.1")
        await until(lambda: hand.session.answers)
        assert hand.session.answers == [(key(index=2), APPLIED)]
        hand.send(b"SN1 A %d 481 1.6.1.%d.ok" % (EPOCH, EPOCH))
        await until(lambda: len(hand.session.answers) == 2)
        assert hand.session.answers[1] == (key(index=1), GONE)


async def test_an_answer_that_comes_twice_counts_once() -> None:
    async with running(b".8") as hand:
        await hand.nap(1, 2)
        hand.due(1, 2)
        for results in (b"200 200", b"481 481", b"200 481"):
            hand.answers(results, b"1.6.1.E.ok/2.6.1")
        hand.send(b"SN1 A %d 200 closed.2.8" % EPOCH)
        await hand.nap(3)
        assert hand.session.answers == [(key(index=1), APPLIED), (key(index=2), APPLIED)]


async def test_a_part_of_a_batch_naps_again_before_its_answer() -> None:
    async with running(b".8") as hand:
        await hand.nap(1, 2)
        hand.due(1, 2)
        await hand.nap(1, nap=2)
        assert hand.session.answers == [(key(index=1), APPLIED)]
        hand.answers(b"200 200", b"1.6.1.E.ok/2.6.1")
        await until(lambda: len(hand.session.answers) == 2)
        assert hand.session.answers == [(key(index=1), APPLIED), (key(index=2), APPLIED)]
        hand.session.hand_on([order(2, index=1)])
        assert hand.requests()[-1] == b"1.6.2.E.ok@plain"


async def test_an_answer_of_the_wrong_length_is_not_believed() -> None:
    async with running(b".8") as hand:
        await hand.nap(1, 2)
        hand.due(1, 2)
        hand.answers(b"200", b"1.6.1.E.ok/2.6.1")
        hand.answers(b"200 200 200", b"1.6.1.E.ok/2.6.1")
        await hand.nap(3)
        assert hand.session.answers == []
        assert hand.bridge.unanswered == 2


async def test_a_batch_that_nobody_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESEND_SECONDS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(module, "_SWEEP_SECONDS", 0.005)
    async with running(b".8") as hand:
        await hand.nap(1, 2)
        hand.due(1, 2)
        await until(lambda: len(hand.session.answers) == 2)
        assert sorted(hand.session.answers) == [(key(index=1), GONE), (key(index=2), GONE)]
        single = [b"1.6.1.E.ok@plain", b"2.6.1.E.ok@plain"]
        assert hand.requests() == [b"1.6.1.E.ok/2.6.1@batch", *single, *single]
        await until(lambda: not any(hand.bridge._waiting))
        assert left_over(hand) == 0
        hand.answers(b"200 200", b"1.6.1.E.ok/2.6.1")  # too late, and no news
        await hand.nap(3)
        assert len(hand.session.answers) == 2


async def test_a_batch_s_own_answer_counts_until_it_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESEND_SECONDS", (0.01, 0.01, 60.0))
    monkeypatch.setattr(module, "_SWEEP_SECONDS", 0.005)
    async with running(b".8") as hand:
        await hand.nap(1, 2)
        hand.due(1, 2)
        await until(lambda: len(hand.drain()) == 5)  # the batch, and each alone twice
        hand.answers(b"200 404", b"1.6.1.E.ok/2.6.1")
        await until(lambda: len(hand.session.answers) == 2)
        assert hand.session.answers == [(key(index=1), APPLIED), (key(index=2), REJECTED)]
        assert hand.bridge.unanswered == 0


def left_over(hand: Hand) -> int:
    """What the bridge still keeps of naps."""
    bridge = hand.bridge
    return len(bridge._by_call_id) + len(bridge._strangers) + len(bridge._awaiting) + bridge.unanswered


def _gather(hand: Hand, got: list[bytes], count: int) -> bool:
    got += hand.requests()
    return len(got) >= count
