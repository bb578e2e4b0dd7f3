"""What the proxy makes of NAP requests, with this test in the place of the shim."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sipnap.client.keys import key_of
from sipnap.client.request_head import read_head
from sipnap.shim.kamailio import datagram, nap_request
from sipnap.shim.kamailio.nap import Nap
from sipnap.v1 import suspension_pb2 as pb
from tests.acceptance.caller import Caller
from tests.acceptance.hand_shim import HandShim
from tests.acceptance.proxy import Proxy
from tests.support.processes import wait_until


@pytest.fixture(scope="module", params=["native.cfg", "kemi.cfg"])
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with Proxy(tmp_path_factory.mktemp("proxy"), script=request.param) as running:
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


def test_applied_once(shim: HandShim, caller: Caller) -> None:
    call = caller.invite(nap_ms=60_000)
    key = shim.suspended()
    assert shim.resume(key) == 200
    assert call.final().header("X-Status") == "ok"
    assert shim.resume(key) == 481, "a repetition finds nothing"


def test_status_and_error_reach_the_script(shim: HandShim, caller: Caller) -> None:
    call = caller.invite(nap_ms=60_000)
    error = 'no\r\nX-Injected: "yes", $ru %0d caf\xe9'
    assert shim.resume(shim.suspended(), status=pb.CONTINUE_STATUS_TIMED_OUT, error=error) == 200
    reply = call.final()
    assert reply.header("X-Status") == "timed_out"
    assert reply.header("X-Error") == 'no X-Injected: "yes", $ru %0d caf\xe9'
    assert reply.header("X-Injected") == ""


def test_an_unknown_route_ends_the_nap_as_failed(shim: HandShim, caller: Caller) -> None:
    call = caller.invite(nap_ms=60_000)
    assert shim.resume(shim.suspended(), route="NOT_THERE") == 404
    reply = call.final()
    assert (reply.header("X-Status"), reply.header("X-Error")) == ("failed", "no such route: NOT_THERE")


def test_an_earlier_nap_s_request_does_not_end_a_later_nap(shim: HandShim, caller: Caller) -> None:
    call = caller.invite("twice", nap_ms=60_000, headers=b"X-Second-Ms: 60000\r\n")
    first = shim.suspended()
    name = nap_request.nap_name(first)
    shim.send(nap_request.continue_request(name, pb.CONTINUE_STATUS_OK))
    second, answer = sorted((shim.receive(), shim.receive()), key=lambda m: isinstance(m, datagram.Answer))
    assert isinstance(answer, datagram.Answer)
    assert answer.result == 200
    assert isinstance(second, Nap)
    assert second.suspension.key.nap_number == 2
    for _ in range(3):
        assert shim.resume(first) == 481
    assert shim.resume(key_of(second.suspension.key)) == 200
    assert call.final().reason == "Resumed Twice"


def test_a_request_for_another_life_of_the_proxy(shim: HandShim, caller: Caller) -> None:
    call = caller.invite(nap_ms=60_000)
    key = shim.suspended()
    assert shim.resume(key._replace(boot_epoch=key.boot_epoch - 1)) == 481
    assert shim.resume(key) == 200
    call.final()


@pytest.mark.parametrize(
    "user",
    [
        b"x",
        b"1.2",
        b"1.2.1.EPOCH.ok",
        b"a.b.1.EPOCH.ok",
        b"99999999999.1.1.EPOCH.ok",
        b"..1.EPOCH.ok",
        b"-1.-1.1.EPOCH.ok",
    ],
)
def test_malformed_names_touch_nothing(shim: HandShim, caller: Caller, user: bytes) -> None:
    call = caller.invite(nap_ms=60_000)
    key = shim.suspended()
    request = nap_request.continue_request(nap_request.nap_name(key), 1)
    whole_user = user.replace(b"EPOCH", b"%d" % key.boot_epoch)
    malformed = request.replace(nap_request.nap_name(key) + b".ok", whole_user)
    assert malformed != request
    assert shim.ask(malformed).result == 481
    assert shim.resume(key) == 200
    call.final()


def test_strangers_are_not_heard(proxy: Proxy, shim: HandShim, caller: Caller) -> None:
    call = caller.invite(nap_ms=60_000)
    key = shim.suspended()
    stranger = HandShim(proxy, port=0)
    try:
        for request in (
            nap_request.continue_request(nap_request.nap_name(key), 1),
            nap_request.gate_request(7, is_open=False),
            call.request,
            call.derived(b"CANCEL"),
        ):
            stranger.send(request)
        assert stranger.is_silent()
    finally:
        stranger.close()
    assert shim.is_silent(0.1)
    assert shim.resume(key) == 200, "it still waits"
    assert call.final().header("X-Status") == "ok"
    second = caller.invite(nap_ms=60_000)
    shim.resume(shim.suspended())
    assert second.final().header("X-Status") == "ok", "the gate is still open"


def test_nobody_continues_it(shim: HandShim, caller: Caller) -> None:
    """The backstop: not before the time, at most about the margin of 1 s after it, and never as 408."""
    call = caller.invite(nap_ms=1500)
    key = shim.suspended()
    reply = call.final()
    assert (reply.code, reply.header("X-Status"), reply.header("X-Error")) == (404, "lost", "no continue came in time")
    assert 1.5 <= reply.seconds - call.sent_seconds < 3.5
    assert shim.resume(key) == 481


def test_a_lost_nap_and_a_second_one(shim: HandShim, caller: Caller) -> None:
    call = caller.invite("twice", nap_ms=300, headers=b"X-Second-Ms: 60000\r\n")
    first, second = shim.suspended(), shim.suspended()
    assert second.nap_number == 2
    assert shim.resume(first) == 481, "it comes too late, and must not end the second"
    assert shim.resume(second) == 200
    assert call.final().header("X-Status") == "lost ok"


def test_cancel_datagram(shim: HandShim, caller: Caller) -> None:
    call = caller.invite(nap_ms=60_000)
    message = shim.receive()
    assert isinstance(message, Nap)
    call.cancel()
    cancel = shim.receive()
    assert isinstance(cancel, datagram.Cancel)
    assert cancel.request == read_head(message.suspension.state.head).name
    assert call.final(2).code == 487
    assert shim.resume(key_of(message.suspension.key)) == 481


def test_the_gate(proxy: Proxy, shim: HandShim, caller: Caller) -> None:
    shim.ask(nap_request.gate_request(2, is_open=False))
    call = caller.invite()
    assert call.reply(2).reason == "Refused At The Door"
    shim.open_gate()
    second = caller.invite(nap_ms=60_000)
    shim.resume(shim.suspended())
    assert second.final().header("X-Status") == "ok"

    # Without a heartbeat it shuts by itself, and the log says so once.
    def is_refused() -> bool:
        probe = caller.invite(nap_ms=60_000)
        if probe.reply(2).code == 503:
            return True
        shim.resume(shim.suspended())
        probe.final()
        time.sleep(0.2)
        return False

    wait_until(is_refused, 6, "the gate shuts by itself")
    for _ in range(3):
        assert caller.invite().reply(2).reason == "Refused At The Door"
    assert proxy.output().count("no heartbeat from the shim") == 1


@pytest.mark.parametrize(("defines", "expected"), [({}, 4), ({"SIPNAP_WORKERS": 2}, 2), ({"SIPNAP_WORKERS": 5}, 5)])
def test_processes_that_resume(tmp_path: Path, defines: dict[str, int | str], expected: int) -> None:
    with Proxy(tmp_path, defines=defines) as proxy:
        processes = [line["DSC"] for line in proxy.rpc("core.psx")]
        assert sum("receiver" in each and each.endswith(f":{proxy.ports.nap}") for each in processes) == expected
        others = sum("receiver" in each and each.endswith(f":{proxy.ports.sip}") for each in processes)
        assert others == 4, "the proxy's own sockets get as many as `children` says"
