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
from typing import NamedTuple

from sipnap.client.request_head import RequestHeadError, RequestName, call_id_of, head_of, read_head
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


class DatagramError(ValueError):
    """A datagram that is not what the module's docstring says."""


class UnreadableRequest(DatagramError):
    """The line of a suspended request is good, but what should be a SIP request after it is not.

    The transaction can be resumed all the same, and has to be: it is suspended.
    """

    def __init__(self, why: str, suspension: pb.Suspension, code: str = "unreadable") -> None:
        super().__init__(why)
        self.suspension = suspension
        """Key and route; no state."""
        self.code = code
        """For scripts: "unreadable", or "bad_arguments" when an operation or what it is given is malformed."""


class Suspend(NamedTuple):
    """The proxy has suspended a transaction."""

    suspension: pb.Suspension
    """For the sidecar, complete but for the front end's id and the delay."""
    call_id: bytes
    """Value of its Call-ID; a CANCEL has the same."""
    delay_ms: int
    """How long it naps; not in the suspension, since it changes until that is sent."""


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


class Answers(NamedTuple):
    """The proxy's answer to a batch: each result beside the name of its nap."""

    boot_epoch: int
    """The proxy's ``$Tb``."""
    results: list[tuple[bytes, int]]
    """Names as `nap_request.nap_name` gives them; results as in an `Answer`."""


def read(datagram: bytes, *, ship_raw_request: bool = False) -> Suspend | Task | Cancel | Answer | Answers:
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
    if kind == b"B":
        return _read_answers(words)
    if kind == b"C":
        if len(words) != 3 or end < 0:
            raise DatagramError("a CANCEL has 3 words and a message")
        try:
            return Cancel(_number(words[2], "boot epoch"), read_head(head_of(datagram[end + 1 :])).name)
        except RequestHeadError as error:
            raise DatagramError(f"a CANCEL: {error}") from None
    if kind == b"O":
        return _read_operations(words, datagram, end, ship_raw_request=ship_raw_request)
    if kind == b"T":
        return _read_task(words, datagram, end)
    raise DatagramError(f"its kind {kind[:16]!r} is unknown")


def _read_answers(words: list[bytes]) -> Answers:
    if len(words) < 5:
        raise DatagramError(f"an answer to a batch has at least 5 words, this one {len(words)}")
    first, *others = words[-1].split(b"/")
    first_name, _, _ = first.rpartition(b".")
    _, _, boot_epoch = first_name.rpartition(b".")
    names = [first_name, *(b"%s.%s" % (other, boot_epoch) for other in others)]
    if len(names) != len(words) - 4:
        raise DatagramError(f"an answer to a batch of {len(names)} has {len(words) - 4} results")
    results = [_number(word, "result") for word in words[3:-1]]
    return Answers(_number(words[2], "boot epoch"), list(zip(names, results, strict=True)))


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
    key, state = suspension.key, suspension.state
    try:
        key.boot_epoch, key.transaction_index, key.transaction_label, key.nap_number = map(int, words[2:6])
        delay_ms, source_port, size = int(words[6]), int(words[9]), int(words[10])
        suspension.resume_route = route.decode("ascii")
        source_ip = words[8].decode("ascii")
    except ValueError as error:  # not a number, or out of its range
        raise DatagramError(str(error)) from None
    if delay_ms <= 0 or size < 0:
        raise DatagramError("delay and size have to be positive")

    message_end = end + 1 + size
    message = datagram[end + 1 : message_end]
    try:
        if len(words) > _SUSPEND_WORDS:
            message_end = _read_avps(words[_SUSPEND_WORDS:], datagram, message_end, state)
        if message_end > len(datagram):
            raise DatagramError(f"it is cut off: {len(datagram)} bytes instead of {message_end} or more")
    except DatagramError as error:
        suspension.ClearField("state")
        raise UnreadableRequest(str(error), suspension) from None
    state.request_uri = datagram[message_end:]
    state.source_ip = source_ip
    state.source_port = source_port
    head = head_of(message)
    if ship_raw_request:
        state.raw_request = message
    else:
        state.head = head
    return Suspend(suspension, call_id_of(head), delay_ms)


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


def _number(word: bytes, what: str) -> int:
    if not (word.isdigit() and len(word) <= 19):
        raise DatagramError(f"{word[:40]!r} is no {what}")
    return int(word)
