"""One SIP caller whose every byte the test decides; SIPp places the load, this one the odd calls."""

from __future__ import annotations

import itertools
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_RECEIVE_BUFFER_BYTES = 1024 * 1024

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply to one of the caller's requests."""

    code: int
    """Status code."""
    reason: str
    """Reason phrase."""
    raw: bytes
    """All of it."""
    seconds: float
    """When it came, on the monotonic clock."""

    def header(self, name: str) -> str:
        """Value of a header field; empty if there is none."""
        found = re.search(rf"^{re.escape(name)}: *(.*?)\r$".encode(), self.raw, re.MULTILINE | re.IGNORECASE)
        return found[1].decode(errors="replace") if found else ""


class Call:
    """One INVITE (or another request) and all that belongs to it."""

    def __init__(self, caller: Caller, request: bytes, branch: bytes) -> None:
        self._caller = caller
        self.request = request
        self.branch = branch
        self.sent_seconds = time.monotonic()

    def send(self) -> None:
        """Send the request, also once more, as a retransmission."""
        self._caller.send(self.request)

    def cancel(self) -> None:
        """Send a CANCEL for it."""
        self._caller.send(self.derived(b"CANCEL"))

    def derived(self, method: bytes) -> bytes:
        """A request of the same transaction: CANCEL, or the ACK of a negative reply."""
        first, _, rest = self.request.partition(b"\r\n")
        _, uri, version = first.split(b" ", 2)
        headers = rest.partition(b"\r\n\r\n")[0]
        headers = re.sub(rb"(CSeq: *[0-9]+) [A-Z]+", rb"\1 " + method, headers)
        return b"%s %s %s\r\n%s\r\n\r\n" % (method, uri, version, headers)

    def final(self, seconds: float = 10) -> Reply:
        """The final reply to it. Acknowledged, if it was an INVITE.

        Raises:
            TimeoutError: None came in time.
        """
        while True:
            reply = self.reply(seconds)
            if reply.code >= 200:
                if self.request.startswith(b"INVITE"):
                    self._caller.send(self.derived(b"ACK"))
                return reply

    def reply(self, seconds: float = 10, *, method: bytes | None = None) -> Reply:
        """The next reply to it, or to another request of the same transaction, such as its CANCEL."""
        wanted = re.compile(rb"CSeq: *[0-9]+ " + (method or self.request.partition(b" ")[0]))
        raw, seconds_received = self._caller.receive_one(
            lambda text: self.branch in text and wanted.search(text), seconds
        )
        status = re.match(rb"SIP/2\.0 ([0-9]{3}) (.*?)\r\n", raw)
        assert status, raw
        return Reply(int(status[1]), status[2].decode(errors="replace"), raw, seconds_received)


class Caller:
    """A UDP socket that speaks SIP with one proxy. A context manager."""

    def __init__(self, proxy_port: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # The usual one holds 166 replies, and nothing is read while a test places its calls.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.connect(("127.0.0.1", proxy_port))
        self._inbox: list[tuple[bytes, float]] = []
        self.port: int = self._socket.getsockname()[1]

    def invite(
        self,
        user: str = "nap",
        *,
        nap_ms: int | str = 1000,
        headers: bytes = b"",
        method: bytes = b"INVITE",
        from_value: bytes | None = None,
        call_id: bytes | None = None,
        via: bytes | None = None,
        send: bool = True,
    ) -> Call:
        """Place a call that asks for a nap.

        Args:
            user: What it asks for, see native.cfg.
            nap_ms: How long it is to nap.
            headers: More header lines, each with its CRLF.
            method: Another one than INVITE.
            from_value: Value of From; the usual one when not given.
            call_id: Value of Call-ID; a fresh one when not given.
            via: The whole first line or lines of Via, with CRLF.
            send: False: only make it.
        """
        number = next(_numbers)
        branch = b"z9hG4bK-%d-%06d" % (self.port, number)  # none begins with another: replies are found by it
        via = via if via is not None else b"Via: SIP/2.0/UDP 127.0.0.1:%d;branch=%s\r\n" % (self.port, branch)
        request = b"".join(
            (
                b"%s sip:%s@127.0.0.1 SIP/2.0\r\n" % (method, user.encode()),
                via.replace(b"BRANCH", branch),
                b"From: %s\r\n" % (from_value or b"<sip:caller@127.0.0.1>;tag=%d" % number),
                b"To: <sip:%s@127.0.0.1>\r\n" % user.encode(),
                b"Call-ID: %s\r\n" % (call_id or b"call-%d-%d" % (self.port, number)),
                b"CSeq: 1 %s\r\n" % method,
                b"Contact: <sip:caller@127.0.0.1:%d>\r\n" % self.port,
                b"Max-Forwards: 70\r\n",
                b"X-Nap-Ms: %s\r\n" % str(nap_ms).encode(),
                headers,
                b"Content-Length: 0\r\n\r\n",
            )
        )
        call = Call(self, request, branch)
        if send:
            call.send()
        return call

    def send(self, message: bytes) -> None:
        """Send a message to the proxy."""
        self._socket.send(message)

    def receive_one(self, is_wanted: Callable[[bytes], object], seconds: float) -> tuple[bytes, float]:
        """The next message that is wanted, and when it came; the others stay for later calls.

        Raises:
            TimeoutError: None came in time.
        """
        for index, (message, received_seconds) in enumerate(self._inbox):
            if is_wanted(message):
                del self._inbox[index]
                return message, received_seconds
        deadline = time.monotonic() + seconds
        while True:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            message = self._socket.recv(65536)
            received = (message, time.monotonic())
            if is_wanted(message):
                return received
            self._inbox.append(received)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
