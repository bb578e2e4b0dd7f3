"""The shim's socket: what has come, and how long ago."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from sipnap.shim.kamailio.inbox import Address, Inbox, open_socket


class Ends:
    """A proxy's socket, and the shim's."""

    def __init__(self) -> None:
        self.proxy = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.proxy.bind(("127.0.0.1", 0))
        self.shim = open_socket(Address("127.0.0.1", 0), Address(*self.proxy.getsockname()))
        self.proxy.connect(self.shim.getsockname())
        self.now = 100.0
        self.wall_step_seconds = 0.0

    def inbox(self) -> Inbox:
        return Inbox(self.shim, clock=lambda: self.now, wall_clock_ns=self._wall_clock_ns)

    def _wall_clock_ns(self) -> int:
        return time.time_ns() + int(self.wall_step_seconds * 1e9)


@pytest.fixture
def ends() -> Iterator[Ends]:
    pair = Ends()
    yield pair
    pair.proxy.close()
    pair.shim.close()


def test_nothing_has_come(ends: Ends) -> None:
    assert ends.inbox().take(10) == []


def test_all_that_has_come_in_order_and_no_more_than_asked_for(ends: Ends) -> None:
    inbox = ends.inbox()
    for number in range(5):
        ends.proxy.send(b"%d" % number)
    assert [datagram for datagram, _ in inbox.take(3)] == [b"0", b"1", b"2"]
    assert [datagram for datagram, _ in inbox.take(3)] == [b"3", b"4"]
    assert inbox.take(3) == []


def test_the_largest_datagram_is_whole(ends: Ends) -> None:
    ends.proxy.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    largest = b"x" * 65_507
    ends.proxy.send(largest)
    ((datagram, _),) = ends.inbox().take(1)
    assert datagram == largest


def test_how_long_it_has_lain_there_by_the_kernels_stamp(ends: Ends) -> None:
    inbox = ends.inbox()
    ends.proxy.send(b"first")
    ends.now += 10
    ends.wall_step_seconds = 0.5
    ((_, lain_seconds),) = inbox.take(1)
    assert 0.5 <= lain_seconds < 5


def test_a_wall_clock_that_is_set_makes_no_nap_shorter_than_it_was(ends: Ends) -> None:
    inbox = ends.inbox()
    assert inbox.take(10) == []
    ends.proxy.send(b"first")
    ends.now += 0.25  # no longer ago nothing was there
    ends.wall_step_seconds = 3600.0
    ((_, lain_seconds),) = inbox.take(10)
    assert lain_seconds == pytest.approx(0.25)
    ends.proxy.send(b"second")
    ends.now += 0.25
    ends.wall_step_seconds = -3600.0
    assert inbox.take(10) == [(b"second", 0.0)]


def test_what_was_left_lying_has_lain_there_for_longer(ends: Ends) -> None:
    inbox = ends.inbox()
    ends.wall_step_seconds = 3600.0
    ends.proxy.send(b"first")
    ends.proxy.send(b"second")
    ends.now += 1.0
    ((_, first_seconds),) = inbox.take(1)
    ends.now += 1.0
    ((_, second_seconds),) = inbox.take(1)
    assert [first_seconds, second_seconds] == pytest.approx([1.0, 2.0])


def test_a_kernel_without_stamps(ends: Ends) -> None:
    ends.shim.setsockopt(socket.SOL_SOCKET, 35, 0)
    inbox = ends.inbox()
    ends.proxy.send(b"first")
    ends.now += 1.0
    assert inbox.take(10) == [(b"first", 0.0)]


def test_a_proxy_that_is_not_there_is_no_error(ends: Ends) -> None:
    port = ends.proxy.getsockname()[1]
    ends.proxy.close()
    ends.shim.send(b"heartbeat")  # the kernel answers with an ICMP error, which the next read reports
    ends.proxy = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ends.proxy.bind(("127.0.0.1", port))
    ends.proxy.connect(ends.shim.getsockname())
    ends.proxy.send(b"back")
    assert [datagram for datagram, _ in ends.inbox().take(10)] == [b"back"]
