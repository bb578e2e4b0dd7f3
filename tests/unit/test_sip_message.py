"""Reading SIP requests from hostile bytes."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipnap.shim.sip.message import (
    MAX_HEADER_FIELDS,
    MalformedRequest,
    Request,
    Response,
    is_keepalive,
    is_response,
    parse_request,
    split_list,
    stateless_response,
    tag_of,
    user_of,
)

SOURCE = ("192.0.2.7", 40000)


def message(
    start: bytes = b"INVITE sip:bob@example.org SIP/2.0",
    via: bytes = b"SIP/2.0/UDP host.example:5070;branch=z9hG4bKa",
    from_: bytes = b"<sip:alice@example.org>;tag=f1",
    to: bytes = b"<sip:bob@example.org>",
    call_id: bytes = b"a84b4c76e66710",
    cseq: bytes = b"314159 INVITE",
    more: tuple[bytes, ...] = (),
    body: bytes = b"",
) -> bytes:
    lines = (start, b"Via: " + via, b"From: " + from_, b"To: " + to, b"Call-ID: " + call_id, b"CSeq: " + cseq, *more)
    return b"\r\n".join([*lines, b"", body])


def parse(datagram: bytes) -> Request:
    return parse_request(datagram, *SOURCE)


def refusal_of(datagram: bytes) -> Response | None:
    """What a malformed request is answered; None if it is served, or gets no answer."""
    try:
        parse(datagram)
    except MalformedRequest as error:
        return error.response
    return None


def test_a_request() -> None:
    request = parse(message(more=(b"Subject: lunch", b"Expires: 60"), body=b"hello"))
    assert (request.method, request.request_uri, request.cseq) == ("INVITE", b"sip:bob@example.org", 314159)
    assert (request.from_tag, request.to_tag, request.call_id) == (b"f1", b"", b"a84b4c76e66710")
    assert request.values("subject") == request.values("s") == [b"lunch"]
    assert request.expires_seconds == 60
    assert request.body == b"hello"
    assert (request.source_ip, request.source_port) == SOURCE


def test_compact_names() -> None:
    datagram = (
        b"OPTIONS sip:x SIP/2.0\r\nv: SIP/2.0/UDP h;branch=b\r\nf: <sip:a>;tag=1\r\nt: <sip:b>\r\ni: 7\r\n"
        b"CSeq: 1 OPTIONS\r\nl: 2\r\n\r\nabc"
    )
    request = parse(datagram)
    assert (request.call_id, request.values("From"), request.body) == (b"7", [b"<sip:a>;tag=1"], b"ab")


def test_folded_lines_become_one() -> None:
    request = parse(message(from_=b'"A\r\n   B\r\n\tC" <sip:a@b>;tag=x'))
    assert request.from_ == b'"A B C" <sip:a@b>;tag=x'


quoted_text = st.binary(max_size=60).map(
    lambda text: (
        b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\r", b"").replace(b"\n", b"") + b'"'
    )
)


@given(name=quoted_text, tag=st.from_regex(rb"[A-Za-z0-9.!%*_+`'~-]{1,20}\Z", fullmatch=True))
def test_display_names_are_kept_and_hide_nothing(name: bytes, tag: bytes) -> None:
    from_ = name + b" <sip:alice@example.org;tag=wrong>;x=1;tag=" + tag
    request = parse(message(from_=from_))
    assert request.from_ == from_
    assert request.from_tag == tag
    assert request.to == b"<sip:bob@example.org>"


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_malformed(datagram: bytes) -> None:
    refusal = refusal_of(datagram)
    assert refusal is None or refusal.host == SOURCE[0]


@given(st.integers(0, 200), st.binary(min_size=1, max_size=8))
def test_changed_requests_are_read_or_malformed(position: int, change: bytes) -> None:
    datagram = message()
    position %= len(datagram)
    refusal = refusal_of(datagram[:position] + change + datagram[position + len(change) :])
    if refusal is not None:
        assert refusal.datagram.startswith((b"SIP/2.0 400 ", b"SIP/2.0 505 "))
        assert refusal.host == SOURCE[0]
        assert 0 < refusal.port < 2**16


@pytest.mark.parametrize(
    ("via", "text", "port"),
    [
        (b"SIP/2.0/UDP h:5070;branch=b", b"SIP/2.0/UDP h:5070;branch=b;received=192.0.2.7", 5070),
        (b"SIP/2.0/UDP h;branch=b", b"SIP/2.0/UDP h;branch=b;received=192.0.2.7", 5060),
        (b"SIP/2.0/UDP 192.0.2.7:9;branch=b", b"SIP/2.0/UDP 192.0.2.7:9;branch=b", 9),
        (
            b"SIP/2.0/UDP 192.0.2.7:9;rport;branch=b",
            b"SIP/2.0/UDP 192.0.2.7:9;branch=b;received=192.0.2.7;rport=40000",
            40000,
        ),
        # Only the source address says where responses go.
        (b"SIP/2.0/UDP h:9;received=203.0.113.1;branch=b", b"SIP/2.0/UDP h:9;branch=b;received=192.0.2.7", 9),
        (
            b"SIP/2.0/UDP h:9;RPORT=53;Received=203.0.113.1;branch=b",
            b"SIP/2.0/UDP h:9;branch=b;received=192.0.2.7;rport=40000",
            40000,
        ),
        (b"SIP / 2.0 / UDP  h : 77 ;branch=b", b"SIP / 2.0 / UDP  h:77;branch=b;received=192.0.2.7", 77),
    ],
)
def test_the_top_via_leads_back_to_the_source(via: bytes, text: bytes, port: int) -> None:
    top = parse(message(via=via)).top_via
    assert (top.text, top.response_port, top.branch) == (text, port, b"b")


def test_several_vias_in_one_line_and_in_more() -> None:
    request = parse(message(via=b"SIP/2.0/UDP a;branch=1, SIP/2.0/UDP b;branch=2", more=(b"Via: SIP/2.0/TCP c",)))
    assert request.top_via.branch == b"1"
    assert request.other_vias == (b"SIP/2.0/UDP b;branch=2", b"SIP/2.0/TCP c")


@pytest.mark.parametrize(
    ("datagram", "answer"),
    [
        (message(start=b"INVITE sip:b SIP/3.0"), b"505 Version Not Supported"),
        (message(start=b"INVITE  sip:b SIP/2.0"), b"400 Bad Request Line"),
        (message(start=b"INVITE bob SIP/2.0"), b"400 Bad Request Line"),
        (message(cseq=b"1 OPTIONS"), b"400 Bad CSeq"),
        (message(cseq=b"2147483648 INVITE"), b"400 Bad CSeq"),
        (message(cseq=b"-1 INVITE"), b"400 Bad CSeq"),
        (message(call_id=b""), b"400 Bad Call-ID"),
        (message(more=(b"From: <sip:other>",)), b"400 Repeated From"),
        (message(more=(b"i: 2",)), b"400 Repeated Call-Id"),
        (message(more=(b"Content-Length: 9",), body=b"short"), b"400 Bad Content-Length"),
        (message(more=(b"Content-Length: -1",)), b"400 Bad Content-Length"),
    ],
)
def test_malformed_requests_that_can_be_answered(datagram: bytes, answer: bytes) -> None:
    with pytest.raises(MalformedRequest) as caught:
        parse(datagram)
    assert caught.value.response is not None
    assert caught.value.response.datagram.startswith(b"SIP/2.0 " + answer + b"\r\n")
    assert b"\r\nTo: <sip:bob@example.org>;tag=" in caught.value.response.datagram


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"INVITE sip:bob@example.org SIP/2.0\r\n\r\n",
        message(via=b"nonsense"),
        message(via=b"SIP/2.0/UDP h:0;branch=b"),
        message(via=b"SIP/2.0/UDP h:65536;branch=b"),
        message(via=b"SIP/2.0/UDP h:99999999;branch=b"),
        message(via=b","),
        message().replace(b"\r\nTo:", b"\r\nTu:"),
        message(more=(b"no colon",)),
        message(more=(b"bad name: x",)),
        message(more=(b": x",)),
        message(more=(b"X: y",) * MAX_HEADER_FIELDS),
        message().replace(b"\r\n", b"\n"),
    ],
)
def test_malformed_requests_without_an_answer(datagram: bytes) -> None:
    with pytest.raises(MalformedRequest) as caught:
        parse(datagram)
    assert caught.value.response is None


def test_a_malformed_ack_gets_no_response() -> None:
    with pytest.raises(MalformedRequest) as caught:
        parse(message(start=b"ACK bob SIP/2.0", cseq=b"1 ACK"))
    assert caught.value.response is None


@pytest.mark.parametrize(
    "value",
    [
        b'"\\' * 30_000,
        b'\\"' * 30_000,
        b'"' * 60_001,
        b"," * 60_000,
        b'",' * 30_000,
        b"; tag" * 12_000,
        b" " * 30_000 + b";" * 30_000,
        b"<" * 30_000 + b">" * 30_000,
    ],
)
def test_no_value_takes_long(value: bytes) -> None:
    started = time.process_time()
    for datagram in (message(from_=value), message(via=value), message(to=value), message(cseq=value)):
        with pytest.raises(MalformedRequest):
            parse(datagram.replace(b"INVITE sip", b"BROKEN sip", 1))
    tag_of(value)
    split_list(value)
    assert time.process_time() - started < 1.0  # a few ms; quadratic work would take minutes


def test_stateless_responses_repeat_what_they_answer() -> None:
    request = parse(message(via=b"SIP/2.0/UDP h:9;branch=b", more=(b"Via: SIP/2.0/UDP two",)))
    response = stateless_response(request, 503, "Service Unavailable")
    assert (response.host, response.port) == ("192.0.2.7", 9)
    assert response.datagram.startswith(
        b"SIP/2.0 503 Service Unavailable\r\n"
        b"Via: SIP/2.0/UDP h:9;branch=b;received=192.0.2.7\r\nVia: SIP/2.0/UDP two\r\n"
        b"From: <sip:alice@example.org>;tag=f1\r\nTo: <sip:bob@example.org>;tag="
    )
    assert stateless_response(request, 503, "Service Unavailable") == response  # also its tag: nothing is remembered


def test_an_existing_to_tag_stays() -> None:
    request = parse(message(to=b"<sip:bob@example.org>;tag=t9"))
    assert b"\r\nTo: <sip:bob@example.org>;tag=t9\r\n" in stateless_response(request, 481, "Gone").datagram


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (b"a", [b"a"]),
        (b"a, b ,c", [b"a", b"b", b"c"]),
        (b'"a,b" <c>, d', [b'"a,b" <c>', b"d"]),
        (b'"a\\",b", c', [b'"a\\",b"', b"c"]),
        (b",, a ,", [b"a"]),
    ],
)
def test_split_list(value: bytes, parts: list[bytes]) -> None:
    assert split_list(value) == parts


@pytest.mark.parametrize(
    ("uri", "user"),
    [
        (b"sip:bob@example.org", b"bob"),
        (b"sips:bob;x=1:secret@example.org;transport=udp", b"bob"),
        (b"sip:bob:secret@example.org", b"bob"),
        (b"sip:example.org", b""),
        (b"tel:+4930", b""),
    ],
)
def test_user_of(uri: bytes, user: bytes) -> None:
    assert user_of(uri) == user


@pytest.mark.parametrize("expires", [b"0", b"-1", b"abc", b"", b"99999999999"])
def test_expires_that_say_nothing(expires: bytes) -> None:
    assert parse(message(more=(b"Expires: " + expires,))).expires_seconds is None


def test_what_is_no_request() -> None:
    assert is_keepalive(b"\r\n\r\n")
    assert is_keepalive(b"\0")
    assert is_keepalive(b"")
    assert not is_keepalive(message())
    assert is_response(b"SIP/2.0 200 OK\r\n\r\n")
    assert not is_response(message())
