"""SIP requests as bytes: reading one from a datagram, and answering one without a transaction. No I/O.

Everything in a datagram is hostile. What is read here is kept byte for byte (apart from unfolding, RFC 3261 7.3.1), so
that a response repeats From, To, Call-ID and Via exactly, and no later layer has to parse a header value itself.
Where a response goes is decided by the datagram's source address; no header can direct it to a third party.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property

MAX_HEADER_FIELDS = 256
"""A request with more header fields than this is dropped."""

MAX_CSEQ = 2**31 - 1
"""Largest sequence number (RFC 3261 8.1.1.5)."""

DEFAULT_PORT = 5060
"""Where a response goes when the top Via names no port (RFC 3261 18.2.2)."""

_COMPACT_NAMES = {
    b"b": b"referred-by",
    b"c": b"content-type",
    b"e": b"content-encoding",
    b"f": b"from",
    b"i": b"call-id",
    b"k": b"supported",
    b"l": b"content-length",
    b"m": b"contact",
    b"o": b"event",
    b"r": b"refer-to",
    b"s": b"subject",
    b"t": b"to",
    b"u": b"allow-events",
    b"v": b"via",
}
_TOKEN = rb"[A-Za-z0-9\-.!%*_+`'~]+"
_START_LINE = re.compile(rb"(" + _TOKEN + rb") ([A-Za-z][A-Za-z0-9+.\-]*:[^\x00-\x20\x7f<>]+) (SIP/\d+\.\d+)\Z")
_NAME = re.compile(_TOKEN + rb"\Z")
_CSEQ = re.compile(rb"(\d{1,10})[ \t]+(" + _TOKEN + rb")\Z")
_TAG = re.compile(rb";[ \t]*tag[ \t]*=[ \t]*([^\s;,<>\"]+)", re.IGNORECASE)
_TOP_VIA = re.compile(
    rb"(SIP[ \t]*/[ \t]*2\.0[ \t]*/[ \t]*" + _TOKEN + rb"[ \t]+)"  # sent-protocol
    rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-._]+)"  # host
    rb"(?:[ \t]*:[ \t]*(\d{1,5}))?[ \t]*"  # port
    rb"((?:;.*)?)\Z",
    re.DOTALL,
)
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)


class MalformedRequest(Exception):
    """The datagram is no SIP request that can be served."""

    def __init__(self, message: str, response: Response | None = None) -> None:
        super().__init__(message)
        self.response = response
        """What to tell its sender; None: nothing, it did not even say where a response belongs."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response made without a transaction."""

    datagram: bytes
    """The response as it goes out."""
    host: str
    """Address to send it to: always the one that the request came from."""
    port: int
    """Port to send it to, 1 to 65535 (RFC 3261 18.2.2, RFC 3581)."""


@dataclass(frozen=True, slots=True)
class TopVia:
    """The topmost Via as a response has to repeat it."""

    text: bytes
    """Its value with `received` and `rport` filled in from the source address (RFC 3261 18.2.1, RFC 3581 4)."""
    branch: bytes
    """Its branch parameter; empty if there is none."""
    response_port: int
    """Port that responses go to, 1 to 65535."""


@dataclass(frozen=True)
class Request:
    """One SIP request. Header values are bytes as received, unfolded."""

    raw: bytes
    """The datagram."""
    method: str
    """Such as ``INVITE``; a token, so ASCII."""
    request_uri: bytes
    """The Request-URI."""
    header_fields: tuple[tuple[bytes, bytes], ...]
    """Name (lower case, compact forms spelt out) and value of each header field, in order."""
    top_via: TopVia
    """The topmost Via."""
    other_vias: tuple[bytes, ...]
    """The Vias below it."""
    from_: bytes
    """Value of From."""
    from_tag: bytes
    """Tag of From; empty if there is none (RFC 2543)."""
    to: bytes
    """Value of To."""
    to_tag: bytes
    """Tag of To; empty in a request outside a dialog."""
    call_id: bytes
    """Value of Call-ID."""
    cseq: int
    """Sequence number, 0 to 2**31-1."""
    body: bytes
    """What follows the headers, as long as Content-Length says."""
    source_ip: str
    """Address that it came from, in text form."""
    source_port: int
    """Port that it came from, 1 to 65535."""

    def values(self, name: str) -> list[bytes]:
        """All values of the header field `name` (case does not matter, compact forms count), in order."""
        wanted = canonical_name(name.encode("ascii", "replace"))
        return [value for field_name, value in self.header_fields if field_name == wanted]

    @cached_property
    def expires_seconds(self) -> int | None:
        """Value of Expires in seconds, if it is a number above 0 (RFC 3261 20.19)."""
        for value in self.values("expires"):
            if value.isdigit() and len(value) <= 10 and int(value) > 0:
                return int(value)
        return None


def canonical_name(name: bytes) -> bytes:
    """A header field's name in lower case, its compact form spelt out (RFC 3261 7.3.3)."""
    name = name.lower()
    return _COMPACT_NAMES.get(name, name)


def is_keepalive(datagram: bytes) -> bool:
    """Whether a datagram only keeps a NAT binding alive (RFC 5626 4.4.1, and the NUL bytes that some send)."""
    return not datagram.strip(b"\r\n\0 ")


def is_response(datagram: bytes) -> bool:
    """Whether a datagram is a SIP response."""
    return datagram.startswith(b"SIP/2.0 ")


def parse_request(datagram: bytes, source_ip: str, source_port: int) -> Request:
    """Read a request.

    Raises:
        MalformedRequest: It cannot be served; `MalformedRequest.response` says so to its sender where that is possible.
    """
    head, _, body = datagram.partition(b"\r\n\r\n")
    start_line, *lines = _unfold(head)
    if len(lines) > MAX_HEADER_FIELDS:
        raise MalformedRequest(f"more than {MAX_HEADER_FIELDS} header fields")
    fields = [_header_field(line) for line in lines]
    named: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        named.setdefault(name, []).append(value)
    vias = [via for value in named.get(b"via", ()) for via in split_list(value)]
    if not 0 < len(vias) <= MAX_HEADER_FIELDS:
        raise MalformedRequest("no Via" if not vias else "too many Vias")
    top_via = _top_via(vias[0], source_ip, source_port)
    for name in (b"from", b"to", b"call-id", b"cseq"):
        if name not in named:
            raise MalformedRequest(f"no {name.decode()}")
    from_, to, call_id, cseq_value = (named[name][0] for name in (b"from", b"to", b"call-id", b"cseq"))

    def refusal(code: int, reason: str) -> MalformedRequest:
        response = _stateless(code, reason, (top_via.text, *vias[1:]), from_, to, call_id, cseq_value)
        is_ack = cseq_value.upper().endswith(b"ACK")  # no response to an ACK, ever (RFC 3261 17.1.1.3)
        return MalformedRequest(reason, None if is_ack else Response(response, source_ip, top_via.response_port))

    start = _START_LINE.match(start_line)
    if start is None:
        raise refusal(400, "Bad Request Line")
    if start[3] != b"SIP/2.0":
        raise refusal(505, "Version Not Supported")
    for name in (b"from", b"to", b"call-id", b"cseq"):
        if len(named[name]) > 1:
            raise refusal(400, f"Repeated {name.decode().title()}")
    cseq = _CSEQ.match(cseq_value)
    if cseq is None or int(cseq[1]) > MAX_CSEQ or cseq[2] != start[1]:
        raise refusal(400, "Bad CSeq")
    if not call_id:
        raise refusal(400, "Bad Call-ID")
    length_values = named.get(b"content-length", [])
    if length_values:
        text = length_values[0]
        if not (text.isdigit() and len(text) <= 7 and int(text) <= len(body)):
            raise refusal(400, "Bad Content-Length")
        body = body[: int(text)]
    return Request(
        raw=datagram,
        method=start[1].decode("ascii"),
        request_uri=start[2],
        header_fields=tuple(fields),
        top_via=top_via,
        other_vias=tuple(vias[1:]),
        from_=from_,
        from_tag=tag_of(from_),
        to=to,
        to_tag=tag_of(to),
        call_id=call_id,
        cseq=int(cseq[1]),
        body=body,
        source_ip=source_ip,
        source_port=source_port,
    )


def stateless_response(request: Request, code: int, reason: str) -> Response:
    """A final response to `request` that needs no transaction (RFC 3261 8.2.7)."""
    vias = (request.top_via.text, *request.other_vias)
    cseq = b"%d %s" % (request.cseq, request.method.encode())
    datagram = _stateless(code, reason, vias, request.from_, request.to, request.call_id, cseq)
    return Response(datagram, request.source_ip, request.top_via.response_port)


def tag_of(address: bytes) -> bytes:
    """The tag parameter of a From or To value; empty if there is none. Tags inside quotes or the URI do not count."""
    address = _without_quoted(address)
    found = _TAG.search(address, address.rfind(b">") + 1)
    return found[1] if found else b""


def user_of(uri: bytes) -> bytes:
    """The user part of a SIP URI (Kamailio: $rU); empty if there is none."""
    rest = uri.partition(b":")[2]
    user, at, _ = rest.rpartition(b"@")
    return user.partition(b";")[0].partition(b":")[0] if at else b""


def split_list(value: bytes) -> list[bytes]:
    """The parts of a comma-separated header value (RFC 3261 7.3.1); commas inside quotes do not part."""
    if b"," not in value:
        return [value]
    masked = _without_quoted(value)
    parts = []
    start = 0
    while (comma := masked.find(b",", start)) >= 0:
        parts.append(value[start:comma].strip())
        start = comma + 1
    parts.append(value[start:].strip())
    return [part for part in parts if part]


def _without_quoted(value: bytes) -> bytes:
    """`value` with its quoted strings blanked out, the same length. One pass, whatever the value holds."""
    pieces = []
    done = 0
    while (quote := value.find(b'"', done)) >= 0 and (quoted := _QUOTED.match(value, quote)):
        pieces += [value[done:quote], b" " * (quoted.end() - quote)]
        done = quoted.end()
    return b"".join(pieces) + value[done:]


def _unfold(head: bytes) -> list[bytes]:
    lines: list[bytes] = []
    for line in head.split(b"\r\n"):
        if line[:1] in (b" ", b"\t") and len(lines) > 1:
            lines[-1] += b" " + line.strip(b" \t")
        else:
            lines.append(line)
    return lines


def _header_field(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    name = name.rstrip(b" \t")
    if not colon or not _NAME.match(name):
        raise MalformedRequest("a header line without a name")
    return canonical_name(name), value.strip(b" \t")


def _top_via(value: bytes, source_ip: str, source_port: int) -> TopVia:
    via = _TOP_VIA.match(value)
    if via is None:
        raise MalformedRequest("the top Via cannot be read")
    protocol, host, port, parameters = via.groups()
    kept = []
    branch = b""
    wants_rport = False
    for parameter in parameters.split(b";")[1:]:
        name, _, argument = parameter.partition(b"=")
        match name.strip(b" \t").lower():
            case b"received":
                continue  # only we may say where it came from
            case b"rport":
                wants_rport = True
                continue
            case b"branch":
                branch = argument.strip(b" \t")
        kept.append(parameter)
    sent_by = protocol + host + (b":" + port if port else b"")
    text = b";".join([sent_by, *kept])
    if wants_rport or host.strip(b"[]").decode("ascii") != source_ip:
        text += b";received=" + source_ip.encode("ascii")
    if wants_rport:
        return TopVia(text + b";rport=%d" % source_port, branch, source_port)
    response_port = int(port) if port else DEFAULT_PORT
    if not 0 < response_port < 2**16:
        raise MalformedRequest("the top Via's port is out of range")
    return TopVia(text, branch, response_port)


def _stateless(
    code: int, reason: str, vias: tuple[bytes, ...], from_: bytes, to: bytes, call_id: bytes, cseq: bytes
) -> bytes:
    if not tag_of(to):  # the same tag for each retransmission, as no memory keeps it (RFC 3261 8.2.7)
        digest = hashlib.blake2s(b"\n".join((vias[0], from_, to, call_id, cseq)), digest_size=8).hexdigest()
        to += b";tag=" + digest.encode()
    lines = [b"SIP/2.0 %d %s" % (code, reason.encode())]
    lines += [b"Via: " + via for via in vias]
    lines += [b"From: " + from_, b"To: " + to, b"Call-ID: " + call_id, b"CSeq: " + cseq, b"Content-Length: 0", b"", b""]
    return b"\r\n".join(lines)
