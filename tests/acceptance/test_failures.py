"""What dies, and what the caller sees: its answer, each time."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from sipnap.client import sync
from tests.acceptance.caller import Caller
from tests.acceptance.proxy import Ports, Proxy
from tests.acceptance.sipp import Callers
from tests.acceptance.stack import Shim, Stack
from tests.support.processes import Sidecar, wait_until


def test_the_sidecar_stops(tmp_path: Path) -> None:
    """The next call is refused at the door; those that nap come back through the backstop as lost, none as 408."""
    with Stack(tmp_path) as stack, Caller(stack.proxy.ports.sip) as caller:
        napping = [caller.invite(nap_ms=2000) for _ in range(20)]
        wait_until(lambda: len(stack.held()) == len(napping), 5, "all are held")
        stack.sidecar.kill()
        stack.wait_gate(is_open=False, seconds=3)
        refused = caller.invite(nap_ms=1000)
        assert refused.reply(1).reason == "Refused At The Door"
        for call in napping:
            reply = call.final(6)
            assert (reply.code, reply.header("X-Status")) == (404, "lost")
            assert 2.0 <= reply.seconds - call.sent_seconds < 4.0

        stack.restart_sidecar()
        stack.wait_gate(is_open=True)
        assert caller.invite(nap_ms=200).final().header("X-Status") == "ok"


def test_the_sidecar_is_killed_and_comes_back_in_time(tmp_path: Path) -> None:
    """The shim submits again what is unanswered: nobody notices."""
    with Stack(tmp_path) as stack, Caller(stack.proxy.ports.sip) as caller:
        call = caller.invite(nap_ms=4000)
        stack.held_for(call)
        stack.sidecar.kill()
        stack.restart_sidecar()
        reply = call.final(8)
        assert reply.header("X-Status") == "ok"
        assert 4.0 <= reply.seconds - call.sent_seconds < 5.0


@pytest.mark.timeout(120)
def test_the_shim_is_killed_under_load(tmp_path: Path) -> None:
    """kill -9 at 300 calls/s, back after 1 s: every call ends in its resume route."""
    rate, seconds = 300, 8
    with (
        Stack(tmp_path) as stack,
        Callers(
            tmp_path / "sipp", stack.proxy.address, scenario="resumed_or_refused.xml", rate=rate, calls=rate * seconds
        ) as sipp,
    ):
        wait_until(lambda: stack.counters().applied > rate, 10, "calls come and go")
        stack.shim.kill()
        killed_seconds = time.monotonic()
        wait_until(lambda: time.monotonic() - killed_seconds >= 1, 2, "one second")
        stack.restart_shim()
        calls = sipp.result(60)
        assert (calls.successful, calls.failed) == (rate * seconds, 0), f"{calls}\n{sipp.errors()}"
        messages = (tmp_path / "sipp" / "messages.log").read_text()
        lost, ok, refused = (messages.count(text) for text in ("X-Status: lost", "X-Status: ok", "SIP/2.0 503 "))
        print(f"\nshim killed for 1 s at {rate} calls/s: {ok} ok, {lost} lost, {refused} refused at the door; {calls}")
        assert refused == 0, "one second is less than the gate stays open"
        assert ok + lost == rate * seconds
        assert ok > lost
        wait_until(lambda: not stack.held(), 70, "the sidecar holds nothing")


def test_the_proxy_is_restarted(tmp_path: Path) -> None:
    """Its transactions are gone: the sidecar forgets them, and the new life naps as the old one did."""
    with Sidecar() as sidecar, Proxy(tmp_path / "one") as first, Shim(first.ports, sidecar.target) as shim:
        shim.wait_output("gate open")
        with Caller(first.ports.sip) as caller:
            caller.invite(nap_ms=60_000)
            with sync.Client(sidecar.target) as client:
                wait_until(lambda: list(client.list()), 5, "the call naps")
        first_epoch = shim.wait_output("proxy found .*boot_epoch=([0-9]+)")[1]
        first.kill()
        shim.wait_output("proxy lost", 8)
        wait_until(lambda: time.time() > int(first_epoch) + 1, 3, "the boot epoch, in seconds, is another one")
        with Proxy(tmp_path / "two", ports=first.ports) as second, Caller(second.ports.sip) as caller:
            shim.wait_output("proxy restarted .*forgotten=1", 8)

            def naps() -> bool:
                reply = caller.invite(nap_ms=100).final()
                return reply.header("X-Status") == "ok"

            wait_until(naps, 8, lambda: f"the new life naps\n{second.tail()}\n{shim.tail()}")


def test_started_in_any_order(tmp_path: Path) -> None:
    """Shim first, without anybody to talk to; then the proxy, then the sidecar."""
    ports = Ports()
    sidecar_port = Ports().sip
    with Shim(ports, f"127.0.0.1:{sidecar_port}") as shim, Proxy(tmp_path / "proxy", ports=ports) as proxy:
        shim.wait_output("proxy found")
        with Caller(proxy.ports.sip) as caller:
            assert caller.invite().final().reason == "Refused At The Door"
            with Sidecar(port=sidecar_port):
                shim.wait_output("gate open")
                wait_until(lambda: caller.invite(nap_ms=100).final().code == 404, 5, "requests nap")


def test_the_shim_stops_in_good_order(tmp_path: Path) -> None:
    """SIGTERM: the gate shuts at once, the exit code is 0; what still naps is continued by the next shim."""
    with Stack(tmp_path) as stack, Caller(stack.proxy.ports.sip) as caller:
        call = caller.invite(nap_ms=2500)
        stack.held_for(call)
        stack.shim.signal(signal.SIGTERM)
        assert stack.shim.wait(5) == 0
        assert caller.invite(nap_ms=1000).final().reason == "Refused At The Door"
        stack.restart_shim()
        reply = call.final(5)
        assert reply.header("X-Status") == "ok"


def test_a_stuck_shim_does_not_stop_the_proxy(tmp_path: Path) -> None:
    """SIGSTOP: naps end as lost, then the gate shuts by itself, and the proxy answers throughout."""
    with Stack(tmp_path) as stack, Caller(stack.proxy.ports.sip) as caller:
        stack.shim.signal(signal.SIGSTOP)
        calls = [caller.invite(nap_ms=500) for _ in range(50)]
        assert stack.proxy.answers_options()
        assert calls[-1].final(5).header("X-Status") == "lost"
        stack.wait_gate(is_open=False, seconds=6)
        assert caller.invite(nap_ms=500).final(1).reason == "Refused At The Door"
        stack.shim.signal(signal.SIGCONT)
        stack.wait_gate(is_open=True)
        assert caller.invite(nap_ms=100).final().header("X-Status") == "ok"
        assert "gate shut" not in stack.shim.tail(), "it was stopped itself: that was no silence of the sidecar's"
