"""The UDP socket between shim and proxy: the datagrams that lie in it, and how long each has lain there.

The socket is looked at some hundred times a second, and not for each datagram: a nap's time has to be counted from when
the proxy has sent it. The kernel stamps each datagram as it arrives (Linux: socket(7), SO_TIMESTAMPNS).
"""

from __future__ import annotations

import logging
import socket
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

_LARGEST_DATAGRAM_BYTES = 65_536
_RECEIVE_BUFFER_BYTES = 16 * 1024 * 1024
_SMALL_BUFFER_BYTES = 2 * 1024 * 1024
_SO_RCVBUFFORCE = 33  # Linux: beyond net.core.rmem_max, for those with CAP_NET_ADMIN
_SO_TIMESTAMPNS = 35
_ANCILLARY_BYTES = 64
_TIMESPEC = struct.Struct("@qq")

log = logging.getLogger("sipnap.shim.kamailio")


class Address(NamedTuple):
    """A UDP address of this machine."""

    host: str
    """Loopback, as a number: ``127.0.0.1``."""
    port: int
    """1 to 65535."""

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Inbox:
    """What has come for the shim. The stamps are of the wall clock, which may be set: they count within limits only."""

    def __init__(
        self,
        opened: socket.socket,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Take over a socket that does not block.

        Args:
            opened: The socket.
            clock: Monotonic seconds.
            wall_clock_ns: What the kernel stamps with, nanoseconds since 1970.
        """
        self._receive = opened.recvmsg
        self._clock = clock
        self._wall_clock_ns = wall_clock_ns
        self._emptied_seconds = clock()

    def take(self, most: int) -> list[tuple[bytes, float]]:
        """At most so many datagrams, in order, and how many seconds each has lain here. Empty: nothing has come.

        Never more than it really was: not longer than since the last time that nothing was here.
        """
        receive = self._receive
        received = []
        is_empty = False
        for _ in range(most):
            try:
                received.append(receive(_LARGEST_DATAGRAM_BYTES, _ANCILLARY_BYTES))
            except BlockingIOError:
                is_empty = True
                break
            except OSError:
                continue  # nobody has the proxy's port: the answer to something we sent; the heartbeat will tell
        now, now_ns = self._clock(), self._wall_clock_ns()
        most_seconds = now - self._emptied_seconds
        if is_empty:
            self._emptied_seconds = now
        taken = []
        for datagram, ancillary, _, _ in received:
            lain_seconds = 0.0
            if ancillary:
                seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
                lain_seconds = min(max((now_ns - nanoseconds - seconds * 1_000_000_000) * 1e-9, 0.0), most_seconds)
            taken.append((datagram, lain_seconds))
        return taken


def open_socket(listen: Address, proxy: Address) -> socket.socket:
    """A socket that does not block, with room for a burst, connected: the kernel drops what comes from anywhere else.

    Args:
        listen: Where the proxy sends to.
        proxy: The proxy's NAP socket.

    Raises:
        OSError: The address cannot be bound.
    """
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        # A burst of the proxy's must fit while we are busy: it does not wait for us.
        try:
            opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        except PermissionError:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        size = opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        if size < _SMALL_BUFFER_BYTES:
            log.warning(
                "small receive buffer bytes=%d: bursts may be lost, and the naps in them end late; "
                "set net.core.rmem_max=%d with sysctl",
                size,
                _RECEIVE_BUFFER_BYTES,
            )
        opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        opened.setblocking(False)
        opened.bind(listen)
        opened.connect(proxy)
    except BaseException:
        opened.close()
        raise
    return opened
