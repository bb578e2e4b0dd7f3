"""What a route sees of its SIP request, and the naps that it can take."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from sipnap.client.keys import SuspensionKey
from sipnap.shim.sip.app import is_route_name
from sipnap.shim.sip.message import Request, user_of

if TYPE_CHECKING:
    from sipnap.shim.sip.front_end import FrontEnd
    from sipnap.shim.sip.transactions import ServerTransaction

AvpValue: TypeAlias = str | bytes | int
"""What an AVP can hold."""

Status: TypeAlias = Literal["", "ok", "failed", "timed_out", "lost"]
"""How the last nap ended; empty before the first."""


class RouteEnded(BaseException):
    """Ends the route that called `Call.async_route`; raised by it and caught by the front end.

    Like `asyncio.CancelledError` it is no `Exception`, so that a route's ``except Exception`` lets it pass. A route
    that catches `BaseException` must raise it again.
    """


@dataclass(slots=True)
class Nap:
    """One suspension of a call, as the front end remembers it."""

    key: SuspensionKey
    """Its name at the sidecar."""
    route: str | None
    """Route to resume in; None: `sleeper` goes on, or whoever calls t_continue says where."""
    sleeper: asyncio.Future[None] | None = None
    """What `Call.async_sleep` waits for."""
    backstop: asyncio.TimerHandle | None = None
    """Resumes it with status ``lost`` when nobody else does; None: the transaction's own end is all that ends it."""
    shipped: bool = False
    """Whether the session was asked to hold it."""


class Call:
    """One SIP request and its transaction, from the request to its final response.

    The same object goes from route to route. What a route wants to hand on travels in `avps`.
    A CANCEL, and the end of the transaction's life, end the route that runs or naps with `asyncio.CancelledError`.
    """

    __slots__ = (
        "_front_end",
        "_request",
        "avps",
        "error",
        "nap",
        "nap_count",
        "route_name",
        "status",
        "task",
        "transaction",
    )

    def __init__(self, front_end: FrontEnd, transaction: ServerTransaction) -> None:
        self._front_end = front_end
        self._request: Request = transaction.request
        self.avps: dict[str, AvpValue] = {}
        """State that survives naps (Kamailio: $avp). Names of 1 to 64 characters; goes along to the sidecar."""
        self.status: Status = ""
        """How the last nap ended (Kamailio shim: $avp(sipnap_status))."""
        self.error = ""
        """When the status is neither empty nor ``ok``: what went wrong, for people."""
        # What follows is the front end's, not the route's.
        self.transaction = transaction
        self.nap: Nap | None = None
        self.nap_count = 0
        self.route_name = ""
        self.task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Call {self.method} {self.call_id!r} cseq={self._request.cseq}>"

    # The request

    @property
    def method(self) -> str:
        """Such as ``INVITE`` (Kamailio: $rm)."""
        return self._request.method

    @property
    def request_uri(self) -> str:
        """The Request-URI (Kamailio: $ru)."""
        return _text(self._request.request_uri)

    @property
    def request_user(self) -> str:
        """User part of the Request-URI, empty if there is none (Kamailio: $rU)."""
        return _text(user_of(self._request.request_uri))

    @property
    def from_(self) -> str:
        """Value of From."""
        return _text(self._request.from_)

    @property
    def to(self) -> str:
        """Value of To, as received."""
        return _text(self._request.to)

    @property
    def call_id(self) -> str:
        """Value of Call-ID (Kamailio: $ci)."""
        return _text(self._request.call_id)

    @property
    def source_ip(self) -> str:
        """Address that the request came from (Kamailio: $si)."""
        return self._request.source_ip

    @property
    def source_port(self) -> int:
        """Port that the request came from (Kamailio: $sp)."""
        return self._request.source_port

    @property
    def request(self) -> Request:
        """All of it, as bytes."""
        return self._request

    @property
    def ended(self) -> bool:
        """Whether the final response was sent."""
        return self.transaction.ended

    def header(self, name: str) -> str | None:
        """First value of a header field, None if the request has none (Kamailio: $hdr(name)).

        Bytes that are no UTF-8 come as lone surrogates (PEP 383); `request` has them as they are.
        """
        values = self._request.values(name)
        return _text(values[0]) if values else None

    def headers(self, name: str) -> list[str]:
        """All values of a header field, in order."""
        return [_text(value) for value in self._request.values(name)]

    # The response

    def reply(self, code: int, reason: str, headers: Iterable[tuple[str, str]] = ()) -> bool:
        """Send a response (tm: t_reply). From 200 on it is final and ends the call, its nap included.

        Args:
            code: 100 to 699.
            reason: The reason phrase.
            headers: Name and value of further header fields.

        Returns:
            False: the call had its final response before, or was cancelled; nothing was sent.

        Raises:
            ValueError: Not such a code, or a line break where none can be.
        """
        if not 100 <= code <= 699:
            raise ValueError(f"{code} is not a SIP status code: use 100 to 699")
        headers = list(headers)
        for text in (reason, *(part for field in headers for part in field)):
            if any(character in text for character in "\r\n\0"):
                raise ValueError(f"{text!r} would break the response: take the line break out")
        return self._front_end.reply(self, code, reason, headers)

    def redirect(self, uri: str, code: int = 302, reason: str = "Moved Temporarily") -> bool:
        """Send a 3xx with `uri` as its Contact (RFC 3261 8.3).

        Returns:
            False: as `reply`.

        Raises:
            ValueError: Not such a code, or `uri` cannot stand in a Contact.
        """
        if not 300 <= code <= 399:
            raise ValueError(f"{code} does not redirect: use 300 to 399")
        if ":" not in uri or any(character in uri for character in '<>"\r\n\0 '):
            raise ValueError(f"{uri!r} is not a URI that a Contact can hold")
        return self.reply(code, reason, [("Contact", f"<{uri}>")])

    # Naps

    async def async_sleep(self, seconds: float) -> bool:
        """Nap, then go on with the next line (async module: async_sleep).

        Args:
            seconds: More than 0; at most what `--max-seconds` and the transaction's life allow.

        Returns:
            True: suspended and resumed; `status` says how the nap ended. False: refused at the door, at once.
        """
        return await self._front_end.sleep(self, seconds)

    async def async_route(self, route: str, seconds: float) -> Literal[False]:
        """Nap, and resume in `route` (async module: async_route). If that works, it does not return: this route ends.

        Await it in the route's own coroutine, not in a task of its own.

        Args:
            route: Name of the route to resume in. If the app has none of that name then, the call ends in 500.
            seconds: As for `async_sleep`.

        Returns:
            False: refused at the door, at once.

        Raises:
            ValueError: `route` is not 1 to 64 characters of ``[A-Za-z0-9_.:-]``.
        """
        if not is_route_name(route):
            raise ValueError(f"{route!r} is not a route name: use 1 to 64 of [A-Za-z0-9_.:-]")
        if self._front_end.suspend_for_route(self, route, seconds):
            raise RouteEnded
        return False

    def t_suspend(self) -> SuspensionKey | None:
        """Suspend the transaction and return what it is found by (tm: t_suspend). Then let the route end.

        Somebody has to call `FrontEnd.t_continue`, or send the sidecar a SuspendRoute with this key; else the
        transaction ends with its life.

        Returns:
            The key, with transaction index and label; None: the call is suspended already, or has ended.
        """
        nap = self._front_end.t_suspend(self)
        return nap.key if nap is not None else None

    def t_continue(self, key: SuspensionKey, route: str) -> bool:
        """Resume any suspended transaction of this front end in `route` (tm: t_continue). Call it in the event loop.

        Returns:
            False: it is suspended no more, or there is no such route.
        """
        return self._front_end.t_continue(key.transaction_index, key.transaction_label, route)


def is_nap_length(seconds: float) -> bool:
    """Whether `seconds` is a length that a nap can have at all: a number above 0."""
    return math.isfinite(seconds) and seconds > 0


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
