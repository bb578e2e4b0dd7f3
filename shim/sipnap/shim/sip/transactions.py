"""Server transactions as routes need them: found again by index and label, ended once, bounded in life and number."""

from __future__ import annotations

import asyncio
import logging
import secrets
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from sipnap.shim.sip.engine import MAX_INVITE_SECONDS, Cancelled, Engine, Handle
from sipnap.shim.sip.message import (
    MalformedRequest,
    Request,
    Response,
    is_keepalive,
    is_response,
    parse_request,
    stateless_response,
)

MAX_NON_INVITE_SECONDS = 31
"""The same for other requests: their senders give up after 32 s (RFC 3261 17.1.2.2, timer F)."""

DEFAULT_MAX_TRANSACTIONS = 50_000
"""Transactions held at once; an INVITE whose final response gets no ACK counts for 32 s more."""

log = logging.getLogger("sipnap.sip.transactions")


class TransactionId(NamedTuple):
    """What a suspended transaction is found by again (tm: ``t_suspend``, ``t_continue``)."""

    transaction_index: int
    """Hash over Call-ID and CSeq, 0 to 65535 (Kamailio: $T(id_index))."""
    transaction_label: int
    """Serial number, 0 to 2**32-1, from a random start (Kamailio: $T(id_label))."""


@dataclass(slots=True)
class Counters:
    """What came in, counted since the start."""

    datagrams: int = 0
    """All datagrams."""
    requests: int = 0
    """Requests that opened a transaction."""
    malformed: int = 0
    """Datagrams that were no request to be served."""
    ignored: int = 0
    """Responses and keep-alives: nothing here waits for one."""
    refused: int = 0
    """Requests over the bound of transactions."""


class ServerTransaction:
    """One transaction and the request that opened it."""

    __slots__ = ("_guard", "_handle", "ended", "expires_seconds", "on_end", "request", "transaction_id")

    def __init__(self, request: Request, transaction_id: TransactionId, handle: Handle) -> None:
        self.request = request
        self.transaction_id = transaction_id
        self.ended = False
        """Whether a final response was sent."""
        self.on_end: Callable[[str], None] | None = None
        """Called with ``cancelled`` or ``expired`` when the transaction ends otherwise than by `reply`."""
        self._handle = handle
        self._guard: asyncio.TimerHandle | None = None
        loop = asyncio.get_running_loop()
        if request.method == "INVITE":  # the engine watches over its life
            life_seconds = min(request.expires_seconds or MAX_INVITE_SECONDS, MAX_INVITE_SECONDS)
        else:
            life_seconds = MAX_NON_INVITE_SECONDS
            self._guard = loop.call_later(life_seconds, self._expire)
        self.expires_seconds = loop.time() + life_seconds
        """When it ends by itself, on the loop's clock."""

    def reply(self, code: int, reason: str, headers: Iterable[tuple[str, str]] = ()) -> bool:
        """Send a response. From 200 on it is final.

        Returns:
            False: the transaction has had its final response; nothing was sent.
        """
        if self.ended:
            return False
        self._handle.respond(code, reason, headers)
        if code >= 200:
            self._end()
        return True

    def cancelled(self, by_caller: bool) -> None:
        """Called by the engine when it has answered 487 itself: after a CANCEL, or at the end of an INVITE's life."""
        self._end()
        if self.on_end is not None:
            self.on_end("cancelled" if by_caller else "expired")

    def _expire(self) -> None:
        self.reply(500, "Server Internal Error")  # a 408 would be for the sender's own timer to say (RFC 4320 4.2)
        if self.on_end is not None:
            self.on_end("expired")

    def _end(self) -> None:
        self.ended = True
        if self._guard is not None:
            self._guard.cancel()
            self._guard = None


class TransactionLayer:
    """All server transactions of one UDP socket. Belongs to one event loop."""

    def __init__(
        self,
        on_request: Callable[[ServerTransaction], None],
        *,
        host: str,
        port: int,
        max_transactions: int = DEFAULT_MAX_TRANSACTIONS,
    ) -> None:
        """Bind the socket and start to serve; call it in a running loop.

        Args:
            on_request: Called once for each new transaction (never for ACK and CANCEL).
            host: Address to bind, an IPv4 or IPv6 address or a name.
            port: Port to bind; 0: a free one.
            max_transactions: Above it, new requests are answered 503 without a transaction.

        Raises:
            OSError: The address cannot be bound.
        """
        self.counters = Counters()
        self._on_request = on_request
        self._max_transactions = max_transactions
        self._label = secrets.randbelow(2**32)
        self._engine = Engine(self.receive, self._open, host=host, port=port)
        self.address = self._engine.address
        """Host and port that are bound."""

    def close(self) -> None:
        """Stop serving; transactions are forgotten."""
        self._engine.close()

    @property
    def open_transactions(self) -> int:
        """Transactions held now, those that wait for their ACK included."""
        return len(self._engine)

    @property
    def unsent(self) -> int:
        """Datagrams that the kernel would not take, counted since the start."""
        return self._engine.unsent

    def receive(self, datagram: bytes, host: str, port: int) -> None:
        """Serve one datagram. Whatever it holds, this does not raise."""
        self.counters.datagrams += 1
        try:
            self._serve(datagram, host, port)
        except MalformedRequest as error:
            self.counters.malformed += 1
            log.debug("malformed datagram source=%s:%d bytes=%d reason=%s", host, port, len(datagram), error)
            if error.response is not None:
                self._send(error.response)
        except Exception:
            self.counters.malformed += 1
            if self.counters.malformed & (self.counters.malformed - 1) == 0:  # the 1st, 2nd, 4th, 8th, …
                log.exception("datagram could not be served source=%s:%d bytes=%d", host, port, len(datagram))

    def _serve(self, datagram: bytes, host: str, port: int) -> None:
        if is_keepalive(datagram) or is_response(datagram):
            self.counters.ignored += 1
        elif not self._engine.answer_retransmission(datagram):
            request = parse_request(datagram, host, port)
            if request.method not in ("ACK", "CANCEL") and self.open_transactions >= self._max_transactions:
                self.counters.refused += 1
                self._send(stateless_response(request, 503, "Service Unavailable"))
            else:
                self._engine.serve(request)

    def _open(self, request: Request, handle: Handle) -> Cancelled | None:
        self.counters.requests += 1
        self._label = (self._label + 1) % 2**32
        transaction_id = TransactionId(zlib.crc32(request.call_id, request.cseq) & 0xFFFF, self._label)
        transaction = ServerTransaction(request, transaction_id, handle)
        self._on_request(transaction)
        # A CANCEL ends an INVITE and nothing else (RFC 3261 9.2).
        return transaction.cancelled if request.method == "INVITE" else None

    def _send(self, response: Response) -> None:
        self._engine.send(response.datagram, response.host, response.port)
