"""A small SIP caller over UDP, for the demo: INVITE client transactions (RFC 3261 17.1.1) and their CANCEL."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field

T1_SECONDS = 0.5
"""Estimate of the round trip: the first retransmission comes after it (RFC 3261 17.1.1.1)."""

_TIMER_B_SECONDS = 64 * T1_SECONDS


@dataclass(slots=True)
class CallRecord:
    """What the caller saw of one call. Times are seconds on the monotonic clock; None: it did not happen."""

    call_id: str
    """Its Call-ID."""
    invite_at: float = 0.0
    """INVITE sent for the first time."""
    trying_at: float | None = None
    """First provisional response received."""
    cancel_at: float | None = None
    """CANCEL sent."""
    cancel_code: int | None = None
    """Response to the CANCEL."""
    final_at: float | None = None
    """First final response received."""
    final_code: int = 0
    """Its status code."""
    final_reason: str = ""
    """Its reason phrase."""
    final_headers: dict[str, str] = field(default_factory=dict)
    """Its header fields, names in lower case."""
    retransmissions: int = 0
    """How often the INVITE had to be sent again."""


class Caller(asyncio.DatagramProtocol):
    """Places calls from one UDP socket."""

    def __init__(self) -> None:
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: dict[str, tuple[CallRecord, asyncio.Event, str]] = {}

    @classmethod
    async def open(cls, host: str, port: int) -> Caller:
        """A caller whose calls all go to ``host:port``."""
        _, caller = await asyncio.get_running_loop().create_datagram_endpoint(cls, remote_addr=(host, port))
        return caller

    async def invite(self, user: str, *, cancel_after_seconds: float | None = None) -> CallRecord:
        """Place a call to `user` and return when its final response is there.

        Args:
            user: User part of the Request-URI.
            cancel_after_seconds: Send a CANCEL this long after the first provisional response.

        Raises:
            TimeoutError: No final response within 32 s.
        """
        call_id = f"{secrets.token_hex(8)}@sipnap.demo"
        record = CallRecord(call_id, time.monotonic())
        changed = asyncio.Event()
        request = self._request_lines(user, call_id)
        self._waiting[call_id] = (record, changed, request)
        try:
            async with asyncio.timeout(_TIMER_B_SECONDS):
                await self._send_until_answered(request, record, changed)
                if cancel_after_seconds is not None:
                    await asyncio.sleep(cancel_after_seconds)
                    record.cancel_at = time.monotonic()
                    self._send("CANCEL", request)
                while record.final_at is None or (record.cancel_at is not None and record.cancel_code is None):
                    changed.clear()
                    await changed.wait()
        finally:
            del self._waiting[call_id]
        return record

    def close(self) -> None:
        """Close the socket."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """Called by asyncio."""
        self._transport = transport

    def error_received(self, exc: Exception) -> None:
        """Called by asyncio: nobody is there; retransmissions go on until the time is over."""

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Called by asyncio."""
        now = time.monotonic()
        status_line, *lines = data.decode("utf-8", "replace").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        _, code_text, reason = [*status_line.split(" ", 2), "", ""][:3]
        waiting = self._waiting.get(headers.get("call-id", ""))
        if waiting is None or not code_text.isdigit():
            return
        record, changed, request = waiting
        code = int(code_text)
        if headers.get("cseq", "").endswith("CANCEL"):
            record.cancel_code = code
        elif code < 200:
            record.trying_at = record.trying_at or now
        else:
            if record.final_at is None:
                record.final_at, record.final_code, record.final_reason = now, code, reason
                record.final_headers = headers
            self._send("ACK", request, to=headers.get("to"))  # again for each repetition (RFC 3261 17.1.1.2)
        changed.set()

    async def _send_until_answered(self, request: str, record: CallRecord, changed: asyncio.Event) -> None:
        pause_seconds = T1_SECONDS
        self._send("INVITE", request)
        while record.trying_at is None and record.final_at is None:
            try:
                async with asyncio.timeout(pause_seconds):
                    await changed.wait()
            except TimeoutError:
                record.retransmissions += 1
                pause_seconds *= 2
                self._send("INVITE", request)

    def _request_lines(self, user: str, call_id: str) -> str:
        """A request without its method: CANCEL and ACK repeat the INVITE's fields (RFC 3261 9.1, 17.1.1.3)."""
        assert self._transport is not None
        host, port = self._transport.get_extra_info("sockname")[:2]
        peer_host, peer_port = self._transport.get_extra_info("peername")[:2]
        return "\r\n".join(
            [
                f"METHOD sip:{user}@{peer_host}:{peer_port} SIP/2.0",
                f"Via: SIP/2.0/UDP {host}:{port};rport;branch=z9hG4bK{secrets.token_hex(8)}",
                "Max-Forwards: 70",
                f"From: <sip:alice@{host}:{port}>;tag={secrets.token_hex(4)}",
                f"To: <sip:{user}@{peer_host}:{peer_port}>",
                f"Call-ID: {call_id}",
                "CSeq: 1 METHOD",
                f"Contact: <sip:alice@{host}:{port}>",
                "Content-Length: 0",
                "",
                "",
            ]
        )

    def _send(self, method: str, request: str, *, to: str | None = None) -> None:
        assert self._transport is not None
        lines = request.replace("METHOD", method).split("\r\n")
        if to is not None:
            lines = [f"To: {to}" if line.startswith("To: ") else line for line in lines]
        self._transport.sendto("\r\n".join(lines).encode())
