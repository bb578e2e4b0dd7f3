"""A SIP caller for tests: one UDP socket, requests made by hand, everything received kept in order."""

from __future__ import annotations

import itertools
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class Reply:
    """One response."""

    at: float
    datagram: bytes
    code: int
    reason: str
    fields: tuple[tuple[str, bytes], ...] = field(repr=False)

    @classmethod
    def parse(cls, datagram: bytes) -> Reply:
        status_line, *lines = datagram.partition(b"\r\n\r\n")[0].split(b"\r\n")
        version, code, reason = status_line.split(b" ", 2)
        assert version == b"SIP/2.0"
        fields = tuple((name.decode().lower(), value.strip()) for name, _, value in (s.partition(b":") for s in lines))
        return cls(time.monotonic(), datagram, int(code), reason.decode(), fields)

    def header(self, name: str) -> bytes:
        return next(value for field_name, value in self.fields if field_name == name.lower())

    @property
    def method(self) -> str:
        return self.header("cseq").split()[1].decode("ascii", "backslashreplace")


class SipCall:
    """One INVITE (or other) transaction of the caller."""

    def __init__(self, caller: SipCaller, user: str, method: str, more: bytes, from_: bytes | None) -> None:
        self.caller = caller
        self.method = method
        self.call_id = secrets.token_hex(8) + "@test"
        self.from_ = from_ or b"<sip:alice@127.0.0.1>"
        self.branch = "z9hG4bK" + secrets.token_hex(8)
        self.user = user
        self.more = more
        self.sent_at = 0.0

    def request(self, method: str, to: bytes | None = None) -> bytes:
        host, port = self.caller.address
        lines = [
            f"{method} sip:{self.user}@example.org SIP/2.0".encode(),
            f"Via: SIP/2.0/UDP {host}:{port};rport;branch={self.branch}".encode(),
            b"Max-Forwards: 70",
            b"From: " + self.from_ + b";tag=" + self.branch[-8:].encode(),
            b"To: " + (to or b"<sip:bob@example.org>"),
            f"Call-ID: {self.call_id}".encode(),
            f"CSeq: 1 {method}".encode(),
        ]
        if method == self.method and self.more:
            lines.append(self.more)
        return b"\r\n".join([*lines, b"Content-Length: 0", b"", b""])

    def send(self, method: str | None = None, to: bytes | None = None) -> None:
        self.sent_at = self.sent_at or time.monotonic()
        self.caller.socket.send(self.request(method or self.method, to))

    def await_code(self, *codes: int, seconds: float = ANSWER_SECONDS, method: str | None = None) -> Reply:
        """The first reply of this call with one of the codes."""
        return self.caller.await_reply(
            lambda reply: (
                reply.code in codes
                and reply.header("call-id") == self.call_id.encode()
                and reply.method == (method or self.method)
            ),
            seconds,
            f"{codes} for {self.user}",
        )

    def await_final(self, seconds: float = ANSWER_SECONDS, *, ack: bool = True) -> Reply:
        reply = self.await_code(*range(200, 700), seconds=seconds)
        if ack and self.method == "INVITE":
            self.send("ACK", reply.header("to"))
        return reply

    @property
    def replies(self) -> list[Reply]:
        self.caller.read_all()
        return [reply for reply in self.caller.replies if reply.header("call-id") == self.call_id.encode()]


class SipCaller:
    """Places calls to one front end."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.connect((host, port))
        self.address: tuple[str, int] = self.socket.getsockname()
        self.replies: list[Reply] = []

    def call(self, user: str, *, method: str = "INVITE", more: bytes = b"", from_: bytes | None = None) -> SipCall:
        """A call whose first request has been sent."""
        call = SipCall(self, user, method, more, from_)
        call.send()
        return call

    def await_reply(self, wanted: Callable[[Reply], bool], seconds: float, what: str) -> Reply:
        deadline = time.monotonic() + seconds
        seen = 0
        while True:
            for reply in itertools.islice(self.replies, seen, None):
                if wanted(reply):
                    return reply
            seen = len(self.replies)
            left = deadline - time.monotonic()
            assert left > 0, f"no {what} in {seconds:g} s; got {[(r.code, r.reason) for r in self.replies[-10:]]}"
            self.read(left)

    def read_all(self) -> None:
        """Take in whatever has arrived."""
        while self.read(0.0):
            pass

    def read(self, seconds: float) -> bool:
        """Take in one datagram; False if none came in time."""
        self.socket.settimeout(seconds)
        try:
            self.replies.append(Reply.parse(self.socket.recv(65535)))
        except (TimeoutError, BlockingIOError, ConnectionRefusedError):
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()
