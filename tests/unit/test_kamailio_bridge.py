"""The bridge between a proxy and a session, with both in the hand of the test."""

from __future__ import annotations

import asyncio
import logging

import pytest

from sipnap.shim.kamailio import bridge as module
from sipnap.shim.kamailio.bridge import Bridge
from sipnap.shim.kamailio.inbox import Inbox
from sipnap.v1 import suspension_pb2 as pb
from tests.support.bridge_hand import APPLIED, EPOCH, GONE, REJECTED, Hand, key, order, request, running, suspend, until


@pytest.mark.parametrize(("result", "outcome"), [(200, APPLIED), (481, GONE), (404, REJECTED), (400, GONE)])
async def test_there_and_back(result: int, outcome: int) -> None:
    async with running() as hand:
        hand.send(suspend())
        await until(lambda: hand.session.suspended)
        hand.order()
        (sent,) = await hand.nap_requests(1)
        assert sent.startswith(b"NAP sip:5.6.1.%d.ok@plain SIP/2.0\r\n" % EPOCH)
        hand.send(b"SN1 A %d %d 5.6.1.%d.ok" % (EPOCH, result, EPOCH))
        await until(lambda: hand.session.answers)
        assert hand.session.answers == [(key(), outcome)]
        assert hand.bridge.unanswered == 0


async def test_the_proxy_is_told_a_route_that_it_does_not_know() -> None:
    """After a restart of the shim, or from another program."""
    async with running() as hand:
        hand.order(resume_route="OTHER", status=pb.CONTINUE_STATUS_TIMED_OUT, error="too slow")
        (sent,) = await hand.nap_requests(1)
        assert sent.startswith(b"NAP sip:5.6.1.%d.timed_out@full SIP/2.0\r\n" % EPOCH)
        assert b"Nap-Route: OTHER\r\nNap-Error: too slow\r\nNap-Code: timed_out\r\n" in sent


async def test_a_nap_request_is_sent_again_and_then_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RESEND_SECONDS", (0.01, 0.02, 0.04))
    monkeypatch.setattr(module, "_SWEEP_SECONDS", 0.005)
    async with running() as hand:
        hand.order()
        sent = await hand.nap_requests(3)
        assert sent == [sent[0]] * 3
        await until(lambda: hand.session.answers)
        assert hand.session.answers == [(key(), GONE)]
        assert "proxy did not answer a NAP request" in caplog.text
        hand.send(b"SN1 A %d 200 5.6.1.%d.ok" % (EPOCH, EPOCH))  # too late, and no news
        await asyncio.sleep(0.02)
        assert hand.session.answers == [(key(), GONE)]
        assert len(hand.drain()) == 3


@pytest.mark.parametrize(
    ("results", "outcome"),
    [([481, 200], APPLIED), ([481, 404], REJECTED), ([481, 481], GONE), ([481], GONE), ([200, 481], APPLIED)],
)
async def test_a_repetition_that_finds_nothing_is_not_the_answer(
    monkeypatch: pytest.MonkeyPatch, results: list[int], outcome: int
) -> None:
    """One worker of the proxy is at the first request still while another one answers the second."""
    monkeypatch.setattr(module, "RESEND_SECONDS", (0.01, 0.3, 60.0))
    monkeypatch.setattr(module, "_SWEEP_SECONDS", 0.005)
    async with running() as hand:
        hand.order()
        await hand.nap_requests(2)
        for result in results:
            hand.send(b"SN1 A %d %d 5.6.1.%d.ok" % (EPOCH, result, EPOCH))
        await until(lambda: hand.session.answers)
        assert hand.session.answers == [(key(), outcome)]
        assert len(hand.drain()) == 2
        assert hand.bridge.unanswered == 0


async def test_a_second_nap_says_that_the_first_was_resumed() -> None:
    async with running() as hand:
        hand.send(suspend(1))
        await until(lambda: hand.session.suspended)
        hand.order(1)
        await hand.nap_requests(1)
        hand.send(suspend(2))
        await until(lambda: len(hand.session.suspended) == 2)
        assert hand.session.answers == [(key(1), APPLIED)]
        hand.send(b"SN1 A %d 481 5.6.1.%d.ok" % (EPOCH, EPOCH))  # the proxy's answer to a repetition
        hand.send(b"SN1 C %d\n%s" % (EPOCH, request(b"CANCEL")))
        await until(lambda: hand.session.cancelled)
        assert hand.session.cancelled == [key(2)]
        assert hand.session.answers == [(key(1), APPLIED)]


async def test_a_second_nap_of_one_from_before_the_shim_s_restart() -> None:
    """The session never had the first: its continue was kept by the sidecar."""
    async with running() as hand:
        hand.order(1)
        (sent,) = await hand.nap_requests(1)
        assert b"Nap-Route: RESUME\r\n" in sent, "this shim has not heard of it"
        hand.send(suspend(2))
        await until(lambda: hand.session.suspended)
        assert hand.session.answers == [(key(1), APPLIED)]
        assert not hand.bridge._strangers


async def test_a_first_nap_that_was_not_to_end_yet_is_not_said_to_be_resumed() -> None:
    """The backstop ended it; what the proxy says to our request will tell."""
    async with running() as hand:
        hand.send(suspend(1))
        hand.send(suspend(2))
        await until(lambda: len(hand.session.suspended) == 2)
        assert hand.session.answers == []
        assert set(hand.session.kept) == {key(1), key(2)}


@pytest.mark.parametrize(("result", "outcome"), [(200, APPLIED), (481, GONE)])
async def test_a_cancel_while_the_end_is_under_way(result: int, outcome: int) -> None:
    """For the sidecar it may come too late: what the proxy answers is passed on all the same."""
    async with running() as hand:
        await hand.nap(5)
        hand.due(5)
        hand.send(b"SN1 C %d\n%s" % (EPOCH, request(b"CANCEL")))
        await until(lambda: hand.session.cancelled)
        hand.answer(result, b"5.6.1.E.ok")
        await until(lambda: hand.session.answers)
        assert hand.session.answers == [(key(), outcome)]
        assert hand.bridge.unanswered == 0


async def test_a_lost_one_is_forgotten() -> None:
    async with running() as hand:
        await hand.nap(5)
        hand.order(status=pb.CONTINUE_STATUS_LOST)
        (sent,) = await hand.nap_requests(1)
        assert sent.startswith(b"NAP sip:5.6.1.%d.lost@full SIP/2.0\r\n" % EPOCH)
        hand.answer(200, b"5.6.1.E.lost")
        await until(lambda: hand.session.answers == [(key(), APPLIED)])
        assert not hand.bridge._by_call_id
        hand.send(b"SN1 C %d\n%s" % (EPOCH, request(b"CANCEL")))
        await until(lambda: hand.bridge.early_cancels == 1)
        assert hand.session.cancelled == []


async def test_a_datagram_that_comes_twice_is_one_nap() -> None:
    async with running() as hand:
        for _ in range(2):
            hand.send(suspend())
        hand.send(suspend(2))
        await until(lambda: len(hand.session.suspended) == 2)
        hand.due(5)
        hand.answer(200, b"5.6.1.E.ok")
        await until(lambda: hand.session.answers == [(key(), APPLIED)])
        hand.send(b"SN1 C %d\n%s" % (EPOCH, request(b"CANCEL")))
        await until(lambda: hand.session.cancelled == [key(2)])
        assert not hand.bridge._by_call_id


async def test_a_cancel_ends_the_nap() -> None:
    async with running() as hand:
        hand.send(suspend())
        hand.send(b"SN1 C %d\n%s" % (EPOCH, request(b"CANCEL", b"z9hG4bKother")))
        hand.send(b"SN1 C %d\n%s" % (EPOCH, request(b"CANCEL")))
        await until(lambda: hand.session.cancelled)
        assert hand.session.cancelled == [key()]


async def test_a_cancel_finds_its_nap_among_those_of_the_same_call_id() -> None:
    """A call that was forked before it came here, or a caller who gives one Call-ID to everything."""
    async with running() as hand:
        for number in range(100):
            sip = suspend(message=request(branch=b"z9hG4bK-%d" % number))
            hand.send(sip.replace(b" 5 6 1 ", b" %d 6 1 " % number, 1))
        await until(lambda: len(hand.session.suspended) == 100)
        for number in (3, 40):
            hand.send(b"SN1 C %d\n%s" % (EPOCH, request(b"CANCEL", b"z9hG4bK-%d" % number)))
        await until(lambda: len(hand.session.cancelled) == 2)
        assert [cancelled.transaction_index for cancelled in hand.session.cancelled] == [3, 40]
        same = hand.bridge._by_call_id[b"c"]
        assert isinstance(same, dict)
        assert len(same) == 98


async def test_a_cancel_that_overtakes_its_suspension() -> None:
    async with running() as hand:
        hand.send(b"SN1 C %d\n%s" % (EPOCH, request(b"CANCEL")))
        hand.send(suspend())
        hand.send(suspend(message=request(branch=b"z9hG4bK2")))
        await until(lambda: hand.session.suspended)
        assert [s.state.via_branch for s in hand.session.suspended] == [b"z9hG4bK2"]


async def test_early_cancels_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EARLY_CANCEL_SECONDS", 0.01)
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(module, "_SWEEP_SECONDS", 0.005)
    async with running() as hand:
        hand.send(b"SN1 C %d\n%s" % (EPOCH, request(b"CANCEL")))
        await until(lambda: hand.bridge.early_cancels == 1)
        await until(lambda: hand.bridge.early_cancels == 0)
        hand.send(suspend())
        await until(lambda: hand.session.suspended)


async def test_early_cancels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_EARLY_CANCELS", 3)
    async with running() as hand:
        for number in range(10):
            hand.send(b"SN1 C %d\n%s" % (EPOCH, request(b"CANCEL", b"z9hG4bK%d" % number)))
        hand.send(suspend(message=request(branch=b"z9hG4bK9")))
        hand.send(suspend(message=request(branch=b"z9hG4bK0")))
        await until(lambda: hand.session.suspended)
        assert [s.state.via_branch for s in hand.session.suspended] == [b"z9hG4bK0"]
        assert hand.bridge.early_cancels == 3


async def test_a_restarted_proxy(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as hand:
        hand.send(suspend())
        await until(lambda: hand.session.suspended)
        hand.order()
        await hand.nap_requests(1)
        hand.send(suspend(epoch=EPOCH + 9))
        await until(lambda: hand.session.epochs == [EPOCH, EPOCH + 9])
        await until(lambda: len(hand.session.suspended) == 2)
        assert "proxy restarted" in caplog.text
        assert hand.bridge.unanswered == 0
        hand.order()  # of the life before
        await until(lambda: hand.session.answers)
        assert hand.session.answers == [(key(), GONE)]
        hand.send(b"SN1 C %d\n%s" % (EPOCH + 9, request(b"CANCEL")))
        await until(lambda: hand.session.cancelled)
        assert hand.session.cancelled == [key()._replace(boot_epoch=EPOCH + 9)], "the other one is no more"
        hand.send(suspend())  # a datagram that was under way for long
        hand.send(b"SN1 A %d 200 closed.2" % (EPOCH + 9))
        await asyncio.sleep(0.02)
        assert len(hand.session.suspended) == 2


async def test_what_cannot_be_read_is_resumed_as_failed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running() as hand:
        for garbage in (b"", b"\xff" * 100, b"SN1 S", b"SN1 S x"):
            hand.send(garbage)
        line, _, rest = suspend().partition(b"\n")
        hand.send(b"%s tenant:99999\n%s" % (line, rest))
        (sent,) = await hand.nap_requests(1)
        assert sent.startswith(b"NAP sip:5.6.1.%d.failed@full SIP/2.0\r\n" % EPOCH)
        assert b"Nap-Error: the shim cannot read it: " in sent
        assert b"Nap-Code: unreadable\r\n" in sent
        assert hand.session.suspended == []
        await until(lambda: "malformed datagrams from the proxy count=" in caplog.text)
        assert caplog.text.count("malformed datagrams") == 1


async def test_what_the_proxy_takes_for_a_request_naps_whatever_it_is() -> None:
    """Nobody needs to read it for that; it cannot be cancelled, since no CANCEL could name it."""
    async with running() as hand:
        hand.send(suspend(message=b"no SIP at all"))
        await until(lambda: hand.session.suspended)
        assert hand.session.suspended[0].state.head == b"no SIP at all"
        hand.send(b"SN1 C %d\n%s" % (EPOCH, request(b"CANCEL")))
        await until(lambda: hand.bridge.early_cancels == 1)
        hand.order()
        (sent,) = await hand.nap_requests(1)
        assert sent.startswith(b"NAP sip:5.6.1.%d.ok@plain SIP/2.0\r\n" % EPOCH)
        assert hand.session.cancelled == []


async def test_the_delay_goes_beside_the_suspension() -> None:
    async with running() as hand:
        hand.send(suspend())
        hand.send(suspend(2).replace(b" 1000 RESUME", b" 1 RESUME"))
        await until(lambda: len(hand.session.suspended) == 2)
        assert hand.session.delays == [pytest.approx(1.0, abs=0.5), pytest.approx(0.001, abs=0.5)]


async def test_a_delay_counts_from_when_the_datagram_came(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Inbox.take

    def take_late(self: Inbox, most: int) -> list[tuple[bytes, float]]:
        return [(taken, 0.25) for taken, _ in take(self, most)]

    monkeypatch.setattr(Inbox, "take", take_late)
    async with running() as hand:
        hand.send(suspend())
        await until(lambda: len(hand.session.suspended) == 1)
        assert hand.session.delays == [0.75]
        assert hand.session.suspended[0].delay.ToMilliseconds() == 1000, "what was asked for is told as it was"


@pytest.mark.parametrize("per_turn", [1, 3, 256])
async def test_bursts_and_pauses(monkeypatch: pytest.MonkeyPatch, per_turn: int) -> None:
    """Under load the socket is looked at from time to time; after a pause the first datagram wakes the bridge."""
    monkeypatch.setattr(module, "_DATAGRAMS_PER_TURN", per_turn)
    async with running() as hand:
        sent: list[bytes] = []
        for pause_seconds, count in ((0.0, 100), (0.003, 20), (0.03, 1), (0.0, 50), (0.1, 1)):
            await asyncio.sleep(pause_seconds)
            for _ in range(count):
                sent.append(b"%d" % len(sent))
                hand.send(b"SN1 T %d 0 REPORT %d 0\n%s" % (EPOCH, len(sent[-1]), sent[-1]))
            await until(lambda: len(hand.session.suspended) == len(sent))
        assert [task.data for task in hand.session.suspended] == sent, "in order"


async def test_a_pause_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is not woken for a socket where nothing happens."""
    clock = asyncio.get_running_loop().time
    poll, polled_seconds = Bridge._poll, [clock()]

    def noted(self: Bridge, quiet: int) -> None:
        polled_seconds.append(clock())
        poll(self, quiet)

    monkeypatch.setattr(Bridge, "_poll", noted)
    async with running() as hand:
        hand.send(suspend())
        await until(lambda: hand.session.suspended)
        await until(lambda: clock() - polled_seconds[-1] > 0.1)
        hand.send(suspend(2))
        await until(lambda: len(hand.session.suspended) == 2)


async def test_the_gate_is_told_at_once() -> None:
    async with running() as hand:

        def gates() -> list[bytes]:
            found = []
            while True:
                try:
                    found.append(hand.socket.recv(65536))
                except BlockingIOError:
                    return [line.split(b"@")[0] for line in found if b"@gate" in line]

        assert gates()[0].startswith(b"NAP sip:ask."), "how it stands is not known yet: nothing is changed"
        hand.session.gate(True)
        assert gates()[-1].startswith(b"NAP sip:open.")
        hand.session.is_open = False
        hand.session.gate(False)
        assert gates()[-1].startswith(b"NAP sip:closed.")


async def test_the_gate_is_shut_at_the_end() -> None:
    hand = Hand()
    task = asyncio.create_task(hand.bridge.run())
    hand.send(b"SN1 A %d 200 ask.1" % EPOCH)
    await until(lambda: hand.session.epochs)
    hand.session.gate(True)
    hand.order()
    await hand.nap_requests(1)
    task.cancel()
    await asyncio.sleep(0.02)
    assert not task.done(), "it waits for the proxy's answer to what is under way"
    hand.send(b"SN1 A %d 200 5.6.1.%d.ok" % (EPOCH, EPOCH))
    await asyncio.gather(task, return_exceptions=True)
    assert hand.session.answers == [(key(), APPLIED)]
    last = b""
    while not last.startswith(b"NAP sip:closed."):
        last = hand.socket.recv(65536)
    hand.socket.close()


def asked(arguments: bytes) -> bytes:
    """A nap with an operation."""
    line, _, rest = suspend().partition(b"\n")
    return b"%s 2,%d,0\nop%s%s" % (line.replace(b"SN1 S", b"SN1 O"), len(arguments), arguments, rest)


async def test_an_operation_there_and_its_values_back() -> None:
    async with running() as hand:
        hand.send(asked(b"number=%2b49"))
        await until(lambda: hand.session.suspended)
        (operation,) = hand.session.suspended[0].operations
        assert (operation.name, [argument.value.text for argument in operation.arguments]) == ("op", [b"+49"])
        hand.order(values={"uri": b"sip:x\r\n\xff"})
        (sent,) = await hand.nap_requests(1)
        assert sent.startswith(b"NAP sip:5.6.1.%d.ok@full SIP/2.0\r\n" % EPOCH)
        assert b"\r\nNap-Names: uri:t\r\nNap-Values: uri:t:c2lwOngNCv8=\r\n" in sent
        assert b"Nap-Route" not in sent, "the proxy knows it"
        hand.send(b"SN1 A %d 200 5.6.1.%d.ok" % (EPOCH, EPOCH))
        await until(lambda: hand.session.answers == [(key(), APPLIED)])


async def test_malformed_arguments_end_the_nap_at_once() -> None:
    async with running() as hand:
        hand.send(asked(b"number=sip:x@y"))
        (sent,) = await hand.nap_requests(1)
        assert sent.startswith(b"NAP sip:5.6.1.%d.failed@full SIP/2.0\r\n" % EPOCH)
        assert b"operation 1: argument number is not urlencoded" in sent
        assert b"Nap-Code: bad_arguments\r\n" in sent
        assert hand.session.suspended == []


FAILED, TIMED_OUT, LOST = pb.CONTINUE_STATUS_FAILED, pb.CONTINUE_STATUS_TIMED_OUT, pb.CONTINUE_STATUS_LOST


@pytest.mark.parametrize(
    ("status", "attempt", "error", "code", "word", "text", "code_there"),
    [
        (FAILED, 1, "bad gateway", "http_502", "failed", "bad gateway", "http_502"),
        (FAILED, 0, "refused: full", "", "failed", "refused: full", "refused"),
        (FAILED, 1, "", "", "failed", "failed", "failed"),
        (TIMED_OUT, 1, "", "", "timed_out", "timed out", "timed_out"),
        (LOST, 0, "", "", "lost", "lost", "lost"),
    ],
)
async def test_whatever_is_not_ok_says_why(
    status: int, attempt: int, error: str, code: str, word: str, text: str, code_there: str
) -> None:
    async with running() as hand:
        hand.order(1, status=status, attempt=attempt, error=error, error_code=code)
        (sent,) = await hand.nap_requests(1)
        assert sent.startswith(f"NAP sip:5.6.1.{EPOCH}.{word}@full SIP/2.0\r\n".encode())
        assert f"\r\nNap-Error: {text}\r\nNap-Code: {code_there}\r\n".encode() in sent


async def test_tasks_there_have_keys_of_their_own() -> None:
    async with running() as hand:
        for _ in range(50):
            hand.send(b"SN1 T %d 0 REPORT 4 0\nsame" % EPOCH)
        hand.send(b"SN1 T %d 0 REPORT 4 0\nlost" % (EPOCH - 1))  # of an earlier life
        hand.send(suspend())
        await until(lambda: len(hand.session.suspended) == 51)
        tasks = hand.session.suspended[:50]
        assert {task.data for task in tasks} == {b"same"}
        assert {(task.key.boot_epoch, task.key.nap_number) for task in tasks} == {(EPOCH, 0)}
        assert len({(task.key.transaction_index, task.key.transaction_label) for task in tasks}) == 50


@pytest.mark.parametrize(("result", "outcome"), [(200, APPLIED), (404, REJECTED)])
async def test_a_task_back(result: int, outcome: int) -> None:
    """Not asked for through this shim: another program's, or one from before the shim's restart."""
    async with running() as hand:
        hand.order(0, resume_route="REPORT", data=b"\xffdata")
        (sent,) = await hand.nap_requests(1)
        assert sent.startswith(b"NAP sip:5.6.0.%d.ok@task SIP/2.0\r\n" % EPOCH)
        assert b"\r\nNap-Route: REPORT\r\nNap-Data: /2RhdGE=\r\n" in sent
        hand.send(b"SN1 A %d %d 5.6.0.%d.ok" % (EPOCH, result, EPOCH))
        await until(lambda: hand.session.answers)
        assert hand.session.answers == [(key(0), outcome)]
        assert hand.bridge.unanswered == 0


async def test_a_task_that_was_not_let_pass_says_so() -> None:
    async with running() as hand:
        hand.order(0, resume_route="REPORT", data=b"x", status=pb.CONTINUE_STATUS_FAILED, error="refused: full")
        (sent,) = await hand.nap_requests(1)
        assert sent.startswith(b"NAP sip:5.6.0.%d.failed@task SIP/2.0\r\n" % EPOCH)
        assert b"\r\nNap-Data: eA==\r\nNap-Error: refused: full\r\nNap-Code: refused\r\n" in sent


async def test_continues_that_come_together_leave_together() -> None:
    """As many at a time as the proxy's script has said that it takes; each is answered for by itself."""
    async with running() as hand:
        for number in range(5):
            hand.send(suspend().replace(b" 5 6 1 ", b" %d 6 1 " % number, 1))
        hand.send(b"SN1 A %d 200 open.7.3" % EPOCH)
        await until(lambda: len(hand.session.suspended) == 5)
        await until(lambda: hand.bridge._most_in_batch == 3)
        hand.session.hand_on([order(index=number) for number in range(5)])
        first, second = await hand.nap_requests(2)
        assert first.startswith(b"NAP sip:0.6.1.%d.ok/1.6.1/2.6.1@batch SIP/2.0\r\n" % EPOCH)
        assert second.startswith(b"NAP sip:3.6.1.%d.ok/4.6.1@batch SIP/2.0\r\n" % EPOCH)
        hand.send(b"SN1 B %d 200 481 404 0.6.1.%d.ok/1.6.1/2.6.1" % (EPOCH, EPOCH))
        await until(lambda: len(hand.session.answers) == 3)
        assert hand.session.answers == [
            (key(index=0), APPLIED),
            (key(index=1), GONE),
            (key(index=2), REJECTED),
        ]
        assert hand.bridge.unanswered == 2
