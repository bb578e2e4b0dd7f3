"""Several naps ended by one NAP request: each has its own fate, and none has that of another."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sipnap.client.keys import SuspensionKey
from sipnap.shim.kamailio import datagram, nap_request
from sipnap.v1 import suspension_pb2 as pb
from tests.acceptance.caller import Call, Caller
from tests.acceptance.hand_shim import HandShim
from tests.acceptance.proxy import Proxy
from tests.acceptance.sipp import Callers
from tests.acceptance.stack import Stack
from tests.support.processes import wait_until

BALLAST = b"X-Ballast: %s\r\n" % (b"x" * 25_000)


@pytest.fixture(scope="module", params=["native", "kemi"])
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    defines = {"BATCHES_KEMI": ""} if request.param == "kemi" else {}
    with Proxy(
        tmp_path_factory.mktemp("proxy"), script="batches.cfg", kemi_script="batches_script.py", defines=defines
    ) as running:
        yield running


@pytest.fixture
def shim(proxy: Proxy) -> Iterator[HandShim]:
    with closing(HandShim(proxy)) as hand:
        hand.open_gate()
        yield hand


@pytest.fixture
def caller(proxy: Proxy) -> Iterator[Caller]:
    with Caller(proxy.ports.sip) as ready:
        yield ready


def batch_user(names: list[bytes]) -> bytes:
    """As `nap_request.plain_user`, but of names: some are tried that no key has."""
    return b"/".join([names[0] + b".ok", *(name.rpartition(b".")[0] for name in names[1:])])


def batch_request(names: list[bytes]) -> bytes:
    return nap_request.plain_request(batch_user(names))


class Napping:
    """Calls that nap, in the hand of the test."""

    def __init__(self, shim: HandShim, caller: Caller) -> None:
        self._shim = shim
        self._caller = caller
        self.calls: list[Call] = []
        self.names: list[bytes] = []

    def add(self, user: str = "plain", headers: bytes = b"") -> Call:
        call = self._caller.invite(user, nap_ms=60_000, headers=headers)
        self.calls.append(call)
        self.names.append(nap_request.nap_name(self._shim.suspended()))
        return call

    def resume(self) -> list[int]:
        """All of them with one request; returns the results."""
        self._shim.send(batch_request(self.names))
        return self.answers()

    def answers(self) -> list[int]:
        answers = self._shim.receive()
        assert isinstance(answers, datagram.Answers), answers
        assert answers.user == batch_user(self.names)
        return answers.results


@pytest.fixture
def napping(shim: HandShim, caller: Caller) -> Napping:
    return Napping(shim, caller)


def test_each_is_resumed_once(napping: Napping) -> None:
    for _ in range(8):
        napping.add()
    assert napping.resume() == [200] * 8
    for call in napping.calls:
        reply = call.final()
        assert (reply.code, reply.header("X-Status"), reply.header("X-Error")) == (404, "ok", "none")
    assert napping.resume() == [481] * 8, "a repetition finds nothing"


def test_mixed_fates(napping: Napping, shim: HandShim) -> None:
    exits, cancelled, again = napping.add("exit"), napping.add(), napping.add("again")
    drops, errs = napping.add("drop"), napping.add("error")
    refused, heavy, last = napping.add("refused"), napping.add("heavy", BALLAST), napping.add()
    unknown = napping.names[7].replace(b".", b"9.", 1)
    napping.names.insert(7, unknown)
    cancelled.cancel()
    assert isinstance(shim.receive(), datagram.Cancel)
    assert cancelled.final().code == 487

    shim.send(batch_request(napping.names))
    second = shim.suspended()
    assert second.nap_number == 2, "it naps again before the others are resumed"
    assert napping.answers() == [200, 481, 200, 200, 200, 200, 200, 481, 200]

    for call in (exits, drops, refused, last):
        reply = call.final()
        assert (reply.code, reply.header("X-Status"), reply.header("X-Error")) == (404, "ok", "none")
    assert errs.final().code == 500, "a resumed route that answers nothing"
    reply = heavy.final()
    assert (reply.header("X-Status"), reply.header("X-Error")) == ("failed", "the proxy could not send it to the shim")

    napping.names[:] = [nap_request.nap_name(second), napping.names[2]]
    assert napping.resume() == [200, 481], "the second nap ends, the first has ended before"
    assert again.final().header("X-Status") == "ok"


def test_an_earlier_nap_s_name_does_not_end_a_later_nap(napping: Napping, shim: HandShim) -> None:
    again = napping.add("again")
    plain = napping.add()
    shim.send(batch_request(napping.names))
    second = shim.suspended()
    assert napping.answers() == [200, 200]
    assert plain.final().header("X-Status") == "ok"
    other = napping.add()
    del napping.names[1]
    for results in ([481, 200], [481, 481]):
        assert napping.resume() == results
    assert other.final().header("X-Status") == "ok"
    assert shim.resume(second) == 200, "it still naps"
    assert again.final().header("X-Status") == "ok"


@pytest.mark.parametrize("number", [0, 2])
def test_another_nap_number_does_not_end_the_first_nap(napping: Napping, shim: HandShim, number: int) -> None:
    call = napping.add()
    index, label, _, epoch = napping.names[0].split(b".")
    other = b"%s.%s.%d.%s" % (index, label, number, epoch)
    assert shim.ask(nap_request.plain_request(other + b".ok")).result == 481
    assert shim.ask(nap_request.plain_request(napping.names[0] + b".ok")).result == 200, "it still naps"
    assert call.final().header("X-Status") == "ok"


def test_the_script_s_own_suspensions(
    proxy: Proxy, shim: HandShim, caller: Caller, request: pytest.FixtureRequest
) -> None:
    """Any program may end them, with nap number 0 and a route; nothing of sipnap's naps is in their way."""
    is_kemi = request.node.callspec.params["proxy"] == "kemi"
    first, second = ("ksr_resume", "ksr_answer") if is_kemi else ("RESUME", "ANSWER")
    boot_epoch = shim.open_gate()
    call = caller.invite("own")
    found = proxy.wait_output(r"acceptance: own ([0-9]+) ([0-9]+)", 3)
    own = SuspensionKey("", boot_epoch, int(found[1]), int(found[2]), 0)
    assert shim.resume(own, route=first) == 200
    assert shim.resume(own, route=second) == 200, "it had suspended itself again"
    assert call.final().header("X-Status") == "ok"


def test_one_that_is_relayed_is_no_matter_of_the_others(napping: Napping) -> None:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as called:
        called.bind(("127.0.0.1", 0))
        called.settimeout(3)
        before = napping.add()
        relayed = napping.add("relay", b"X-Port: %d\r\n" % called.getsockname()[1])
        after = napping.add()
        assert napping.resume() == [200, 200, 200]
        for call in (before, after):
            assert call.final().header("X-Asked") == "plain"
        invite, source = called.recvfrom(65536)
        assert invite.startswith(b"INVITE sip:relay@")
        head = invite.partition(b"\r\n\r\n")[0].split(b"\r\n")
        kept = [line for line in head[1:] if line.split(b":")[0] in (b"Via", b"From", b"To", b"Call-ID", b"CSeq")]
        called.sendto(b"\r\n".join([b"SIP/2.0 486 Busy", *kept, b"Content-Length: 0\r\n\r\n"]), source)
        assert relayed.final().code == 486


def test_another_life_of_the_proxy(napping: Napping, shim: HandShim) -> None:
    call, other = napping.add(), napping.add()
    name, _, epoch = napping.names[0].rpartition(b".")
    answer = shim.ask(batch_request([b"%s.%d" % (name, int(epoch) - 1), napping.names[1]]))
    assert answer.result == 481, "for all of them"
    assert napping.resume() == [200, 200]
    assert [call.final().code, other.final().code] == [404, 404]


@pytest.mark.parametrize(
    "others", [b"", b"x", b"1.2", b"a.b.1", b"99999999999.1.1", b"..1", b"-1.-1.1", b"1.2.1.ok", b"$ru.$(hdr(X)).1"]
)
def test_malformed_names_touch_nothing(napping: Napping, shim: HandShim, others: bytes) -> None:
    """Some end the list; none resumes anything, or has what was said for the one before."""
    call, later = napping.add(), napping.add()
    request = batch_request([napping.names[0], b"MALFORMED.0"])
    shim.send(request.replace(b"MALFORMED", others))
    if others:
        answers = shim.receive()
        assert isinstance(answers, datagram.Answers)
        assert answers.results == [200, 481]
    else:
        # An empty name ends a native script's list: the shim believes nothing of such an answer.
        with contextlib.suppress(datagram.DatagramError):
            shim.receive()
    assert call.final().header("X-Status") == "ok"
    del napping.names[0]
    assert shim.ask(nap_request.plain_request(napping.names[0] + b".ok")).result == 200, "it was not touched"
    assert later.final().header("X-Status") == "ok"


def test_a_single_one_after_a_batch(napping: Napping, shim: HandShim) -> None:
    """The variables of a batch are the process's: what it leaves there is not found by the next request."""
    for _ in range(20):
        napping.add("heavy", BALLAST)
        napping.add()
        single = SuspensionKey("", *(int(word) for word in _key_words(napping.names.pop())))
        napping.add()
        assert napping.resume() == [200, 200]
        assert shim.resume(single) == 200
        for call, status in zip(napping.calls, ("failed", "ok", "ok"), strict=True):
            assert call.final().header("X-Status") == status
        napping.calls.clear()
        napping.names.clear()


def test_a_batch_after_one_with_values(napping: Napping, shim: HandShim) -> None:
    """Nor does a batch find what a fuller request has left there."""
    found = pb.NamedValue(name="found", value=pb.Value(text=b"yes"))
    for _ in range(20):
        full = napping.add()
        key = SuspensionKey("", *(int(word) for word in _key_words(napping.names.pop())))
        assert shim.resume(key, status=pb.CONTINUE_STATUS_FAILED, error="it did", values=[found]) == 200
        reply = full.final()
        assert (reply.header("X-Status"), reply.header("X-Error"), reply.header("X-Found")) == (
            "failed",
            "it did",
            "yes",
        )
        del napping.calls[:]
        napping.add()
        napping.add()
        assert napping.resume() == [200, 200]
        for call in napping.calls:
            reply = call.final()
            assert (reply.header("X-Status"), reply.header("X-Error"), reply.header("X-Found")) == ("ok", "none", "")
        napping.calls.clear()
        napping.names.clear()


def _key_words(name: bytes) -> tuple[bytes, ...]:
    index, label, nap_number, epoch = name.split(b".")
    return epoch, index, label if not label.startswith(b"-") else b"%d" % (int(label) + 2**32), nap_number


@pytest.mark.parametrize("engine", ["native", "kemi"])
def test_a_script_says_how_many_it_takes(tmp_path: Path, engine: str) -> None:
    defines: dict[str, int | str] = {"SIPNAP_BATCH": 3, **({"BATCHES_KEMI": ""} if engine == "kemi" else {})}
    with Proxy(tmp_path, script="batches.cfg", kemi_script="batches_script.py", defines=defines) as proxy:
        shim = HandShim(proxy)
        try:
            for number, is_open in enumerate((None, True, False)):
                answer = shim.ask(nap_request.gate_request(number, is_open=is_open))
                assert answer.user.endswith(b".%d.3" % number)
        finally:
            shim.close()


# With the shim and the sidecar


@pytest.fixture(scope="module", params=["native", "kemi"])
def batches(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    defines = {"BATCHES_KEMI": 1} if request.param == "kemi" else {}
    with Stack(
        tmp_path_factory.mktemp("batches"), script="batches.cfg", kemi_script="batches_script.py", defines=defines
    ) as running:
        yield running


def test_two_hundred_that_end_at_the_same_instant(batches: Stack) -> None:
    before = batches.counters()
    with Caller(batches.proxy.ports.sip) as caller:
        due = time.monotonic() + 2.0
        calls = [caller.invite(nap_ms=round((due - time.monotonic()) * 1000)) for _ in range(200)]
        for call in calls:
            reply = call.final()
            assert (reply.code, reply.header("X-Status")) == (404, "ok")
            assert reply.seconds >= due - 0.002, "not before its time"
            assert reply.seconds < due + 1.0
    wait_until(lambda: batches.counters().applied - before.applied == 200, 3, lambda: f"{batches.counters()}")
    assert batches.counters().gone == before.gone


def test_a_resumed_route_that_blocks(batches: Stack) -> None:
    """Those behind it in its batch are sent again alone, to another worker; each is resumed once and answered for."""
    before = batches.counters()
    with Caller(batches.proxy.ports.sip) as caller:
        due = time.monotonic() + 1.5
        calls = [
            caller.invite("slow" if number == 0 else "plain", nap_ms=round((due - time.monotonic()) * 1000))
            for number in range(8)
        ]
        for call in calls:
            reply = call.final()
            assert (reply.code, reply.header("X-Status")) == (404, "ok")
            assert reply.seconds < due + 1.5
    wait_until(lambda: batches.counters().applied - before.applied == 8, 3, lambda: f"{batches.counters()}")
    assert batches.counters().gone == before.gone


def bursts(rate: int, seconds: int) -> list[str]:
    """Naps of calls at a steady rate that all end at whole seconds."""
    return [str(400 + 1000 - round(number * 1000 / rate) % 1000) for number in range(rate * seconds)]


@pytest.mark.timeout(90)
def test_bursts_under_load(stack: Stack, tmp_path: Path) -> None:
    """300 calls/s, all of a second's due at once."""
    rate, seconds = 300, 6
    before = stack.counters()
    fields = bursts(rate, seconds)
    with Callers(
        tmp_path / "sipp", stack.proxy.address, scenario="resumed.xml", rate=rate, calls=len(fields), fields=fields
    ) as sipp:
        calls = sipp.result(seconds=60)
        assert (calls.successful, calls.failed) == (len(fields), 0), f"{calls}\n{sipp.errors()}"
    print(f"\n{rate} calls/s for {seconds} s, each second's due at once: {calls}")
    assert min(calls.late_ms) >= 0, f"some were early: {calls}"
    counters = stack.counters()
    assert counters.applied - before.applied == len(fields), f"not each was answered for: {counters}"
    assert "resumed twice" not in stack.proxy.output()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("script", ["native.cfg", "kemi.cfg"])
def test_shim_and_sidecar_are_killed_between_bursts(tmp_path: Path, script: str) -> None:
    """kill -9 at 300 calls/s, half a second before a burst: every call ends in its resume route, none twice."""
    rate, seconds = 300, 8
    fields = bursts(rate, seconds)
    journal = f"sqlite:{tmp_path}/journal.sqlite3"
    with (
        Stack(tmp_path, script=script, sidecar_flags=("--journal", journal)) as stack,
        Callers(
            tmp_path / "sipp", stack.proxy.address, scenario="resumed_or_refused.xml", rate=rate, calls=len(fields),
            fields=fields,
        ) as sipp,
    ):  # fmt: skip
        wait_until(lambda: stack.counters().applied > rate, 10, "calls come and go")
        stack.shim.kill()
        stack.restart_shim()
        stack.wait_gate(is_open=True)
        stack.sidecar.kill()
        stack.restart_sidecar()
        calls = sipp.result(60)
        assert (calls.successful, calls.failed) == (len(fields), 0), f"{calls}\n{sipp.errors()}"
        assert "resumed twice" not in stack.proxy.output()
        wait_until(lambda: not stack.held(), 70, "the sidecar holds nothing")
