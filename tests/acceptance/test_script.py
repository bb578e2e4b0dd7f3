"""A script's own failure routes, branch routes, timers, relays and dialogs work after the nap as without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.caller import Caller
from tests.acceptance.sipp import CalledParty, Callers
from tests.acceptance.stack import Stack
from tests.support.processes import wait_until


@pytest.mark.timeout(90)
def test_the_resumed_call_is_relayed_and_fails_over(stack: Stack, tmp_path: Path) -> None:
    """Armed before the nap: record route, dialog, branch route, failure route, a header. All are there after it."""
    calls = 20
    with (
        CalledParty(tmp_path / "first", scenario="busy.xml") as first,
        CalledParty(tmp_path / "second", scenario="answering.xml") as second,
        Callers(
            tmp_path / "callers",
            stack.proxy.address,
            scenario="relayed.xml",
            rate=20,
            calls=calls,
            nap_ms=(200, 800),
            keys=("-key", "first_port", str(first.port), "-key", "second_port", str(second.port)),
        ) as callers,
    ):
        result = callers.result(30)
        assert (result.successful, result.failed) == (calls, 0), f"{result}\n{callers.errors()}\n{stack.proxy.tail()}"
        # Dialogs do not get in each other's way: each is known, and ended by its BYE.
        wait_until(lambda: stack.proxy.rpc("dlg.stats_active")["all"] == 0, 10, "all dialogs are over")
        for called in (first, second):
            messages = called.messages()
            assert messages.count("X-Branch-Route: ran") == calls, "the branch route ran once for each branch"
            assert messages.count("X-Before-Nap: kept") == calls
        assert first.messages().count("SIP/2.0 486 Busy Here") == calls


def test_the_script_s_own_final_response_timer_comes_back(tmp_path: Path) -> None:
    """It was armed with 1.5 s before a nap of 3 s, and is what ends a relay to nobody after it."""
    with Stack(tmp_path) as stack, Caller(stack.proxy.ports.sip) as caller:
        call = caller.invite("timer", nap_ms=3000, headers=b"X-First-Port: 9\r\n")
        reply = call.final()
        assert reply.reason == "Timer Kept"
        assert 4.0 < reply.seconds - call.sent_seconds < 5.5

        # A script that names its failure route without saying how to arm it.
        assert caller.invite("unarmable").final().reason == "Refused At The Door"
        stack.proxy.wait_output(r"the script needs route\[SIPNAP_ARM_NOT_THERE\]", 2)

        # What does not fit into one datagram with its AVPs ends at once, and says so.
        call = caller.invite("heavy", nap_ms=5000, headers=b"X-Tenant: " + b"x" * 20_000 + b"\r\n")
        reply = call.final(2)
        assert (reply.header("X-Status"), reply.header("X-Error")) == (
            "failed",
            "the proxy could not send it to the shim",
        )


def test_a_nap_in_a_failure_route(tmp_path: Path) -> None:
    with Stack(tmp_path) as stack, Caller(stack.proxy.ports.sip) as caller:
        with CalledParty(tmp_path / "busy", scenario="busy.xml") as busy:
            header = f"X-First-Port: {busy.port}\r\n".encode()
            call = caller.invite("busy", nap_ms=600, headers=header)
            reply = call.final()
        assert (reply.reason, reply.header("X-Status")) == ("Resumed", "ok")
        assert reply.seconds - call.sent_seconds >= 0.6


def test_the_cheapest_nap(tmp_path: Path) -> None:
    """SIPNAP_MINIMAL: it naps and resumes as ever; the sidecar knows where it goes, and no more."""
    with Stack(tmp_path, defines={"SIPNAP_MINIMAL": 1}) as stack, Caller(stack.proxy.ports.sip) as caller:
        call, given_up = caller.invite(nap_ms=700), caller.invite(nap_ms=700)
        wait_until(lambda: len(stack.held()) == 2, 5, "both are held")
        state = stack.held()[0].suspension.state
        assert (bytes(state.request_uri[:4]), state.source_ip, state.call_id) == (b"sip:", "127.0.0.1", b"")
        given_up.cancel()
        assert given_up.final().code == 487
        reply = call.final()
        assert (reply.code, reply.header("X-Status")) == (404, "ok")
        wait_until(lambda: not stack.held(), 5, "the one that was given up is gone when its time comes")
