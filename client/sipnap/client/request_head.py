"""Request line and header fields of a SIP request: the six things that a transaction's state tells of it.

A front end may ship the head as it is (`TransactionState.head`): most naps end without anybody having looked. Who does
look calls `complete` first.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import NamedTuple

from sipnap.v1 import suspension_pb2 as pb

# The request line, then those headers that are asked for, folded lines included (RFC 3261 7.3.1, compact forms 7.3.3).
# tm takes the first of each, so do we. A line ends with LF for Kamailio; the CR before it is usual.
_METHOD = re.compile(rb"\s*([!-~]+) ")
_HEADER = re.compile(rb"\n([VvFfTtIiCc][A-Za-z-]*)[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)")
_LF = 0x0A
_EMPTY_LINE = re.compile(rb"\n\r?\n")
_CALL_ID_OR_END = re.compile(rb"\n(?:(?:[Cc][Aa][Ll][Ll]-[Ii][Dd]|[Ii])[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)|\r?\n)")
_NAMES = {
    b"via": b"Via", b"v": b"Via", b"from": b"From", b"f": b"From", b"to": b"To", b"t": b"To",
    b"call-id": b"Call-ID", b"i": b"Call-ID", b"cseq": b"CSeq",
}  # fmt: skip
_FOLD = re.compile(rb"[ \t]*\r?\n[ \t]+")
_CSEQ = re.compile(rb"([0-9]{1,10})[ \t]+([!-~]+)\Z")
_BRANCH = re.compile(rb";[ \t]*branch[ \t]*=[ \t]*([^;, \t]*)", re.IGNORECASE)
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


class RequestHeadError(ValueError):
    """It is not the head of a SIP request."""


class RequestName(NamedTuple):
    """What a CANCEL shares with the INVITE that it cancels (RFC 3261 9.1)."""

    call_id: bytes
    """Value of Call-ID."""
    cseq: int
    """Number of CSeq, 0 to 2**31-1."""
    via_branch: bytes
    """Branch of the topmost Via; empty if it has none."""


class RequestHead(NamedTuple):
    """What is known of a request."""

    method: bytes
    """Such as INVITE."""
    name: RequestName
    """What a CANCEL would name it by."""
    from_value: bytes
    """Value of From, unfolded."""
    to_value: bytes
    """Value of To, unfolded."""


def head_of(message: bytes) -> bytes:
    """A SIP message without its body, the last line end included."""
    return head_and_call_id(message)[0]


def head_and_call_id(message: bytes) -> tuple[bytes, bytes]:
    """The head of a SIP message as `head_of` gives it, and the value of its first Call-ID; empty if it has none."""
    if message and message[0] in b"\r\n":
        message = message.lstrip(b"\r\n")  # RFC 3261 7.5: empty lines before the request are ignored
    # One pass: the Call-ID is in the head if it comes before the empty line.
    found = _CALL_ID_OR_END.search(message)
    if found is None:
        return message, b""
    call_id: bytes | None = found[1]
    if call_id is None:
        return message[: found.start() + 1], b""
    end = _EMPTY_LINE.search(message, found.end())
    return message[: end.start() + 1] if end else message, _unfolded(call_id)


def read_head(head: bytes) -> RequestHead:
    """What a head says.

    Raises:
        RequestHeadError: It lacks something that every request has (RFC 3261 8.1.1).
    """
    request_line = _METHOD.match(head)
    if request_line is None:
        raise RequestHeadError(f"no SIP request: it starts with {head[:40]!r}")
    # Backwards, so that the first of each stays. What is none of the five ends up under None.
    values = {_NAMES.get(name.lower()): value for name, value in reversed(_HEADER.findall(head))}
    try:
        via, from_value, to_value = values[b"Via"], values[b"From"], values[b"To"]
        call_id, cseq = values[b"Call-ID"], _unfolded(values[b"CSeq"])
    except KeyError:
        missing = [name.decode() for name in dict.fromkeys(_NAMES.values()) if name not in values]
        raise RequestHeadError(f"a SIP request without {', '.join(missing)}") from None
    sequence = _CSEQ.match(cseq)
    if sequence is None or (number := int(sequence[1])) >= 2**31:
        raise RequestHeadError(f"no CSeq (RFC 3261 20.16): {cseq[:40]!r}")
    name = RequestName(_unfolded(call_id), number, _branch_of(_unfolded(via)))
    return RequestHead(request_line[1], name, _unfolded(from_value), _unfolded(to_value))


def complete(state: pb.TransactionState) -> pb.TransactionState:
    """Fill in what a head or a raw request says, in place of the head. What is no request stays as it is."""
    head = state.head or head_of(state.raw_request)
    if head and not state.call_id:
        with suppress(RequestHeadError):
            state.method, request, from_value, state.to = read_head(head)
            setattr(state, "from", from_value)  # a word of Python, so no attribute in its syntax
            state.call_id, state.cseq, state.via_branch = request
            state.ClearField("head")
    return state


def _unfolded(value: bytes) -> bytes:
    """A header's value in one line, without the blanks around it."""
    if _LF in value:
        value = _FOLD.sub(b" ", value)
    return value.strip(b" \t\r\n")


def _branch_of(via: bytes) -> bytes:
    """The branch of the first of the values of a Via header; empty if it has none."""
    if b'"' in via:
        via = _QUOTED.sub(b'""', via)
    branch = _BRANCH.search(via.partition(b",")[0])
    return branch[1] if branch else b""
