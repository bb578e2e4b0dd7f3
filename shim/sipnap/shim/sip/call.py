"""What a route sees of its SIP request, and the naps that it can take."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from sipnap.client.keys import SuspensionKey
from sipnap.client.operations import Argument, operation_message
from sipnap.shim.sip.app import check_route_name
from sipnap.shim.sip.message import Request, user_of
from sipnap.shim.sip.result import NOT_NAPPED, OperationResult

if TYPE_CHECKING:
    from sipnap.shim.sip.front_end import FrontEnd
    from sipnap.shim.sip.transactions import ServerTransaction
    from sipnap.v1 import suspension_pb2 as pb

AvpValue: TypeAlias = str | bytes | int
"""What an AVP can hold."""

OPERATION_SECONDS = 5.0
"""How long operations may take unless told otherwise: a caller hears nothing meanwhile."""


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
    """What `Call.async_sleep` and `Call.operation` wait for."""
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
        "nap",
        "nap_count",
        "result",
        "route_name",
        "task",
        "transaction",
    )

    def __init__(self, front_end: FrontEnd, transaction: ServerTransaction) -> None:
        self._front_end = front_end
        self._request: Request = transaction.request
        self.avps: dict[str, AvpValue] = {}
        """State that survives naps (Kamailio: $avp). Names of 1 to 64 characters; goes along to the sidecar."""
        self.result: OperationResult = NOT_NAPPED
        """How the last nap ended, and what its operations found; `OperationResult.status` is never ``refused`` here."""
        # What follows is the front end's, not the route's.
        self.transaction = transaction
        self.nap: Nap | None = None
        self.nap_count = 0
        self.route_name = ""
        self.task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Call {self.method} {self.call_id!r} cseq={self._request.cseq}>"

    @property
    def status(self) -> str:
        """How the last nap ended, empty before the first (Kamailio shim: $avp(sipnap_status))."""
        return self.result.status

    @property
    def error(self) -> str:
        """When the status is neither empty nor ``ok``: what went wrong, for people."""
        return self.result.error

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
        return (await self._front_end.nap(self, seconds, ())).status != "refused"

    async def async_route(self, route: str, seconds: float, operations: Sequence[pb.Operation] = ()) -> Literal[False]:
        """Nap, and resume in `route` (async module: async_route). If that works, it does not return: this route ends.

        Await it in the route's own coroutine, not in a task of its own.

        Args:
            route: Name of the route to resume in. If the app has none of that name then, the call ends in 500.
            seconds: As for `async_sleep`; with operations, the most that they may take.
            operations: What to do meanwhile, all at the same time; the route finds what came of it in `result`.

        Returns:
            False: refused at the door, at once.

        Raises:
            ValueError: `route` is not 1 to 64 characters of ``[A-Za-z0-9_.:-]``, or there are too many operations.
        """
        check_route_name(route)
        if self._front_end.suspend_for_route(self, route, seconds, operations):
            raise RouteEnded
        return False

    async def operation(
        self,
        name: str,
        arguments: Mapping[str, Argument] | None = None,
        *,
        group: str = "",
        timeout_seconds: float = OPERATION_SECONDS,
        max_attempts: int = 0,
    ) -> OperationResult:
        """Nap while a worker does something slow, then go on with the next line and with what it found.

        A CANCEL ends both, the nap and the operation.

        Args:
            name: Name under which the sidecar knows it, such as ``http``.
            arguments: What it is given, besides the request's own fields and `avps`.
            group: Worker group that runs it; empty: ``default``.
            timeout_seconds: Most that it may take, repeated attempts and the wait for a worker included. At most what
                `--max-seconds` and the transaction's life allow.
            max_attempts: How often it is tried at most, 1 to 10; 0: what the operation itself says.

        Returns:
            What became of it; never raises for a failure. It is true if it did what it should.

        Raises:
            ValueError: An argument is nothing that can be sent.
        """
        asked = operation_message(name, arguments, group=group, max_attempts=max_attempts)
        return await self.operations(asked, timeout_seconds=timeout_seconds)

    async def operations(
        self, *operations: pb.Operation, timeout_seconds: float = OPERATION_SECONDS
    ) -> OperationResult:
        """Nap while workers do several things at the same time, then go on with the next line.

        Args:
            operations: 1 to 8 of what `sipnap.client.operations.operation_message` makes. Their prefixes keep apart
                what they find.
            timeout_seconds: Most that all of them may take, as for `operation`.

        Returns:
            What became of them, as soon as all have ended: ``ok`` if all did what they should; else the error names
            each that failed, the error code is that of the first, and the values are those of the others.

        Raises:
            ValueError: None, or too many.
        """
        if not operations:
            raise ValueError("no operation to wait for; to wait for the time use async_sleep")
        return await self._front_end.nap(self, timeout_seconds, operations)

    def run_task(
        self, route: str, data: bytes | str = b"", *, seconds: float = 0.0, operations: Sequence[pb.Operation] = ()
    ) -> bool:
        """Have a route run without a call, and go on at once (async module: async_task_data).

        It runs in this front end, at least once, whatever becomes of this call; a restart of the front end ends what
        has not run by then.

        Args:
            route: Name of a route that is decorated with `App.task`.
            data: What it is given; `str` is sent as UTF-8.
            seconds: Not before that much has passed; 0: at once. With operations, the most that they may take; 0:
                `--max-seconds`, which bounds it in any case.
            operations: What to do first, all at the same time; the task finds what came of it in its `result`.

        Returns:
            False: refused at the door.

        Raises:
            ValueError: `route` is not 1 to 64 characters of ``[A-Za-z0-9_.:-]``, or there are too many operations.
        """
        return self._front_end.tasks.submit(route, data, seconds, operations)

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
