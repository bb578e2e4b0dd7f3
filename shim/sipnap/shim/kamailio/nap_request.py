"""What the shim sends to the proxy: small SIP requests of the method NAP, to a loopback socket of the proxy's own.

All that the usual one has to say is in its Request-URI, which the proxy has taken apart anyway::

    NAP sip:INDEX.LABEL.NAP.EPOCH.STATUS@plain SIP/2.0       end a nap as it was asked for
    NAP sip:INDEX.LABEL.NAP.EPOCH.STATUS@full SIP/2.0        with more to say, in headers
    NAP sip:INDEX.LABEL.NAP.EPOCH.ok/INDEX.LABEL.NAP/...@batch SIP/2.0      several: all of one EPOCH, all ok
    NAP sip:INDEX.LABEL.0.EPOCH.STATUS@task SIP/2.0          run the route in Nap-Route with the data in Nap-Data
    NAP sip:open.NUMBER@gate SIP/2.0                         the heartbeat: open, or closed

The headers: Nap-Route where to resume, Nap-Error and Nap-Code what went wrong for people and for scripts, Nap-Data in
base64, and what operations have found, which may be any bytes, since a name server or a web server said it::

    Nap-Values: NAME:KIND:VALUE;...      KIND t: VALUE is text, in base64; i: it is an integer. Lists last value first
    Nap-Names: NAME:KINDS;...            one letter for each value (t text, i integer, b boolean, n an integer as
                                         text since Kamailio's have 32 bits), after an l if it is a list

Kamailio demands Via, From, To, Call-ID and CSeq before it runs its script (core: ``receive.c``); they say nothing here.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Sequence

from sipnap.client.keys import Key
from sipnap.v1 import suspension_pb2 as pb

STATUS_WORDS: dict[int, bytes] = {
    pb.CONTINUE_STATUS_OK: b"ok",
    pb.CONTINUE_STATUS_FAILED: b"failed",
    pb.CONTINUE_STATUS_TIMED_OUT: b"timed_out",
    pb.CONTINUE_STATUS_LOST: b"lost",
}
"""A continue's status as the resumed route sees it in ``$avp(sipnap_status)``."""

MOST_VALUES = 64
"""How many values one continue can bring to a script, those of lists counted one by one. Kamailio ends a loop of its
script after 100 rounds (core: max_while_loops)."""

LARGEST_VALUES_BYTES = 48_000
"""How large the values of a continue can be on the way to the proxy, in base64: a request has to fit into a datagram,
and Kamailio decodes in a buffer of 65,535 bytes."""

_LONGEST_ERROR_CHARACTERS = 400
_ROUTE = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")
_NOT_PRINTABLE = re.compile(r"[\x00-\x1f\x7f]+")
_CODE = re.compile(r"[a-z0-9_]{1,64}\Z")
_VALUE_NAME = re.compile(r"[A-Za-z0-9_]{1,64}\Z")
_MOST_INTEGER = 2**31 - 1  # a greater one Kamailio 5.6's {s.int} does not take
_NO_ROUTE = b"?"  # no script can have a route of this name: the proxy says so, and ends the nap as failed


def nap_name(key: Key) -> bytes:
    """What names a nap on the way to the proxy and back.

    The label is written as the signed 32-bit number that ``t_continue()`` takes it for.
    """
    _, boot_epoch, index, label, nap_number = key
    return b"%d.%d.%d.%d" % (index, label if label < 2**31 else label - 2**32, nap_number, boot_epoch)


class TooLarge(ValueError):
    """What should go to the proxy does not fit into a NAP request."""


def full_request(name: bytes, order: pb.Continue, *, route: str | None) -> bytes:
    """The request for a continue of any kind: one that brings errors or values, or runs a task.

    Whatever is not OK has an error code and an error text when it arrives.

    Args:
        name: From `nap_name`.
        order: From the sidecar, or of the session's own making (attempt 0).
        route: Where to resume, when the proxy has to be told; a task always says it.
    """
    error, error_code = order.error, order.error_code
    if order.status != pb.CONTINUE_STATUS_OK:
        if not error_code:
            is_refusal = order.status == pb.CONTINUE_STATUS_FAILED and not order.attempt
            error_code = "refused" if is_refusal else STATUS_WORDS.get(order.status, b"failed").decode("ascii")
        error = error or error_code.replace("_", " ")
    if order.key.nap_number:
        return continue_request(
            name, order.status, route=route, error=error, error_code=error_code, values=order.values
        )
    return task_request(
        name, order.status, route=order.resume_route, data=order.data, error=error, error_code=error_code
    )


def continue_request(
    name: bytes,
    status: int,
    *,
    route: str | None = None,
    error: str = "",
    error_code: str = "",
    values: Sequence[pb.NamedValue] = (),
) -> bytes:
    """The request that ends a nap. With values that do not fit it ends as failed, with the error code ``too_large``.

    Args:
        name: From `nap_name`.
        status: A `pb.ContinueStatus`; an unknown one counts as failed.
        route: Where to resume, when the proxy has to be told; None: where the suspension said.
        error: What went wrong, for people.
        error_code: What went wrong, for scripts.
        values: What operations have found.
    """
    word = STATUS_WORDS.get(status, b"failed")
    if route is None and not error and not values:
        return _PLAIN % (b"%s.%s" % (name, word), name)
    headers = _route_header(route) if route is not None else b""
    try:
        headers += _values_headers(values)
    except TooLarge as too_large:
        word = b"failed"
        error, error_code = str(too_large), "too_large"
    return _FULL % (name, word, b"full", name, headers + _error_headers(error, error_code))


def plain_user(keys: Sequence[Key]) -> bytes:
    """User part of the request that ends naps as they were asked for: the status of each is OK.

    Args:
        keys: At least one, all of one boot epoch, and no more than the proxy's script takes.
    """
    names = [
        b"%d.%d.%d" % (index, label if label < 2**31 else label - 2**32, nap_number)
        for _, _, index, label, nap_number in keys
    ]
    names[0] += b".%d.ok" % keys[0][1]
    return b"/".join(names)


def plain_request(user: bytes) -> bytes:
    """The request that ends one nap or a batch of them as they were asked for.

    Args:
        user: From `plain_user`.
    """
    name, _, others = user.partition(b".ok")
    return (_BATCH if others else _PLAIN) % (user, name)


def user_of(request: bytes) -> bytes:
    """User part of a request that ends a nap or runs a task: the proxy's answer repeats it."""
    return request[len(_START) : request.index(b"@")]


def task_request(
    name: bytes, status: int, *, route: str, data: bytes = b"", error: str = "", error_code: str = ""
) -> bytes:
    """The request that runs a task. With data that do not fit it runs without, with the error code ``too_large``.

    Args:
        name: From `nap_name`.
        status: A `pb.ContinueStatus`: whether the task's worker group let it pass.
        route: What to run.
        data: What it is given.
        error: What went wrong, for people.
        error_code: What went wrong, for scripts.
    """
    word = STATUS_WORDS.get(status, b"failed")
    encoded = b64encode(data)
    if len(encoded) > LARGEST_VALUES_BYTES:
        word, encoded = b"failed", b""
        error, error_code = f"the task's data have {len(data)} bytes, which is more than fits", "too_large"
    headers = b"%sNap-Data: %s\r\n%s" % (_route_header(route), encoded, _error_headers(error, error_code))
    return _FULL % (name, word, b"task", name, headers)


def _route_header(route: str) -> bytes:
    return b"Nap-Route: %s\r\n" % (route.encode("ascii") if _ROUTE.match(route) else _NO_ROUTE)


def _error_headers(error: str, error_code: str) -> bytes:
    if not error:
        return b""
    text = _NOT_PRINTABLE.sub(" ", error).strip()[:_LONGEST_ERROR_CHARACTERS]
    code = error_code if _CODE.match(error_code) else "failed"
    return b"Nap-Error: %s\r\nNap-Code: %s\r\n" % (text.encode("utf-8", "replace"), code.encode("ascii"))


def _values_headers(values: Iterable[pb.NamedValue]) -> bytes:
    """Both headers; empty if there are no values.

    Raises:
        TooLarge: They are too many, or too large.
    """
    entries: list[bytes] = []
    kinds: dict[str, bytes] = {}
    for named in values:
        name, value = named.name, named.value
        if name in kinds or not _VALUE_NAME.match(name):
            continue  # two operations without a prefix found it: the first counts; other names the sidecar never sends
        is_list = value.WhichOneof("kind") == "list"
        items = value.list.values if is_list else (value,)
        written = [_written(item) for item in items]
        # Each assignment in the script puts a value on top of those of its name: the first comes last.
        entries += [b"%s:%s" % (name.encode("ascii"), text) for _, text in reversed(written)]
        kinds[name] = (b"l" if is_list else b"") + b"".join(kind for kind, _ in written)
    if not kinds:
        return b""
    if len(kinds) > MOST_VALUES or len(entries) > MOST_VALUES:
        raise TooLarge(
            f"what the operations found are {max(len(kinds), len(entries))} values, at most {MOST_VALUES} fit"
        )
    size = sum(map(len, entries)) + len(entries)
    if size > LARGEST_VALUES_BYTES:
        raise TooLarge(
            f"what the operations found has {size} bytes on its way to the proxy, at most {LARGEST_VALUES_BYTES} fit"
        )
    names = b";".join(b"%s:%s" % (name.encode("ascii"), letters) for name, letters in kinds.items())
    return b"Nap-Names: %s\r\nNap-Values: %s\r\n" % (names, b";".join(entries))


def _written(value: pb.Value) -> tuple[bytes, bytes]:
    """Kind of a value, and KIND:VALUE as the script reads it. What is neither text nor number is empty text."""
    kind = value.WhichOneof("kind")
    if kind == "boolean":
        return b"b", b"i:%d" % value.boolean
    if kind == "integer":
        if abs(value.integer) <= _MOST_INTEGER:
            return b"i", b"i:%d" % value.integer
        return b"n", b"t:" + b64encode(b"%d" % value.integer)
    return b"t", b"t:" + b64encode(value.text)


def gate_request(number: int, *, is_open: bool | None) -> bytes:
    """The heartbeat that opens the gate for some seconds, shuts it, or leaves it as it is.

    Args:
        number: Of this heartbeat, so that its answer can be told from an older one's.
        is_open: Whether the proxy may suspend requests; None: not known yet, as at the start of a shim.
    """
    word = b"ask" if is_open is None else b"open" if is_open else b"closed"
    return _GATE % (word, number, number)


_REST = b"Via: SIP/2.0/UDP 127.0.0.1;branch=z9hG4bK\r\nf:<sip:shim@sipnap>;tag=1\r\nt:<sip:proxy@sipnap>\r\n"
_START = b"NAP sip:"
_PLAIN = _START + b"%s@plain SIP/2.0\r\n" + _REST + b"i:%s\r\nCSeq:1 NAP\r\n\r\n"
_BATCH = _START + b"%s@batch SIP/2.0\r\n" + _REST + b"i:%s\r\nCSeq:1 NAP\r\n\r\n"
_FULL = _START + b"%s.%s@%s SIP/2.0\r\n" + _REST + b"i:%s\r\nCSeq:1 NAP\r\n%s\r\n"
_GATE = _START + b"%s.%d@gate SIP/2.0\r\n" + _REST + b"i:gate.%d\r\nCSeq:1 NAP\r\n\r\n"
