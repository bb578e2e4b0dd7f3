"""Some calls of a load whose lateness is measured well: ``python -m bench.probe``, a process of its own.

SIPp tells time in steps of 4 ms. This caller takes the time just before each INVITE and has the kernel stamp each
answer as it arrives, so what it finds is what a caller feels, in microseconds. The proxy's script adds what it saw
itself: its clock just before the nap, and at the start of the resumed route. That is where "early" is decided, since
nothing but the nap lies between the two. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import select
import socket
import struct
import sys
import time
from typing import Any

_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@qq")
_NAPPED = re.compile(rb"\r\nX-Napped: ([0-9]+)\.([0-9]+) ([0-9]+)\.([0-9]+)\r\n")
_TO = re.compile(rb"\r\nTo:[ ]*([^\r\n]*)\r\n", re.IGNORECASE)
_CALL = re.compile(rb"\r\nCall-ID:[ ]*probe-([0-9]+)-", re.IGNORECASE)
_ANSWER_SECONDS = 10.0
_SDP = (
    b"v=0\r\no=probe 53655765 2353687637 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    b"m=audio 6000 RTP/AVP 0 8\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\n"
)


class Prober:
    """One socket, one call after the other, nothing sent twice."""

    def __init__(self, proxy_port: int, nap_ms: int, first_user: int) -> None:
        self._first_user = first_user
        self._nap_ns = nap_ms * 1_000_000
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.connect(("127.0.0.1", proxy_port))
        self._socket.setblocking(False)
        self._address = b"127.0.0.1:%d" % self._socket.getsockname()[1]
        self._proxy = b"127.0.0.1:%d" % proxy_port
        self._sent_ns: dict[int, int] = {}
        self.late_ms: list[float] = []
        """Of each call: from INVITE to final answer, minus the nap."""
        self.proxy_late_ms: list[float] = []
        """Of each call: from suspend to resumed route, by the proxy's own clock, minus the nap."""
        self.failed = 0
        """Calls that were answered otherwise, or not at all."""

    def call(self, number: int) -> None:
        """Send one INVITE."""
        to = b"<sip:%s@%s>" % (self._user(number), self._proxy)
        invite = self._request(b"INVITE", number, to, b"z9hG4bKp%d" % number)
        invite += b"Content-Type: application/sdp\r\nContent-Length: %d\r\n\r\n" % len(_SDP) + _SDP
        self._sent_ns[number] = time.time_ns()
        self._socket.send(invite)

    def read(self, until: float) -> None:
        """Take what arrives until `until` on the monotonic clock."""
        while True:
            ready, _, _ = select.select([self._socket], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return
            try:
                data, ancillary, _, _ = self._socket.recvmsg(4096, 64)
            except OSError:
                continue
            seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2][: _TIMESPEC.size])
            self._answered(data, seconds * 1_000_000_000 + nanoseconds)

    def wait_for_last(self) -> None:
        """Take answers until all are there, or too late."""
        end = time.monotonic() + self._nap_ns / 1e9 + _ANSWER_SECONDS
        while self._sent_ns and time.monotonic() < end:
            self.read(min(end, time.monotonic() + 0.05))
        self.failed += len(self._sent_ns)

    def _answered(self, answer: bytes, arrived_ns: int) -> None:
        call = _CALL.search(answer)
        if call is None or answer.startswith(b"SIP/2.0 1"):
            return
        number = int(call[1])
        to = _TO.search(answer)
        ack = self._request(b"ACK", number, to[1] if to else b"", b"z9hG4bKp%d" % number)
        self._socket.send(ack + b"Content-Length: 0\r\n\r\n")
        sent_ns = self._sent_ns.pop(number, None)
        if sent_ns is None:
            return
        napped = _NAPPED.search(answer)
        if napped is None or not answer.startswith(b"SIP/2.0 404"):
            self.failed += 1
            return
        self.late_ms.append((arrived_ns - sent_ns - self._nap_ns) / 1e6)
        before_us = int(napped[1]) * 1_000_000 + int(napped[2])
        after_us = int(napped[3]) * 1_000_000 + int(napped[4])
        self.proxy_late_ms.append((after_us - before_us) / 1e3 - self._nap_ns / 1e6)

    def _user(self, number: int) -> bytes:
        return b"%d" % (self._first_user + number) if self._first_user else b"probe"

    def _request(self, method: bytes, number: int, to: bytes, branch: bytes) -> bytes:
        return (
            b"%s sip:%s@%s SIP/2.0\r\nVia: SIP/2.0/UDP %s;branch=%s\r\nFrom: <sip:caller@%s>;tag=p%d\r\n"
            b"To: %s\r\nCall-ID: probe-%d-%s\r\nCSeq: 1 %s\r\nContact: <sip:caller@%s>\r\nMax-Forwards: 70\r\n"
            % (method, self._user(number), self._proxy, self._address, branch, self._address, number, to, number,
               self._address, method, self._address)
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--proxy-port", type=int, required=True, help="where the proxy takes SIP on the loopback")
    parser.add_argument("--rate", type=float, required=True, help="calls/s")
    parser.add_argument("--seconds", type=float, required=True, help="for how long calls are placed")
    parser.add_argument("--nap-ms", type=int, required=True, help="how long each of them naps")
    parser.add_argument(
        "--first-user", type=int, default=0, help="call this number, and on from it; 0: the user 'probe'"
    )
    arguments = parser.parse_args()
    print(json.dumps(_probe(arguments)))
    return 0


def _probe(arguments: argparse.Namespace) -> dict[str, Any]:
    prober = Prober(arguments.proxy_port, arguments.nap_ms, arguments.first_user)
    started = time.monotonic()
    calls = int(arguments.rate * arguments.seconds)
    for number in range(calls):
        # Not in step with any tick of the proxy's: 0.618 is as far from all fractions as can be.
        prober.read(started + (number + number * 0.618034 % 1.0 / 2) / arguments.rate)
        prober.call(number)
    prober.wait_for_last()
    return {
        "calls": calls,
        "failed": prober.failed,
        "late_ms": prober.late_ms,
        "proxy_late_ms": prober.proxy_late_ms,
    }


if __name__ == "__main__":
    sys.exit(main())
