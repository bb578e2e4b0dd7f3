"""sippy, made fit for one asyncio loop: the only module that knows it.

sippy keeps the server transactions (RFC 3261 17.2): matching, retransmissions of final responses until the ACK, CANCEL
with its 200 and 487, timers. It is given what it needs ready-made: its own parsers raise on hostile input and print to
stdout, its own sockets are served by six threads each. See docs/python-front-end.md for the figures.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import secrets
import socket
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import get_ident
from typing import Any

from sippy.Core.EventDispatcher import ED2
from sippy.SipCSeq import SipCSeq
from sippy.SipExpires import SipExpires
from sippy.SipGenericHF import SipGenericHF
from sippy.SipHeader import SipHeader
from sippy.SipMsg import SipMsg
from sippy.SipRequest import SipRequest
from sippy.SipTransactionManager import SipTransactionManager
from sippy.Time.MonoTime import MonoTime

from sipnap.shim.sip.message import Request

MAX_INVITE_SECONDS = 300
"""Longest life of an INVITE transaction without a final response, in seconds; a smaller Expires shortens it."""

_TICK_SECONDS = 0.02  # the shortest timer of RFC 3261 is T1, 500 ms
_DATAGRAMS_PER_TURN = 16  # some 3 ms of work; then others have the loop
_RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
_MAX_DATAGRAM_BYTES = 65_535
_TAG_SECRET = secrets.token_bytes(16)

Cancelled = Callable[[bool], None]
"""Told that a transaction was answered 487: True after a CANCEL, False at the end of its life."""


class Handle:
    """One server transaction inside the engine."""

    __slots__ = ("_manager", "_request", "_transaction")

    def __init__(self, manager: _Manager, request: _EngineRequest, transaction: Any) -> None:
        self._manager = manager
        self._request = request
        self._transaction = transaction

    def respond(self, code: int, reason: str, headers: Iterable[tuple[str, str]]) -> None:
        """Send a response; after a final one nothing more may be sent."""
        response = self._request.genResponse(code, reason)
        for name, value in headers:
            response.appendHeader(SipHeader(name=name, body=_ExactBody(value, name)))
        self._manager.sendResponse(response, self._transaction)


class Engine:
    """All server transactions of one UDP socket."""

    def __init__(
        self,
        on_datagram: Callable[[bytes, str, int], None],
        on_open: Callable[[Request, Handle], Cancelled | None],
        *,
        host: str,
        port: int,
    ) -> None:
        """Bind the socket and start to serve; call it in a running loop.

        Args:
            on_datagram: Called with each datagram and its source; must not raise.
            on_open: Called with each request that opens a transaction; returns whom to tell of its cancellation.
            host: Address to bind.
            port: Port to bind; 0: a free one.

        Raises:
            OSError: The address cannot be bound.
        """
        self.unsent = 0
        """Datagrams that the kernel would not take."""
        self.on_datagram = on_datagram
        self._on_open = on_open
        self._loop = asyncio.get_running_loop()
        ED2.my_ident = get_ident()  # its timers belong to the thread of the loop
        configuration = {"_sip_address": host, "_sip_port": port, "_sip_logger": _NoLog, "engine": self}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it tries IPv6 with a socket that it does not close
            self._manager = _Manager(configuration, self._open)
        self._socket: _Socket = next(iter(self._manager.l4r.cache_l2s.values()))
        self.address = self._socket.address
        """Host and port that are bound."""
        self._tick_handle = self._loop.call_later(_TICK_SECONDS, self._tick)

    def __len__(self) -> int:
        """Transactions held now, those that wait for their ACK included."""
        return len(self._manager.tserver)

    def answer_retransmission(self, datagram: bytes) -> bool:
        """Whether this very datagram was served lately; if so, what was answered is answered again."""
        return self._manager.answer_retransmission(_checksum(datagram), self._socket)

    def serve(self, request: Request) -> None:
        """Hand a request to its transaction, or open one."""
        self._manager.incomingRequest(_EngineRequest(request), _checksum(request.raw), (), self._socket)

    def send(self, datagram: bytes, host: str, port: int) -> None:
        """Send a datagram outside of any transaction."""
        self._socket.send_to(datagram, (host, port))

    def close(self) -> None:
        """Stop serving; transactions are forgotten."""
        self._tick_handle.cancel()
        for transaction in list(self._manager.tserver.values()):
            for timer in (transaction.teA, transaction.teD, transaction.teE, transaction.teF):
                if timer is not None:
                    timer.cancel()
            transaction.cleanup()
        self._manager.shutdown()

    def _open(self, request: _EngineRequest, transaction: Any) -> tuple[None, Callable[..., None] | None, None]:
        cancelled = self._on_open(request.request, Handle(self._manager, request, transaction))
        if cancelled is None:
            return None, None, None
        return None, lambda _time, cancel: cancelled(cancel is not None), None

    def _tick(self) -> None:
        self._tick_handle = self._loop.call_later(_TICK_SECONDS, self._tick)
        ED2.last_ts = MonoTime()
        ED2.dispatchTimers()
        if ED2.twasted * 2 > len(ED2.tlisteners):  # what its own loop does about timers that were cancelled
            ED2.tlisteners = [timer for timer in ED2.tlisteners if timer.cb_func is not None]
            heapq.heapify(ED2.tlisteners)
            ED2.twasted = 0


def _checksum(datagram: bytes) -> bytes:
    """Names a retransmission, which is the same byte for byte."""
    return hashlib.md5(datagram, usedforsecurity=False).digest()


class _NoLog:
    """sippy writes every message to its logger; ours wants none of them."""

    @staticmethod
    def write(*_: Any, **__: Any) -> None:
        pass


class _SocketOptions:
    """Stands for sippy's Udp_server_opts."""

    flags = 1

    def __init__(self, address: tuple[str, int], _callback: Any) -> None:
        self.address = address

    @staticmethod
    def isWildCard() -> bool:  # noqa: N802 (sippy's name)
        return False


class _Socket:
    """Stands for sippy's Udp_server: one non-blocking UDP socket in the asyncio loop, no threads."""

    transport = "udp"

    def __init__(self, configuration: dict[str, Any], options: _SocketOptions) -> None:
        self.uopts = options
        self._engine: Engine = configuration["engine"]
        self._loop = asyncio.get_running_loop()
        host, port = options.address
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        self._socket = socket.socket(family, kind, protocol)
        try:
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            self._socket.setblocking(False)
            self._socket.bind(address)  # without SO_REUSEADDR: a second instance must fail, not share the port
        except OSError:
            self._socket.close()
            raise
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def getSIPaddr(self) -> tuple[tuple[str, int], str]:  # noqa: N802 (sippy's name)
        return self.address, self.transport

    @staticmethod
    def addr2str(_address: Any) -> str:
        return ""  # for the log that nobody wants

    def send_to(self, datagram: str | bytes, address: tuple[str, int]) -> None:
        if isinstance(datagram, str):
            datagram = datagram.encode("utf-8", "surrogateescape")
        try:
            self._socket.sendto(datagram, address)
        except (OSError, OverflowError):  # a full buffer, or an address that nothing can be sent to: UDP may lose it
            self._engine.unsent += 1

    def shutdown(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _readable(self) -> None:
        for _ in range(_DATAGRAMS_PER_TURN):
            try:
                datagram, address = self._socket.recvfrom(_MAX_DATAGRAM_BYTES)
            except OSError:  # nothing more, or the ICMP error of something that was sent
                return
            self._engine.on_datagram(datagram, address[0], address[1])


class _Answered(dict[bytes, "tuple[str, str, int] | None"]):
    """What was answered to which datagram. Plain tuples where sippy has objects: there are very many of them, and the
    collector need not look into tuples of strings and numbers.
    """

    def __setitem__(self, checksum: bytes, answer: Any) -> None:
        super().__setitem__(checksum, None if answer.data is None else (answer.data, *answer.address))


class _Manager(SipTransactionManager):  # type: ignore[misc]  # sippy has no types
    """sippy's transaction manager on our socket."""

    model_udp_server = (_Socket, _SocketOptions)

    def __init__(self, configuration: dict[str, Any], on_request: Callable[..., Any]) -> None:
        super().__init__(configuration, on_request)
        self.l1rcache = _Answered()

    def rCachePurge(self) -> None:  # noqa: N802 (sippy's name)
        super().rCachePurge()
        self.l1rcache = _Answered()

    def answer_retransmission(self, checksum: bytes, server: _Socket) -> bool:
        """Whether this very datagram was seen lately; if so, what was answered is answered again."""
        for answered in (self.l1rcache, self.l2rcache):
            if checksum in answered:
                if (answer := answered[checksum]) is not None:
                    datagram, host, port = answer
                    server.send_to(datagram, (host, port))
                return True
        return False


class _ExactBody(SipGenericHF):  # type: ignore[misc]  # sippy has no types
    """A header value that goes out byte for byte as it came in. Never changed, so that a copy need not be one."""

    parsed = True

    def __init__(self, value: str, name: str, tag: str | None = None) -> None:
        super().__init__(value)
        self._name = name
        self._tag = tag

    def getCopy(self) -> _ExactBody:  # noqa: N802 (sippy's name)
        return self

    def getCanName(self, _name: str, _compact: bool = False) -> str:  # noqa: N802 (sippy's signature)
        return self._name

    def getTag(self) -> str | None:  # noqa: N802 (sippy's name)
        return self._tag


class _ExactTo(_ExactBody):
    """The To, which gets a tag in all responses but the 100."""

    def __init__(self, value: str, tag: str | None, tag_to_add: str) -> None:
        super().__init__(value, "To", tag)
        self._tag_to_add = tag_to_add

    def getCopy(self) -> _ExactTo:  # noqa: N802 (sippy's name)
        return _ExactTo(self.body, self._tag, self._tag_to_add)

    def genTag(self) -> None:  # noqa: N802 (sippy's name)
        self._tag = self._tag_to_add
        self.body += f";tag={self._tag}"


class _ExactVia(_ExactBody):
    """The topmost Via."""

    def __init__(self, value: str, branch: str | None, address: tuple[str, int]) -> None:
        super().__init__(value, "Via")
        self._branch = branch
        self._address = address

    def getBranch(self) -> str | None:  # noqa: N802 (sippy's name)
        return self._branch

    def getTAddr(self) -> tuple[str, int]:  # noqa: N802 (sippy's name)
        return self._address


class _ExactCSeq(SipCSeq):  # type: ignore[misc]  # sippy has no types
    """The CSeq. Never changed either."""

    def getCopy(self) -> _ExactCSeq:  # noqa: N802 (sippy's name)
        return self


class _EngineRequest(SipRequest):  # type: ignore[misc]  # sippy has no types
    """A request as sippy's transactions want it, made without its parsers."""

    def __init__(self, request: Request) -> None:
        SipMsg.__init__(self)
        self.request = request
        self.method = request.method
        self.sipver = "SIP/2.0"
        self.rtime = MonoTime()
        self.source = ((request.source_ip, request.source_port), "udp")
        via = request.top_via
        address = (request.source_ip, via.response_port)
        bodies: list[tuple[str, SipGenericHF]] = [
            ("via", _ExactVia(_text(via.text), _text(via.branch) or None, address))
        ]
        bodies += [("via", _ExactBody(_text(value), "Via")) for value in request.other_vias]
        bodies += [("record-route", _ExactBody(_text(v), "Record-Route")) for v in request.values("record-route")]
        bodies += [
            ("from", _ExactBody(_text(request.from_), "From", _text(request.from_tag) or None)),
            ("to", _ExactTo(_text(request.to), _text(request.to_tag) or None, _to_tag(request))),
            ("call-id", _ExactBody(_text(request.call_id), "Call-ID")),
            ("cseq", _ExactCSeq(cseq=request.cseq, method=request.method)),
        ]
        if request.expires_seconds is not None:
            bodies.append(("expires", SipExpires(number=min(request.expires_seconds, MAX_INVITE_SECONDS))))
        self.headers = [SipHeader(name=name, body=body) for name, body in bodies]

    def genResponse(self, scode: int, *arguments: Any, **more: Any) -> Any:  # noqa: N802 (sippy's name)
        response = super().genResponse(scode, *arguments, **more)
        to = response.getHFBody("to")
        if scode > 100 and to.getTag() is None:
            to.genTag()
        return response


def _to_tag(request: Request) -> str:
    """The same for all responses of a transaction and for the CANCEL's (RFC 3261 9.2), and not to be guessed."""
    transaction = b"%b\n%b\n%d\n%b" % (request.call_id, request.from_tag, request.cseq, request.top_via.branch)
    return hashlib.blake2s(transaction, digest_size=8, key=_TAG_SECRET).hexdigest()


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
