"""What the shim sends to the proxy: small SIP requests of the method NAP, to a loopback socket of the proxy's own.

All that the usual one has to say is in its Request-URI, which the proxy has taken apart anyway::

    NAP sip:INDEX.LABEL.NAP.EPOCH.STATUS@plain SIP/2.0       end a nap as it was asked for
    NAP sip:INDEX.LABEL.NAP.EPOCH.STATUS@full SIP/2.0        with a route in Nap-Route, an error text in Nap-Error
    NAP sip:open.NUMBER@gate SIP/2.0                         the heartbeat: open, or closed

Kamailio demands Via, From, To, Call-ID and CSeq before it runs its script (core: ``receive.c``); they say nothing here.
"""

from __future__ import annotations

import re

from sipnap.client.keys import SuspensionKey
from sipnap.v1 import suspension_pb2 as pb

STATUS_WORDS: dict[int, bytes] = {
    pb.CONTINUE_STATUS_OK: b"ok",
    pb.CONTINUE_STATUS_FAILED: b"failed",
    pb.CONTINUE_STATUS_TIMED_OUT: b"timed_out",
    pb.CONTINUE_STATUS_LOST: b"lost",
}
"""A continue's status as the resumed route sees it in ``$avp(sipnap_status)``."""

_LONGEST_ERROR_CHARACTERS = 400
_ROUTE = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")
_NOT_PRINTABLE = re.compile(r"[\x00-\x1f\x7f]+")
_NO_ROUTE = b"?"  # no script can have a route of this name: the proxy says so, and ends the nap as failed


def nap_name(key: SuspensionKey) -> bytes:
    """What names a nap on the way to the proxy and back.

    The label is written as the signed 32-bit number that ``t_continue()`` takes it for.
    """
    label = key.transaction_label
    return b"%d.%d.%d.%d" % (
        key.transaction_index,
        label if label < 2**31 else label - 2**32,
        key.nap_number,
        key.boot_epoch,
    )


def continue_request(name: bytes, status: int, *, route: str | None = None, error: str = "") -> bytes:
    """The request that ends a nap.

    Args:
        name: From `nap_name`.
        status: A `pb.ContinueStatus`; an unknown one counts as failed.
        route: Where to resume, when the proxy has to be told; None: where the suspension said.
        error: What went wrong, for the script.
    """
    word = STATUS_WORDS.get(status, b"failed")
    if route is None and not error:
        return _PLAIN % (name, word, name)
    headers = b""
    if route is not None:
        headers += b"Nap-Route: %s\r\n" % (route.encode("ascii") if _ROUTE.match(route) else _NO_ROUTE)
    if error:
        text = _NOT_PRINTABLE.sub(" ", error).strip()[:_LONGEST_ERROR_CHARACTERS]
        headers += b"Nap-Error: %s\r\n" % text.encode("utf-8", "replace")
    return _FULL % (name, word, name, headers)


def gate_request(number: int, *, is_open: bool | None) -> bytes:
    """The heartbeat that opens the gate for some seconds, shuts it, or leaves it as it is.

    Args:
        number: Of this heartbeat, so that its answer can be told from an older one's.
        is_open: Whether the proxy may suspend requests; None: not known yet, as at the start of a shim.
    """
    word = b"ask" if is_open is None else b"open" if is_open else b"closed"
    return _GATE % (word, number, number)


_REST = b"Via: SIP/2.0/UDP 127.0.0.1;branch=z9hG4bK\r\nf:<sip:shim@sipnap>;tag=1\r\nt:<sip:proxy@sipnap>\r\n"
_PLAIN = b"NAP sip:%s.%s@plain SIP/2.0\r\n" + _REST + b"i:%s\r\nCSeq:1 NAP\r\n\r\n"
_FULL = b"NAP sip:%s.%s@full SIP/2.0\r\n" + _REST + b"i:%s\r\nCSeq:1 NAP\r\n%s\r\n"
_GATE = b"NAP sip:%s.%d@gate SIP/2.0\r\n" + _REST + b"i:gate.%d\r\nCSeq:1 NAP\r\n\r\n"
