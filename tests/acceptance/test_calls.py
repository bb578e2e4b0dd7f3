"""Single calls, in both engines: what is shipped, what a CANCEL does, what is refused at the door."""

from __future__ import annotations

import time

import pytest

from sipnap.client.keys import key_of
from tests.acceptance.caller import Caller
from tests.acceptance.stack import Stack
from tests.support.processes import wait_until


def test_what_is_shipped(stack: Stack, caller: Caller) -> None:
    call = caller.invite(nap_ms=2000, headers=b'X-Tenant: t:1;"a" \xc3\xa9\r\n')
    suspension = stack.held_for(call).suspension
    state = suspension.state
    number = call.branch.rpartition(b"-")[2].lstrip(b"0")
    assert state.method == b"INVITE"
    assert state.request_uri == b"sip:nap@127.0.0.1"
    assert getattr(state, "from") == b"<sip:caller@127.0.0.1>;tag=" + number
    assert state.to == b"<sip:nap@127.0.0.1>"
    assert state.call_id == b"call-%d-%s" % (caller.port, number)
    assert (state.cseq, state.via_branch) == (1, call.branch)
    assert (state.source_ip, state.source_port) == ("127.0.0.1", caller.port)
    assert [(avp.name, avp.text) for avp in state.avps] == [("tenant", b't:1;"a" \xc3\xa9'), ("asked", b"nap")]
    assert 1.9 < suspension.delay.ToTimedelta().total_seconds() <= 2  # it started when the datagram came in
    assert suspension.key.nap_number == 1
    reply = call.final()
    assert (reply.code, reply.reason, reply.header("X-Status")) == (404, "Resumed", "ok")
    assert reply.seconds - call.sent_seconds >= 2


def test_a_cancel_ends_the_nap_everywhere(stack: Stack, caller: Caller) -> None:
    before = stack.counters()
    call = caller.invite(nap_ms=20_000)
    stack.held_for(call)
    cancelled_seconds = time.monotonic()
    call.cancel()
    assert call.reply(2, method=b"CANCEL").code == 200
    assert call.final(2).code == 487
    assert time.monotonic() - cancelled_seconds < 0.5
    wait_until(lambda: not stack.holds(call), cancelled_seconds + 0.1 - time.monotonic(), "the sidecar's entry is gone")
    counters = stack.counters()
    assert counters.cancelled == before.cancelled + 1
    assert counters.gone == before.gone, "the cancelled nap was continued all the same"


def test_a_call_cancelled_and_placed_again(stack: Stack, caller: Caller) -> None:
    """The CANCEL of one request must not touch a later one of the same Call-ID."""
    first = caller.invite(nap_ms=20_000, call_id=b"same-call-id")
    stack.held_for(first)
    first.cancel()
    assert first.final(2).code == 487
    second = caller.invite(nap_ms=300, call_id=b"same-call-id")
    assert second.final().header("X-Status") == "ok"


def test_two_naps_in_one_transaction(stack: Stack, caller: Caller) -> None:
    before = stack.counters().applied
    call = caller.invite("twice", nap_ms=300, headers=b"X-Second-Ms: 400\r\n")
    reply = call.final()
    assert (reply.reason, reply.header("X-Status")) == ("Resumed Twice", "ok ok")
    assert reply.seconds - call.sent_seconds >= 0.7
    wait_until(lambda: stack.counters().applied == before + 2, 3, "both naps are answered for")


def test_a_retransmitted_request_naps_once(stack: Stack, caller: Caller) -> None:
    before = stack.counters().accepted
    call = caller.invite(nap_ms=600)
    call.send()
    call.send()
    stack.held_for(call)
    call.send()
    assert call.final().header("X-Status") == "ok"
    assert stack.counters().accepted == before + 1


@pytest.mark.parametrize("method", [b"OPTIONS", b"MESSAGE", b"REGISTER"])
def test_other_methods_nap_too(stack: Stack, caller: Caller, method: bytes) -> None:
    reply = caller.invite(nap_ms=200, method=method).final()
    assert (reply.code, reply.header("X-Status")) == (404, "ok")


@pytest.mark.parametrize(
    ("user", "nap_ms", "why"),
    [
        ("nowhere", 1000, "nap refused: .*(NO_SUCH_ROUTE|ksr_route_that_is_not_there)"),
        ("armed", 1000, "a failure route is armed, and tm cannot say which"),
        ("nap", 0, "nap refused: 0 ms, and it has to be from 1 to 100000"),
        ("nap", 100_001, "nap refused: 100001 ms, and it has to be from 1 to 100000"),
    ],
)
def test_what_is_refused_before_it_is_suspended(stack: Stack, caller: Caller, user: str, nap_ms: int, why: str) -> None:
    before = stack.counters().accepted
    call = caller.invite(user, nap_ms=nap_ms)
    assert call.reply(2).reason == "Refused At The Door"  # its first reply: no 100, so no transaction
    stack.proxy.wait_output(why, 2)
    assert stack.counters().accepted == before


def test_a_nap_longer_than_tm_keeps_the_transaction(stack: Stack, caller: Caller) -> None:
    assert caller.invite(nap_ms=31_000, method=b"OPTIONS").final(2).reason == "Refused At The Door"
    stack.proxy.wait_output("31000 ms, and it has to be from 1 to 30000", 2)


HOSTILE = {
    "quotes": b'"Al\\"ice, \\\\ <sip:x@y>;tag=0" <sip:a%22b@127.0.0.1>;tag=1',
    "separators": b'"a,b;c:d%0d%0a|e=f{}[]~`$ru $(mb) $var(x) \'" <sip:us:er%3b;x=y&z@127.0.0.1>;tag=1',
    "bytes": b'"caf\xc3\xa9 \xff\xfe\x80" <sip:a@127.0.0.1>;tag=1',
    "tab": b'"a\tb" <sip:a@127.0.0.1>;tag=1',
    "sixty bytes": b'"' + b"x" * 60 + b'" <sip:a@127.0.0.1>;tag=1',
    "four kilobytes": b'"' + b'%,:\\"' * 800 + b'" <sip:' + b"u" * 4000 + b"@127.0.0.1>;tag=1",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_headers_arrive_intact(stack: Stack, caller: Caller, what: str) -> None:
    from_value = HOSTILE[what]
    call_id = b"%" + from_value.translate(None, b" \t@") + b"@h:1%0d" + caller.port.to_bytes(2).hex().encode()
    call = caller.invite(nap_ms=700, from_value=from_value, call_id=call_id)
    state = stack.held_for(call).suspension.state
    assert getattr(state, "from") == from_value
    assert state.call_id == call_id
    assert state.to == b"<sip:nap@127.0.0.1>"
    assert (state.method, state.cseq, state.request_uri) == (b"INVITE", 1, b"sip:nap@127.0.0.1")
    reply = call.final()
    assert (reply.reason, reply.header("X-Status"), reply.header("X-Asked")) == ("Resumed", "ok", "nap")


@pytest.mark.parametrize("what", ["quotes", "separators", "bytes", "four kilobytes"])
def test_a_hostile_call_can_be_cancelled(stack: Stack, caller: Caller, what: str) -> None:
    call = caller.invite(nap_ms=20_000, from_value=HOSTILE[what], call_id=b"c" + HOSTILE[what].translate(None, b" \t@"))
    stack.held_for(call)
    call.cancel()
    assert call.final(2).code == 487
    wait_until(lambda: not stack.holds(call), 2, "the sidecar's entry is gone")


def test_folded_lines_and_several_vias(stack: Stack, caller: Caller) -> None:
    via = b"".join(
        (
            b'v:  SIP/2.0/UDP 127.0.0.1:%d\r\n ;rport=%d;x="a;branch=no";' % (caller.port, caller.port),
            b"branch=BRANCH , SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKlow\r\n",
            b"Via: SIP/2.0/UDP 192.0.2.2;branch=z9hG4bKlower\r\n",
        )
    )
    from_value = b'"not, folded"\r\n\t  <sip:a@127.0.0.1>\r\n ;x="y;z"\r\n\t;tag=1'
    call = caller.invite(nap_ms=700, via=via, from_value=from_value)
    state = stack.held_for(call).suspension.state
    assert getattr(state, "from") == b'"not, folded" <sip:a@127.0.0.1> ;x="y;z" ;tag=1'
    assert state.via_branch == call.branch
    assert call.final().header("X-Status") == "ok"


@pytest.mark.parametrize("size", [4_000, 16_000, 31_000])
def test_large_requests_nap(stack: Stack, caller: Caller, size: int) -> None:
    reply = caller.invite(nap_ms=200, headers=b"X-Large: " + b"x" * size + b"\r\n").final()
    assert (reply.reason, reply.header("X-Status")) == ("Resumed", "ok")


def test_a_request_over_the_limit_is_refused_at_the_door(stack: Stack, caller: Caller) -> None:
    call = caller.invite(nap_ms=200, headers=b"X-Large: " + b"x" * 33_000 + b"\r\n")
    assert call.reply(2).reason == "Refused At The Door"
    stack.proxy.wait_output(r"nap refused: the request has 33[0-9]{3} bytes, and SIPNAP_MAX_BYTES is 32768", 2)


def test_another_program_names_a_route_that_is_not_there(stack: Stack, caller: Caller) -> None:
    before = stack.counters().rejected
    call = caller.invite(nap_ms=20_000)
    key = key_of(stack.held_for(call).suspension.key)
    stack.client.cancel(key)
    stack.client.suspend_route(key, "NOT_THERE", 0.1)
    reply = call.final(3)
    assert (reply.code, reply.header("X-Status")) == (404, "failed")
    assert reply.header("X-Error") == "no such route: NOT_THERE"
    wait_until(lambda: stack.counters().rejected == before + 1, 2, "the continue is rejected")


def test_another_program_changes_route_and_time(stack: Stack, caller: Caller) -> None:
    call = caller.invite(nap_ms=20_000, headers=b"X-Second-Ms: 100\r\n")
    key = key_of(stack.held_for(call).suspension.key)
    kemi = "KEMI" in stack.proxy.script_text
    stack.client.cancel(key)
    stack.client.suspend_route(key, "ksr_route_again" if kemi else "AGAIN", 0.1)
    reply = call.final(3)
    assert (reply.reason, reply.header("X-Status")) == ("Resumed Twice", "ok ok")
