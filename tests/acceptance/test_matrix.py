"""The failure matrix: what dies under 500 calls/s, and that each caller gets its answer, once, and never early."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from sipnap.client import sync
from sipnap.client.keys import SuspensionKey
from sipnap.shim.kamailio.nap_request import continue_request, nap_name
from sipnap.v1 import suspension_pb2 as pb
from tests.acceptance.caller import Caller
from tests.acceptance.matrix import EARLIER_LIFE, RATE, RESUMED_TWICE, Load, Row, check, seen_calls
from tests.acceptance.stack import Stack
from tests.support.processes import wait_until
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints a line that is seen whether or not the test passes."""

    def print_line(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}")

    return print_line


@pytest.fixture
def sqlite(tmp_path: Path) -> tuple[str, str]:
    """Flags for a journal on disk."""
    return ("--journal", f"sqlite:{tmp_path}/journal.sqlite3")


def wait_nothing_held(stack: Stack) -> None:
    """Wait until the sidecar holds nothing any more, not even what the proxy ended through the backstop."""
    wait_until(lambda: not stack.held(), 10, lambda: f"nothing is held\n{stack.sidecar.tail()}\n{stack.shim.tail()}")


def test_what_must_not_happen_is_noticed(tmp_path: Path) -> None:
    """The proxy's script says so when it resumes a transaction twice, or gets a continue of an earlier life."""
    with Stack(tmp_path) as stack, Caller(stack.proxy.ports.sip) as caller:
        assert caller.invite("nap", nap_ms=100).final().code == 404
        assert RESUMED_TWICE not in stack.proxy.output()
        assert caller.invite("echo", nap_ms=100).final().code == 404
        stack.proxy.wait_output(RESUMED_TWICE, 2)

        stack.shim.kill()
        assert EARLIER_LIFE not in stack.proxy.output()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as by_hand:
            by_hand.bind(("127.0.0.1", stack.proxy.ports.shim))
            name = nap_name(SuspensionKey("", stack.boot_epoch() - 1, 1, 1, 1))
            by_hand.sendto(continue_request(name, pb.CONTINUE_STATUS_OK), ("127.0.0.1", stack.proxy.ports.nap))
            stack.proxy.wait_output(EARLIER_LIFE, 2)


def test_a_row_counts_what_sipp_has_logged(tmp_path: Path) -> None:
    """Naps of 1 s, all asked for at second 100; what the rows below hope not to find is found."""
    lines: list[str] = []

    def log(call: str, second: float, first_line: str, more: str = "") -> None:
        logged = datetime.fromtimestamp(second).astimezone()
        lines.append(
            f"{'-' * 47} {logged:%Y-%m-%d %H:%M:%S.%f}\nUDP message received [9] bytes :\n\n"
            f"{first_line}\nCall-ID: {call}\nCSeq: 1 INVITE\n{more}\n\n"
        )

    def answered(call: str, second: float, status: str) -> None:
        log(call, second, "SIP/2.0 404 Resumed", f"X-Status: {status}")

    names = ("ok", "again", "early", "lost", "refused", "408", "twice", "old life", "none", "failed")
    for name in names:
        log(name.replace(" ", "-"), 100.1, "INVITE sip:nap@x SIP/2.0", "X-Nap-Ms: 1000\nX-Sent: 2000-01-01\t0\t100.0")
    answered("ok", 101.2, "ok")
    answered("again", 101.2, "ok")
    answered("again", 101.7, "ok")
    answered("early", 100.9, "ok")
    answered("lost", 102.0, "lost")
    log("refused", 100.2, "SIP/2.0 503 Refused At The Door")
    log("408", 105.0, "SIP/2.0 408 Request Timeout")
    answered("twice", 102.0, "lost")
    answered("twice", 102.1, "ok")
    log("old-life", 100.2, "SIP/2.0 100 trying")
    log("none", 103.0, "SIP/2.0 100 trying")
    answered("failed", 100.5, "failed")
    (tmp_path / "messages.log").write_text("".join(lines))

    row = Row.of("all", seen_calls(tmp_path / "messages.log"), [], restarted_ms=102_500)
    assert (row.calls, row.ok, row.failed, row.lost, row.refused) == (len(names), 3, 1, 2, 1)
    assert (row.old_life, row.unanswered, row.twice, row.early) == (1, 2, 1, 1)
    assert [round(late) for late in row.late_ms] == [-100, 200, 200, 1000, 1000]


def test_sidecar_killed_and_restarted(tmp_path: Path, sqlite: tuple[str, str], say: Callable[[str], None]) -> None:
    with Stack(tmp_path, sidecar_flags=sqlite) as stack, Load(tmp_path / "sipp", stack, seconds=7) as load:
        load.wait_some_time()
        stack.sidecar.kill()
        stack.restart_sidecar()
        row = Row.of("sidecar killed and restarted", load.calls(), [stack.proxy])
        check(row, say)
        assert row.ok > row.lost
        assert row.ok_last_second > 0.9
        wait_nothing_held(stack)


def test_sidecar_killed_for_good(tmp_path: Path, sqlite: tuple[str, str], say: Callable[[str], None]) -> None:
    with Stack(tmp_path, sidecar_flags=sqlite) as stack, Load(tmp_path / "sipp", stack, seconds=6) as load:
        load.wait_some_time()
        stack.sidecar.kill()
        row = Row.of("sidecar killed for good", load.calls(), [stack.proxy])
        check(row, say)
        assert row.lost > 0
        assert row.refused > 0
        assert row.ok_last_second == 0


def test_shim_killed_and_restarted(tmp_path: Path, sqlite: tuple[str, str], say: Callable[[str], None]) -> None:
    with Stack(tmp_path, sidecar_flags=sqlite) as stack, Load(tmp_path / "sipp", stack, seconds=7) as load:
        load.wait_some_time()
        stack.shim.kill()
        load.wait_seconds(1)
        stack.restart_shim()
        row = Row.of("shim killed, restarted after 1 s", load.calls(), [stack.proxy])
        check(row, say)
        assert row.ok > row.lost
        assert row.ok_last_second > 0.9
        wait_nothing_held(stack)


def test_both_killed_and_restarted(tmp_path: Path, sqlite: tuple[str, str], say: Callable[[str], None]) -> None:
    with Stack(tmp_path, sidecar_flags=sqlite) as stack, Load(tmp_path / "sipp", stack, seconds=8) as load:
        load.wait_some_time()
        stack.shim.kill()
        stack.sidecar.kill()
        stack.restart_sidecar()
        stack.restart_shim()
        row = Row.of("sidecar and shim killed and restarted", load.calls(), [stack.proxy])
        check(row, say)
        assert row.ok > row.lost
        assert row.ok_last_second > 0.9
        wait_nothing_held(stack)


def test_redis_stopped_for_5_s(tmp_path: Path, say: Callable[[str], None]) -> None:
    with (
        RedisServer(tmp_path) as redis,
        Stack(tmp_path, sidecar_flags=("--journal", redis.url)) as stack,
        # At most 3.5 s until it is stopped, 5 s stopped, 1 s until it is asked again; then the second that counts.
        Load(tmp_path / "sipp", stack, seconds=12) as load,
    ):
        load.wait_some_time()
        redis.signal(signal.SIGSTOP)
        load.wait_seconds(5)
        redis.signal(signal.SIGCONT)
        row = Row.of("redis stopped for 5 s", load.calls(), [stack.proxy])
        check(row, say, may_fail=True)
        assert row.refused > 0, "the door was shut for a while"
        # Those that Redis did not confirm any more until its silence was noticed, after 2 s. All others were continued.
        assert row.lost + row.failed < 3 * RATE
        assert row.ok_last_second > 0.9
        wait_nothing_held(stack)


def test_proxy_restarted(tmp_path: Path, sqlite: tuple[str, str], say: Callable[[str], None]) -> None:
    """Calls of its earlier life get no answer from anybody; the sidecar forgets them without asking the proxy."""
    with (
        Stack(tmp_path, sidecar_flags=sqlite) as stack,
        Load(tmp_path / "sipp", stack, seconds=9, patience_ms=8000) as load,
    ):
        load.wait_some_time()
        first = stack.proxy
        first_epoch = stack.boot_epoch()
        first.kill()
        counters = stack.counters()
        ended_before = counters.gone + counters.applied
        held = len(stack.held())
        restarted_ms = time.time() * 1000
        stack.restart_proxy()
        forgotten = int(stack.shim.wait_output(r"proxy restarted .*forgotten=([0-9]+)", 5)[1])
        assert forgotten > 0
        wait_until(
            lambda: not any(info.suspension.key.boot_epoch == first_epoch for info in stack.held()),
            2,
            "the sidecar forgets the earlier life",
        )
        counters = stack.counters()
        assert counters.gone > 0
        assert counters.gone + counters.applied - ended_before >= held  # the answers of some were on their way
        sent_until_noticed = stack.proxy.output().count(EARLIER_LIFE)
        row = Row.of("proxy restarted", load.calls(), [first, stack.proxy], restarted_ms=restarted_ms)
        check(row, say)
        assert stack.proxy.output().count(EARLIER_LIFE) == sent_until_noticed
        assert row.old_life > 0
        assert row.ok_last_second > 0.9
        wait_nothing_held(stack)


def test_owner_of_two_sidecars_killed_for_good(tmp_path: Path, say: Callable[[str], None]) -> None:
    with (
        RedisServer(tmp_path) as redis,
        Stack(tmp_path, sidecar_flags=("--journal", redis.url), has_second_sidecar=True) as stack,
        Load(tmp_path / "sipp", stack, seconds=7) as load,
    ):
        assert stack.second_sidecar is not None
        load.wait_some_time()
        stack.sidecar.kill()
        row = Row.of("owner of two sidecars on one redis killed for good", load.calls(), [stack.proxy])
        check(row, say)
        assert row.ok > row.lost
        assert row.ok_last_second > 0.9
        with sync.Client(stack.second_sidecar.target) as client:
            assert client.status().counters.applied > 0
            wait_until(lambda: not list(client.list()), 10, "nothing is held")
