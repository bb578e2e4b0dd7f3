r"""What the proxy sends to the shim, one UDP datagram each: a suspended request, a task, a CANCEL, an answer.

A datagram is one line of ASCII words, and after it what the line says the sizes of. No part is encoded: the SIP message
is there as the proxy received it, so no byte of SIP can be mistaken for structure::

    SN1 S EPOCH INDEX LABEL NAP MS ROUTE SOURCE_IP SOURCE_PORT SIZE [AVP:SIZE ...]\n MESSAGE VALUE ... REQUEST_URI
    SN1 O (as S, to SIZE) SIZES [AVP:SIZE ...]\n OPERATION ARGUMENTS GROUP ... MESSAGE VALUE ... REQUEST_URI
    SN1 T EPOCH MS ROUTE SIZE SIZE\n DATA GROUP
    SN1 C EPOCH\n MESSAGE
    SN1 A EPOCH RESULT USER

S is a nap, O one with operations (SIZES: three for each, with commas between), T a task, C a CANCEL, A the answer to a
NAP request, whose user part USER repeats. EPOCH is the proxy's ``$Tb``. How arguments are written: `arguments`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sipnap.shim.kamailio.arguments import ArgumentsError, named_arguments
from sipnap.v1 import suspension_pb2 as pb

MOST_OPERATIONS = 4
"""How many operations one nap can have: as many as sipnap.cfg has variables for."""

TASK_WAIT_MS = 30_000
"""How long a task of a worker group waits for a worker, unless it says so itself."""

PASS_OPERATION = "pass"
"""Operation that finds nothing: what a task does in its worker group is to wait for its turn."""

_MAGIC = b"SN1 "
_ROUTE = re.compile(rb"[A-Za-z0-9_.:-]{1,64}\Z")
_AVP_NAME = re.compile(rb"[^:\s]{1,64}\Z")
_LONGEST_LINE_BYTES = 2048
_SUSPEND_WORDS = 11  # and one more for each AVP
_SIZES = re.compile(rb"[0-9]{1,5},[0-9]{1,5},[0-9]{1,5}(?:,[0-9]{1,5},[0-9]{1,5},[0-9]{1,5}){0,3}\Z")
_UNSET = b"0"  # a variable of Kamailio's that a null was assigned to, such as a header that is not there
_OPERATION = re.compile(rb"[A-Za-z0-9_.:-]{1,64}\Z")

# The request line, then those headers that are asked for, folded lines included (RFC 3261 7.3.1, compact forms 7.3.3).
# tm takes the first of each, so do we. A line ends with LF for Kamailio; the CR before it is usual.
_METHOD = re.compile(rb"\s*([!-~]+) ")
_HEADER = re.compile(rb"\n([VvFfTtIiCc][A-Za-z-]*)[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)")
_NAMES = {
    b"via": b"Via", b"v": b"Via", b"from": b"From", b"f": b"From", b"to": b"To", b"t": b"To",
    b"call-id": b"Call-ID", b"i": b"Call-ID", b"cseq": b"CSeq",
}  # fmt: skip
_END_OF_HEADERS = re.compile(rb"\n\r?\n")
_FOLD = re.compile(rb"[ \t]*\r?\n[ \t]+")
_CSEQ = re.compile(rb"([0-9]{1,10})[ \t]+([!-~]+)\Z")
_BRANCH = re.compile(rb";[ \t]*branch[ \t]*=[ \t]*([^;, \t]*)", re.IGNORECASE)
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


class DatagramError(ValueError):
    """A datagram that is not what the module's docstring says."""


class UnreadableRequest(DatagramError):
    """The line of a suspended request is good, but what should be a SIP request after it is not.

    The transaction can be resumed all the same, and has to be: it is suspended.
    """

    def __init__(self, why: str, suspension: pb.Suspension, code: str = "unreadable") -> None:
        super().__init__(why)
        self.suspension = suspension
        """Key, route and delay; no state."""
        self.code = code
        """For scripts: "unreadable", or "bad_arguments" when an operation or what it is given is malformed."""


class RequestName(NamedTuple):
    """What a CANCEL shares with the INVITE that it cancels (RFC 3261 9.1)."""

    call_id: bytes
    """Value of Call-ID."""
    cseq: int
    """Number of CSeq, 0 to 2**31-1."""
    via_branch: bytes
    """Branch of the topmost Via; empty if it has none."""


class Suspend(NamedTuple):
    """The proxy has suspended a transaction."""

    suspension: pb.Suspension
    """For the sidecar, complete but for the front end's id."""
    request: RequestName
    """What a CANCEL would name it by."""


class Task(NamedTuple):
    """The proxy wants a route to be run later, without a transaction."""

    boot_epoch: int
    """The proxy's ``$Tb``."""
    suspension: pb.Suspension
    """For the sidecar, complete but for its key."""


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


def read(datagram: bytes, *, ship_raw_request: bool = False) -> Suspend | Task | Cancel | Answer:
    """Read one datagram.

    Args:
        datagram: All of it.
        ship_raw_request: Put the SIP message into the suspension's state as a whole, too.

    Raises:
        UnreadableRequest: A suspended request that is no SIP request, or whose operations are malformed.
        DatagramError: Anything else that is wrong.
    """
    if not datagram.startswith(_MAGIC):
        raise DatagramError("it does not start with 'SN1 '")
    end = datagram.find(b"\n", 0, _LONGEST_LINE_BYTES)
    words = (datagram if end < 0 else datagram[:end]).split(b" ")
    kind = words[1]
    if kind == b"S":
        return _read_suspend(words, datagram, end, ship_raw_request=ship_raw_request)
    if kind == b"A":
        if len(words) != 5:
            raise DatagramError(f"an answer has 5 words, this one {len(words)}")
        return Answer(_number(words[2], "boot epoch"), _number(words[3], "result"), words[4])
    if kind == b"C":
        if len(words) != 3 or end < 0:
            raise DatagramError("a CANCEL has 3 words and a message")
        return Cancel(_number(words[2], "boot epoch"), _read_request(datagram[end + 1 :])[1])
    if kind == b"O":
        return _read_operations(words, datagram, end, ship_raw_request=ship_raw_request)
    if kind == b"T":
        return _read_task(words, datagram, end)
    raise DatagramError(f"its kind {kind[:16]!r} is unknown")


def _read_suspend(words: list[bytes], datagram: bytes, end: int, *, ship_raw_request: bool) -> Suspend:
    if len(words) < _SUSPEND_WORDS or end < 0:
        raise DatagramError(
            f"a suspended request has at least {_SUSPEND_WORDS} words and a message, this one {len(words)} words"
        )
    route = words[7]
    if not _ROUTE.match(route):
        raise DatagramError(f"{route[:80]!r} is no name of a route: expected 1 to 64 of [A-Za-z0-9_.:-]")
    suspension = pb.Suspension()
    # Setting fields one by one is the cheapest way to fill a message.
    key, delay, state = suspension.key, suspension.delay, suspension.state
    try:
        key.boot_epoch, key.transaction_index, key.transaction_label, key.nap_number = map(int, words[2:6])
        delay_ms, source_port, size = int(words[6]), int(words[9]), int(words[10])
        suspension.resume_route = route.decode("ascii")
        source_ip = words[8].decode("ascii")
    except ValueError as error:  # not a number, or out of its range
        raise DatagramError(str(error)) from None
    if delay_ms <= 0 or size < 0:
        raise DatagramError("delay and size have to be positive")
    delay.seconds = delay_ms // 1000
    delay.nanos = delay_ms % 1000 * 1_000_000

    message_end = end + 1 + size
    message = datagram[end + 1 : message_end]
    try:
        if len(words) > _SUSPEND_WORDS:
            message_end = _read_avps(words[_SUSPEND_WORDS:], datagram, message_end, state)
        if message_end > len(datagram):
            raise DatagramError(f"it is cut off: {len(datagram)} bytes instead of {message_end} or more")
        state.method, request, from_value, state.to = _read_request(message)
    except DatagramError as error:
        suspension.ClearField("state")
        raise UnreadableRequest(str(error), suspension) from None
    state.request_uri = datagram[message_end:]
    setattr(state, "from", from_value)  # a word of Python, so no attribute in its syntax
    state.call_id, state.cseq, state.via_branch = request
    state.source_ip = source_ip
    state.source_port = source_port
    if ship_raw_request:
        state.raw_request = message
    return Suspend(suspension, request)


def _read_operations(words: list[bytes], datagram: bytes, end: int, *, ship_raw_request: bool) -> Suspend:
    """A suspended request with operations: one as any other, behind their parts."""
    if len(words) <= _SUSPEND_WORDS or end < 0 or not _SIZES.match(words[_SUSPEND_WORDS]):
        raise DatagramError("a nap with operations needs the sizes of their parts, three for each of at most 4")
    parts: list[bytes] = []
    start = end + 1
    for size_text in words.pop(_SUSPEND_WORDS).split(b","):
        size = int(size_text)
        parts.append(datagram[start : start + size])
        start += size
    suspend = _read_suspend(words, datagram, start - 1, ship_raw_request=ship_raw_request)
    try:
        for number in range(len(parts) // 3):
            name, arguments, group = parts[number * 3 : number * 3 + 3]
            if not _OPERATION.match(name):
                raise ArgumentsError(f"{name[:80]!r} is no name of an operation: expected 1 to 64 of [A-Za-z0-9_.:-]")
            suspend.suspension.operations.add(
                name=name.decode("ascii"),
                arguments=named_arguments(b"" if arguments == _UNSET else arguments),
                group=_group_of(group),
                prefix=f"{number + 1}_" if number else "",
            )
    except ArgumentsError as error:
        what = f"operation {number + 1}: {error}"
        raise UnreadableRequest(what, _without_state(suspend.suspension), "bad_arguments") from None
    return suspend


def _read_task(words: list[bytes], datagram: bytes, end: int) -> Task:
    if len(words) != 7 or end < 0:
        raise DatagramError("a task has 7 words and its data")
    route = words[4]
    if not _ROUTE.match(route):
        raise DatagramError(f"{route[:80]!r} is no name of a route: expected 1 to 64 of [A-Za-z0-9_.:-]")
    delay_ms = _number(words[3], "delay")
    data_start = end + 1
    group_start = data_start + _number(words[5], "size")
    group_end = group_start + _number(words[6], "size")
    if group_end != len(datagram):
        raise DatagramError(f"a task of {len(datagram)} bytes that should have {group_end}")
    try:
        group = _group_of(datagram[group_start:])
    except ArgumentsError as error:
        raise DatagramError(str(error)) from None
    suspension = pb.Suspension(resume_route=route.decode("ascii"), data=datagram[data_start:group_start])
    if group:
        suspension.operations.add(name=PASS_OPERATION, group=group)
    # In the contract each suspension has a delay: of one with operations it is the most that they may take.
    suspension.delay.FromMilliseconds(delay_ms or (TASK_WAIT_MS if group else 1))
    return Task(_number(words[2], "boot epoch"), suspension)


def _without_state(suspension: pb.Suspension) -> pb.Suspension:
    """Key, route and delay of a suspension."""
    suspension.ClearField("state")
    suspension.ClearField("operations")
    return suspension


def _group_of(group: bytes) -> str:
    """Name of a worker group; empty: the default one."""
    if group == _UNSET:
        return ""
    if group and not _OPERATION.match(group):
        raise ArgumentsError(f"{group[:80]!r} is no name of a worker group: expected 1 to 64 of [A-Za-z0-9_.:-]")
    return group.decode("ascii")


def _read_avps(words: list[bytes], datagram: bytes, start: int, state: pb.TransactionState) -> int:
    """Read AVP values from `start` on into the state; returns where they end. One without a size is not set."""
    for word in words:
        name, _, size_text = word.rpartition(b":")
        if not _AVP_NAME.match(name):
            raise DatagramError(f"{word[:80]!r} is no AVP and its size")
        if not size_text:
            continue
        end = start + _number(size_text, "size of an AVP")
        value = datagram[start:end]
        state.avps.add(name=name.decode("ascii", "replace"), text=value)
        start = end
    return start


def _read_request(message: bytes) -> tuple[bytes, RequestName, bytes, bytes]:
    """Method, name, From and To of a SIP request."""
    request_line = _METHOD.match(message)
    if request_line is None:
        raise DatagramError(f"no SIP request: it starts with {message[:40]!r}")
    blank_line = _END_OF_HEADERS.search(message, request_line.end())
    headers = _HEADER.findall(message, 0, blank_line.start() + 1 if blank_line else len(message))
    # Backwards, so that the first of each stays. What is none of the five ends up under None.
    values = {_NAMES.get(name.lower()): value for name, value in reversed(headers)}
    try:
        via, from_value, to_value = values[b"Via"], values[b"From"], values[b"To"]
        call_id, cseq = values[b"Call-ID"], _unfolded(values[b"CSeq"])
    except KeyError:
        missing = [name.decode() for name in dict.fromkeys(_NAMES.values()) if name not in values]
        raise DatagramError(f"a SIP request without {', '.join(missing)}") from None
    sequence = _CSEQ.match(cseq)
    if sequence is None or (number := int(sequence[1])) >= 2**31:
        raise DatagramError(f"no CSeq (RFC 3261 20.16): {cseq[:40]!r}")
    request = RequestName(_unfolded(call_id), number, _branch_of(_unfolded(via)))
    return request_line[1], request, _unfolded(from_value), _unfolded(to_value)


def _unfolded(value: bytes) -> bytes:
    """A header's value in one line, without the blanks around it."""
    if b"\n" in value:
        value = _FOLD.sub(b" ", value)
    return value.strip(b" \t\r\n")


def _branch_of(via: bytes) -> bytes:
    """The branch of the first of the values of a Via header; empty if it has none."""
    if b'"' in via:
        via = _QUOTED.sub(b'""', via)
    branch = _BRANCH.search(via.partition(b",")[0])
    return branch[1] if branch else b""


def _number(word: bytes, what: str) -> int:
    if not (word.isdigit() and len(word) <= 19):
        raise DatagramError(f"{word[:40]!r} is no {what}")
    return int(word)
