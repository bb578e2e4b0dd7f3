r"""What the proxy sends to the shim, one UDP datagram each: a suspended request, a task, a CANCEL, an answer.

A datagram is one line of ASCII words, and after it what the line says the sizes of. No part is encoded: the SIP message
is there as the proxy received it, so no byte of SIP can be mistaken for structure::

    SN1 S EPOCH INDEX LABEL NAP MS ROUTE SOURCE_IP SOURCE_PORT SIZE [AVP:SIZE ...]\n MESSAGE VALUE ... REQUEST_URI
    SN1 O (as S, to SIZE) SIZES [AVP:SIZE ...]\n OPERATION ARGUMENTS GROUP ... MESSAGE VALUE ... REQUEST_URI
    SN1 T EPOCH MS ROUTE SIZE SIZE\n DATA GROUP
    SN1 C EPOCH\n MESSAGE
    SN1 A EPOCH RESULT USER
    SN1 B EPOCH RESULT ... USER

S is a nap, O one with operations (SIZES: three for each, with commas between), T a task, C a CANCEL, A the answer to a
NAP request, whose user part USER repeats (to a heartbeat with .MOST after it: how many naps a batch may have), B that
to a batch, with as many results as it has naps, in its order. EPOCH is the proxy's ``$Tb``. How arguments are written:
`arguments`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from sipnap.client.request_head import RequestHeadError, RequestName, head_and_call_id, head_of, read_head
from sipnap.shim.kamailio.arguments import ArgumentsError, named_arguments
from sipnap.shim.kamailio.nap import Nap, nap_without_state
from sipnap.v1 import suspension_pb2 as pb

MOST_OPERATIONS = 4
"""How many operations one nap can have: as many as sipnap.cfg has variables for."""

TASK_WAIT_MS = 30_000
"""How long a task of a worker group waits for a worker, unless it says so itself."""

PASS_OPERATION = "pass"
"""Operation that finds nothing: what a task does in its worker group is to wait for its turn."""

_MAGIC = b"SN1"
_WITH_PARTS = (b"S", b"O", b"T", b"C")
_ROUTE = re.compile(rb"[A-Za-z0-9_.:-]{1,64}\Z")
_AVP_NAME = re.compile(rb"[^:\s]{1,64}\Z")
_LONGEST_LINE_BYTES = 2048
_MOST_DELAY_MS = 2**40  # some years; beyond that it does not fit where others write it in microseconds
_SUSPEND_WORDS = 11  # and one more for each AVP
_SIZES = re.compile(rb"[0-9]{1,5},[0-9]{1,5},[0-9]{1,5}(?:,[0-9]{1,5},[0-9]{1,5},[0-9]{1,5}){0,3}\Z")
_UNSET = b"0"  # a variable of Kamailio's that a null was assigned to, such as a header that is not there
_OPERATION = re.compile(rb"[A-Za-z0-9_.:-]{1,64}\Z")


class DatagramError(ValueError):
    """A datagram that is not what the module's docstring says."""


class UnreadableRequest(DatagramError):
    """The line of a suspended request is good, but what should be a SIP request after it is not.

    The transaction can be resumed all the same, and has to be: it is suspended.
    """

    def __init__(self, why: str, nap: Nap, code: str = "unreadable") -> None:
        super().__init__(why)
        self.nap = nap
        """Key and route; no state."""
        self.code = code
        """For scripts: "unreadable", or "bad_arguments" when an operation or what it is given is malformed."""


class Task(NamedTuple):
    """The proxy wants a route to be run later, without a transaction."""

    boot_epoch: int
    """The proxy's ``$Tb``."""
    suspension: pb.Suspension
    """For the sidecar, complete but for its key."""
    delay_ms: int
    """How long to wait for it, from 1."""


class Cancel(NamedTuple):
    """The caller has given up."""

    boot_epoch: int
    """The proxy's ``$Tb``."""
    request: RequestName
    """Which request the CANCEL means."""


class Answer(NamedTuple):
    """The proxy's answer to a NAP request."""

    boot_epoch: int
    """The proxy's ``$Tb``."""
    result: int
    """200 applied, 481 no such transaction waits, 404 no such route."""
    user: bytes
    """User part of the NAP request that it answers."""


class Answers(NamedTuple):
    """The proxy's answer to a batch."""

    boot_epoch: int
    """The proxy's ``$Tb``."""
    results: list[int]
    """One for each of its naps, in its order; each as in an `Answer`."""
    user: bytes
    """User part of the NAP request that it answers."""


def read(
    datagram: bytes, *, front_end_id: str = "", ship_raw_request: bool = False
) -> Nap | Task | Cancel | Answer | Answers:
    """Read one datagram.

    Args:
        datagram: All of it.
        front_end_id: For the keys of naps.
        ship_raw_request: Put the SIP message into the suspension's state as a whole, in place of its head.

    Raises:
        UnreadableRequest: A suspended request whose parts are not there, or whose operations are malformed.
        DatagramError: Anything else that is wrong.
    """
    line, line_end, rest = datagram.partition(b"\n")
    words = line.split(b" ")
    if words[0] != _MAGIC or len(words) < 2:
        raise DatagramError("it does not start with 'SN1 '")
    kind = words[1]
    if (not line_end or len(line) >= _LONGEST_LINE_BYTES) and kind in _WITH_PARTS:
        raise DatagramError(f"its line, of kind {kind!r}, has no end within {_LONGEST_LINE_BYTES} bytes")
    if kind == b"S":
        return _read_suspend(words, rest, front_end_id, ship_raw_request=ship_raw_request)
    if kind == b"B":
        return _read_answers(words)
    if kind == b"A":
        if len(words) != 5:
            raise DatagramError(f"an answer has 5 words, this one {len(words)}")
        return Answer(_number(words[2], "boot epoch"), _number(words[3], "result"), words[4])
    if kind == b"C":
        if len(words) != 3:
            raise DatagramError("a CANCEL has 3 words and a message")
        try:
            return Cancel(_number(words[2], "boot epoch"), read_head(head_of(rest)).name)
        except RequestHeadError as error:
            raise DatagramError(f"a CANCEL: {error}") from None
    if kind == b"O":
        return _read_operations(words, rest, front_end_id, ship_raw_request=ship_raw_request)
    if kind == b"T":
        return _read_task(words, rest)
    raise DatagramError(f"its kind {kind[:16]!r} is unknown")


def _read_answers(words: list[bytes]) -> Answers:
    if len(words) < 5:
        raise DatagramError(f"an answer to a batch has at least 5 words, this one {len(words)}")
    user = words[-1]
    results = [_RESULTS.get(word) or _number(word, "result") for word in words[3:-1]]
    if user.count(b"/") + 1 != len(results):
        raise DatagramError(f"an answer to a batch of {user.count(b'/') + 1} has {len(results)} results")
    return Answers(_number(words[2], "boot epoch"), results, user)


def _read_suspend(words: list[bytes], rest: bytes, front_end_id: str, *, ship_raw_request: bool) -> Nap:
    if len(words) < _SUSPEND_WORDS:
        raise DatagramError(f"a suspended request has at least {_SUSPEND_WORDS} words, this one {len(words)}")
    try:
        boot_epoch, epoch_piece = _EPOCHS[words[2]]
        index, label = int(words[3]), int(words[4])
        transaction = _pack_transaction(index, _LABEL_TAG, label)
        nap_number, route, delay_seconds, asked_piece = _ASKED[words[5], words[6], words[7]]
        source = _SOURCES[words[8], words[9]]
        size = int(words[10])
    except (ValueError, struct.error) as error:  # not a number, or out of its range
        raise DatagramError(str(error)) from None
    if size < 0:
        raise DatagramError(f"a size of {size}")
    key = (front_end_id, boot_epoch, index, label, nap_number)

    message = rest[:size]
    end = size
    avps = b""
    try:
        if len(words) > _SUSPEND_WORDS:
            avps, end = _read_avps(words[_SUSPEND_WORDS:], rest, size)
        if end > len(rest):
            raise DatagramError(f"it is cut off: {len(rest)} bytes instead of {end} or more")
    except DatagramError as error:
        raise UnreadableRequest(str(error), nap_without_state(key, route)) from None
    head, call_id = head_and_call_id(message)
    if ship_raw_request:
        head_start, head = _RAW_REQUEST_START[size], message
    else:
        head_start = _HEAD_START[len(head)]
    request_uri = rest[end:]
    uri_start = _URI_START[len(request_uri)]
    state_size = len(head_start) + len(head) + len(uri_start) + len(request_uri) + len(source) + len(avps)
    encoded = b"".join(
        (
            epoch_piece, transaction, asked_piece,
            _STATE_START[state_size], head_start, head, uri_start, request_uri, source, avps,
        )
    )  # fmt: skip
    nap = Nap(key, encoded, route, delay_seconds)
    nap.call_id = call_id
    nap.has_operations = False
    nap.sendings = nap.not_found = 0
    return nap


def _read_operations(words: list[bytes], rest: bytes, front_end_id: str, *, ship_raw_request: bool) -> Nap:
    """A suspended request with operations: one as any other, behind their parts."""
    if len(words) <= _SUSPEND_WORDS or not _SIZES.match(words[_SUSPEND_WORDS]):
        raise DatagramError("a nap with operations needs the sizes of their parts, three for each of at most 4")
    parts: list[bytes] = []
    start = 0
    for size_text in words.pop(_SUSPEND_WORDS).split(b","):
        size = int(size_text)
        parts.append(rest[start : start + size])
        start += size
    nap = _read_suspend(words, rest[start:], front_end_id, ship_raw_request=ship_raw_request)
    asked = pb.Suspension()
    try:
        for number in range(len(parts) // 3):
            name, arguments, group = parts[number * 3 : number * 3 + 3]
            if not _OPERATION.match(name):
                raise ArgumentsError(f"{name[:80]!r} is no name of an operation: expected 1 to 64 of [A-Za-z0-9_.:-]")
            asked.operations.add(
                name=name.decode("ascii"),
                arguments=named_arguments(b"" if arguments == _UNSET else arguments),
                group=_group_of(group),
                prefix=f"{number + 1}_" if number else "",
            )
    except ArgumentsError as error:
        what = f"operation {number + 1}: {error}"
        raise UnreadableRequest(what, nap_without_state(nap.key, nap.route), "bad_arguments") from None
    nap.encoded += asked.SerializeToString()  # one message after the other is the same as both in one
    nap.has_operations = True
    return nap


def _read_task(words: list[bytes], rest: bytes) -> Task:
    if len(words) != 7:
        raise DatagramError("a task has 7 words and its data")
    route = words[4]
    if not _ROUTE.match(route):
        raise DatagramError(f"{route[:80]!r} is no name of a route: expected 1 to 64 of [A-Za-z0-9_.:-]")
    delay_ms = _number(words[3], "delay")
    if delay_ms > _MOST_DELAY_MS:
        raise DatagramError(f"a delay of {delay_ms} ms: expected at most {_MOST_DELAY_MS}")
    group_start = _number(words[5], "size")
    group_end = group_start + _number(words[6], "size")
    if group_end != len(rest):
        raise DatagramError(f"data and group of a task have {len(rest)} bytes and should have {group_end}")
    try:
        group = _group_of(rest[group_start:])
    except ArgumentsError as error:
        raise DatagramError(str(error)) from None
    suspension = pb.Suspension(resume_route=route.decode("ascii"), data=rest[:group_start])
    if group:
        suspension.operations.add(name=PASS_OPERATION, group=group)
    # In the contract each suspension has a delay: of one with operations it is the most that they may take.
    delay_ms = delay_ms or (TASK_WAIT_MS if group else 1)
    suspension.delay.FromMilliseconds(delay_ms)
    return Task(_number(words[2], "boot epoch"), suspension, delay_ms)


def _group_of(group: bytes) -> str:
    """Name of a worker group; empty: the default one."""
    if group == _UNSET:
        return ""
    if group and not _OPERATION.match(group):
        raise ArgumentsError(f"{group[:80]!r} is no name of a worker group: expected 1 to 64 of [A-Za-z0-9_.:-]")
    return group.decode("ascii")


def _read_avps(words: list[bytes], rest: bytes, start: int) -> tuple[bytes, int]:
    """AVPs whose values are there from `start` on, and where they end. One without a size is not set."""
    pieces: list[bytes] = []
    for word in words:
        name, _, size_text = word.rpartition(b":")
        if not _AVP_NAME.match(name):
            raise DatagramError(f"{word[:80]!r} is no AVP and its size")
        if not size_text:
            continue
        end = start + _number(size_text, "size of an AVP")
        value = rest[start:end]
        start = end
        name_piece, text_start = _AVP_NAMES[name], _TEXT_START[len(value)]
        pieces += _AVP_START[len(name_piece) + len(text_start) + len(value)], name_piece, text_start, value
    return b"".join(pieces), start


def _number(word: bytes, what: str) -> int:
    if not (word.isdigit() and len(word) <= 19):
        raise DatagramError(f"{word[:40]!r} is no {what}")
    return int(word)


# A Suspension message is put together of pieces: what many naps share is encoded once. All is as protobuf would do it,
# but the five fields of a nap that no other one has; setting those in a message and encoding that costs 3 µs more.

_Key = TypeVar("_Key")
_Piece = TypeVar("_Piece")
_MOST_PIECES = 4096  # of each kind; addresses of callers are without end


class _Pieces(dict[_Key, _Piece]):
    """What was made once, and is made when it is first asked for. What makes it may raise ValueError."""

    def __init__(self, make: Callable[[_Key], _Piece], most: int = _MOST_PIECES) -> None:
        super().__init__()
        self._make = make
        self._most = most

    def __missing__(self, key: _Key) -> _Piece:
        made = self._make(key)
        if len(self) >= self._most:
            self.clear()
        self[key] = made
        return made


_pack_transaction = struct.Struct("<IBI").pack
_NAP_NUMBER_TAG, _LABEL_TAG = 0x2D, 0x25  # fields 5 and 4 of SuspensionKey, fixed32


def _epoch_piece(word: bytes) -> tuple[int, bytes]:
    """The number, and the start of an encoded Suspension: of its key all but index, label and nap number."""
    boot_epoch = int(word)
    return boot_epoch, struct.pack("<BBBQB", 0x0A, 24, 0x11, boot_epoch, 0x1D)  # fields 1; 2 and 3 within it


def _asked_piece(words: tuple[bytes, bytes, bytes]) -> tuple[int, str, float, bytes]:
    """Nap number, route and delay in seconds, and the same encoded: the end of the key, resume_route, delay."""
    nap_number, delay_ms, route = int(words[0]), int(words[1]), words[2]
    if not _ROUTE.match(route):
        raise DatagramError(f"{route[:80]!r} is no name of a route: expected 1 to 64 of [A-Za-z0-9_.:-]")
    if not 0 < delay_ms <= _MOST_DELAY_MS:
        raise DatagramError(f"a delay of {delay_ms} ms: expected 1 to {_MOST_DELAY_MS}")
    suspension = pb.Suspension(resume_route=route.decode("ascii"))
    suspension.delay.FromMilliseconds(delay_ms)
    piece = struct.pack("<BI", _NAP_NUMBER_TAG, nap_number) + suspension.SerializeToString()
    return nap_number, suspension.resume_route, delay_ms * 1e-3, piece


def _source_piece(words: tuple[bytes, bytes]) -> bytes:
    """Address and port, encoded as in a TransactionState."""
    return pb.TransactionState(source_ip=words[0].decode("ascii"), source_port=int(words[1])).SerializeToString()


def _avp_name_piece(name: bytes) -> bytes:
    return pb.Avp(name=name.decode("ascii", "replace")).SerializeToString()


def _field_start(number: int) -> Callable[[int], bytes]:
    """Makes the start of an encoded field of bytes, of a string or of a message: tag and size."""

    def start(size: int) -> bytes:
        written = bytearray([number << 3 | 2])
        while size >= 0x80:
            written.append(size & 0x7F | 0x80)
            size >>= 7
        written.append(size)
        return bytes(written)

    return start


_RESULTS = {b"200": 200, b"404": 404, b"481": 481}
_EPOCHS = _Pieces(_epoch_piece, 16)
_ASKED = _Pieces(_asked_piece)
_SOURCES = _Pieces(_source_piece)
_AVP_NAMES = _Pieces(_avp_name_piece)
_STATE_START = _Pieces(_field_start(5))  # of a Suspension
_URI_START = _Pieces(_field_start(2))  # of a TransactionState, as the next three
_HEAD_START = _Pieces(_field_start(12))
_RAW_REQUEST_START = _Pieces(_field_start(11))
_AVP_START = _Pieces(_field_start(10))
_TEXT_START = _Pieces(_field_start(2))  # of an Avp
