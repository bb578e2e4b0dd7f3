"""Heads of SIP requests: everything that SIP may contain is read, and nothing of it changes anything else."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipnap.client.request_head import RequestHeadError, RequestName, complete, head_and_call_id, head_of, read_head
from sipnap.v1 import suspension_pb2 as pb

HEADERS = {
    b"Via": b"SIP/2.0/UDP 192.0.2.7:5062;branch=z9hG4bK-1",
    b"From": b'"Alice" <sip:alice@example.com>;tag=1',
    b"To": b"<sip:bob@example.com>",
    b"Call-ID": b"abc@192.0.2.7",
    b"CSeq": b"7 INVITE",
}


def message(changes: dict[bytes, bytes | None] | None = None, *, names: dict[bytes, bytes] | None = None) -> bytes:
    """An INVITE with some of its headers changed, left out (None) or renamed."""
    headers: dict[bytes, bytes | None] = {**HEADERS, **(changes or {})}
    lines = [b"INVITE sip:bob@example.com SIP/2.0"]
    lines += [(names or {}).get(name, name) + b": " + value for name, value in headers.items() if value is not None]
    return b"\r\n".join((*lines, b"Content-Length: 4", b"", b"v=0\n"))


def read(request: bytes) -> dict[str, bytes | int]:
    """All that is known of a request, as its head says it."""
    head = head_of(request)
    method, name, from_value, to_value = read_head(head)
    assert head_and_call_id(request) == (head, name.call_id), "the quick way to the same"
    return {"method": method, "from": from_value, "to": to_value, **name._asdict()}


def test_all_of_it() -> None:
    assert read(message()) == {
        "method": b"INVITE",
        "from": HEADERS[b"From"],
        "to": HEADERS[b"To"],
        "call_id": b"abc@192.0.2.7",
        "cseq": 7,
        "via_branch": b"z9hG4bK-1",
    }


def test_compact_names() -> None:
    names = {b"Via": b"v", b"From": b"f", b"To": b"T", b"Call-ID": b"i"}
    assert read(message(names=names)) == read(message())


@pytest.mark.parametrize(
    "names",
    [
        {b"From": b"FROM", b"Via": b"vIA", b"CSeq": b"cSEQ", b"Call-ID": b"cALL-iD"},
        {b"To": b"To \t", b"Via": b"v ", b"Call-ID": b"I\t"},
    ],
)
def test_case_and_blanks_of_names(names: dict[bytes, bytes]) -> None:
    assert read(message(names=names)) == read(message())


def test_bare_line_feeds() -> None:
    assert read(message().replace(b"\r\n", b"\n")) == read(message())


def test_empty_lines_before_the_request_line() -> None:
    assert read(b"\r\n\r\n" + message()) == read(message())


@pytest.mark.parametrize("name", [b"From", b"Call-ID"])
@pytest.mark.parametrize(
    ("folded", "value"),
    [
        (b'"a"\r\n <sip:a@b>', b'"a" <sip:a@b>'),
        (b'"a"\r\n\t  <sip:a@b>\r\n ;tag=1', b'"a" <sip:a@b> ;tag=1'),
        (b"\r\n <sip:a@b>  \t", b"<sip:a@b>"),
        (b"<sip:a@b>\n ;tag=1", b"<sip:a@b> ;tag=1"),
        (b"<sip:a@b>\r\n ", b"<sip:a@b>"),
        (b"<sip:a@b>\r\n i: x", b"<sip:a@b> i: x"),
    ],
)
def test_folded_lines(name: bytes, folded: bytes, value: bytes) -> None:
    assert read(message({name: folded}))["from" if name == b"From" else "call_id"] == value


@pytest.mark.parametrize(
    ("via", "branch"),
    [
        (b"SIP/2.0/UDP h;branch=z1", b"z1"),
        (b"SIP/2.0/UDP h ; BRANCH = z1 ; rport", b"z1"),
        (b"SIP/2.0/UDP h;branch=z1, SIP/2.0/UDP h2;branch=z2", b"z1"),
        (b"SIP/2.0/UDP h;branch=z1,SIP/2.0/UDP h2;branch=z2", b"z1"),
        (b"SIP/2.0/UDP h, SIP/2.0/UDP h2;branch=z2", b""),
        (b'SIP/2.0/UDP h;x="a,b;branch=no";branch=z1', b"z1"),
        (b'SIP/2.0/UDP h;x="a\\";branch=no";branch=z1', b"z1"),
        (b"SIP/2.0/UDP [2001:db8::1]:5060;received=192.0.2.1;branch=z1\r\n ;rport", b"z1"),
        (b"SIP/2.0/UDP h;branch=z1\r\nVia: SIP/2.0/UDP h2;branch=z2", b"z1"),
        (b"SIP/2.0/UDP h;mybranch=no;branch=z1", b"z1"),
        (b"SIP/2.0/UDP h", b""),
    ],
)
def test_branch_of_the_topmost_via(via: bytes, branch: bytes) -> None:
    assert read(message({b"Via": via}))["via_branch"] == branch


def test_headers_in_the_body_are_none() -> None:
    request = message({b"To": None})[: -len(b"v=0\n")] + b"To: <sip:body@h>\r\n\r\n"
    with pytest.raises(RequestHeadError, match="without To"):
        read_head(head_of(request))
    request = message({b"Call-ID": None})[: -len(b"v=0\n")] + b"Call-ID: body\r\n\r\n"
    assert head_and_call_id(request)[1] == b""


@pytest.mark.parametrize(
    ("request_", "head"),
    [
        (b"A b\r\nX: 1\r\n\r\nbody\n\nmore", b"A b\r\nX: 1\r\n"),
        (b"A b\nX: 1\n\nbody\r\n\r\nmore", b"A b\nX: 1\n"),
        (b"A b\r\nCall-ID: 1\r\n\r\nbody\n\nmore", b"A b\r\nCall-ID: 1\r\n"),
        (b"A b\ni: 1\n\nbody\r\n\r\nmore", b"A b\ni: 1\n"),
        (b"A b\r\ni: 1\r\nX: 1\r\n\nbody", b"A b\r\ni: 1\r\nX: 1\r\n"),
        (b"\r\n\nA b\r\n\r\n", b"A b\r\n"),
        (b"A b\r\nX: 1\r\n", b"A b\r\nX: 1\r\n"),
        (b"", b""),
        (b"\r\n\r\n", b""),
    ],
)
def test_a_head_ends_before_the_first_empty_line(request_: bytes, head: bytes) -> None:
    assert head_of(request_) == head
    assert head_of(head) == head


@pytest.mark.parametrize(
    ("header", "first", "second", "field"),
    [
        (b"To", b"<sip:one@h>", b"<sip:two@h>", "to"),
        (b"From", b"<sip:one@h>", b"<sip:two@h>", "from"),
        (b"Call-ID", b"one", b"two", "call_id"),
    ],
)
def test_the_first_of_each_counts(header: bytes, first: bytes, second: bytes, field: str) -> None:
    assert read(message({header: b"%s\r\n%s: %s" % (first, header, second)}))[field] == first


def test_headers_that_only_look_alike_are_others() -> None:
    alike = message({b"Call-ID": b"abc\r\nCall-Info: <sip:x>\r\nFrom-Port: 1\r\nTo-Be: 2\r\nVia-Y: 3\r\nCSeq2: x"})
    assert read(alike) == {**read(message()), "call_id": b"abc"}


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (b"", "no SIP request"),
        (b"\x00\x01\x02", "no SIP request"),
        (message({b"CSeq": b"x INVITE"}), "no CSeq"),
        (message({b"CSeq": b"2147483648 INVITE"}), "no CSeq"),
        (message({b"Via": None, b"From": None}), "without Via, From"),
    ],
)
def test_what_is_no_request_says_why(request_: bytes, why: str) -> None:
    with pytest.raises(RequestHeadError, match=why):
        read_head(head_of(request_))


HOSTILE_VALUE = st.binary(min_size=1, max_size=300).map(lambda value: value.translate(None, b"\r\n").strip(b" \t"))


@given(from_value=HOSTILE_VALUE, call_id=HOSTILE_VALUE, to_value=HOSTILE_VALUE)
def test_any_bytes_come_through(from_value: bytes, call_id: bytes, to_value: bytes) -> None:
    found = read(message({b"From": from_value, b"Call-ID": call_id, b"To": to_value}))
    assert (found["from"], found["call_id"], found["to"]) == (from_value, call_id, to_value)
    assert (found["cseq"], found["via_branch"]) == (7, b"z9hG4bK-1")


@given(
    st.binary(max_size=300)
    | st.lists(st.sampled_from([b"i", b"Call-ID", b":", b" ", b"\r\n", b"\n", b"x"])).map(b"".join)
)
def test_the_quick_way_to_the_call_id_finds_the_same(noise: bytes) -> None:
    """A CANCEL is read as a whole, a suspension only for its Call-ID: both have to find the same one."""
    request = b"INVITE sip:b@h SIP/2.0\r\n" + noise + b"\r\n" + message().partition(b"\r\n")[2]
    head, call_id = head_and_call_id(request)
    assert head == lines_before_the_empty_one(request)
    try:
        name = read_head(head).name
    except RequestHeadError:
        return
    assert call_id == name.call_id


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda rest: b"INVITE x SIP/2.0\r\n" + rest))
def test_garbage_is_an_error_and_nothing_else(garbage: bytes) -> None:
    head, _ = head_and_call_id(garbage)
    assert head == lines_before_the_empty_one(garbage)
    with suppress(RequestHeadError):
        read_head(head)


def lines_before_the_empty_one(request: bytes) -> bytes:
    head = b""
    *lines, rest = request.lstrip(b"\r\n").split(b"\n")
    for line in lines:
        if head and line in (b"", b"\r"):
            return head
        head += line + b"\n"
    return head + rest


# States that were shipped with a head


def is_complete(state: pb.TransactionState) -> bool:
    return (
        state.method == b"INVITE"
        and getattr(state, "from") == HEADERS[b"From"]
        and state.to == HEADERS[b"To"]
        and (state.call_id, state.cseq, state.via_branch) == RequestName(b"abc@192.0.2.7", 7, b"z9hG4bK-1")
    )


def test_a_state_is_completed_from_its_head() -> None:
    state = pb.TransactionState(head=head_of(message()), request_uri=b"sip:x", source_port=5)
    assert complete(state) is state
    assert is_complete(state)
    assert state.head == b"", "it has nothing more to say"
    assert (state.request_uri, state.source_port) == (b"sip:x", 5)
    before = state.SerializeToString()
    assert complete(state).SerializeToString() == before


def test_a_state_is_completed_from_the_raw_request() -> None:
    state = complete(pb.TransactionState(raw_request=message()))
    assert is_complete(state)
    assert state.raw_request == message(), "that was asked for"


def test_what_is_said_already_stays() -> None:
    """From a front end that reads requests itself."""
    state = pb.TransactionState(call_id=b"own", method=b"BYE", raw_request=message())
    complete(state)
    assert (state.call_id, state.method, state.cseq) == (b"own", b"BYE", 0)


@pytest.mark.parametrize("head", [b"", b"no SIP at all", head_of(message({b"To": None}))])
def test_what_is_no_request_stays_as_it_is(head: bytes) -> None:
    state = pb.TransactionState(head=head, request_uri=b"sip:x")
    before = state.SerializeToString()
    assert complete(state).SerializeToString() == before
