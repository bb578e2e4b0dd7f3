"""Whoever watches the proxy with OPTIONS notices nothing while sidecar, shim or Redis is stopped."""

from __future__ import annotations

import itertools
import select
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.acceptance.sipp import Callers
from tests.acceptance.stack import Stack
from tests.support.processes import Process
from tests.support.redis_server import RedisServer

RATE = 100
"""Calls per second that nap meanwhile."""

MOST_MS = 10.0
"""What the 99th percentile has to keep within."""

_EVERY_SECONDS = 0.005
_PROBE_SECONDS = 2.5
_GIVEN_UP_MS = 1000.0
_numbers = itertools.count(1)


def answer_ms(proxy_port: int) -> list[float]:
    """Send OPTIONS every 5 ms, whether or not they are answered; how long each took, ascending.

    One that is not answered within a second counts as a second. A caller that itself sends late, because it had lost
    the CPU, measures from when it did send.
    """
    sent: dict[bytes, float] = {}
    took: list[float] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        probe.connect(("127.0.0.1", proxy_port))
        probe.setblocking(False)
        port = probe.getsockname()[1]

        def receive_until(end: float, *, all_answered_is_enough: bool = False) -> None:
            while (left := end - time.monotonic()) > 0 and not (all_answered_is_enough and not sent):
                if not select.select([probe], [], [], left)[0]:
                    continue
                answer = probe.recv(4096)
                received = time.monotonic()
                assert answer.startswith(b"SIP/2.0 200 "), answer
                began = sent.pop(answer.partition(b"Call-ID: ")[2].partition(b"\r\n")[0], None)
                if began is not None:
                    took.append((received - began) * 1000)

        next_sending = time.monotonic()
        for _ in range(round(_PROBE_SECONDS / _EVERY_SECONDS)):
            number = next(_numbers)
            call_id = b"options-%d-%d" % (port, number)
            request = (
                b"OPTIONS sip:127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:%d;branch=z9hG4bK-options-%d\r\n"
                b"From: <sip:probe@127.0.0.1>;tag=%d\r\nTo: <sip:127.0.0.1>\r\nCall-ID: %s\r\n"
                b"CSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n" % (port, number, number, call_id)
            )
            sent[call_id] = time.monotonic()
            probe.send(request)
            next_sending = max(next_sending + _EVERY_SECONDS, time.monotonic())
            receive_until(next_sending)
        receive_until(time.monotonic() + _GIVEN_UP_MS / 1000, all_answered_is_enough=True)
    return sorted(took + [_GIVEN_UP_MS] * len(sent))


@pytest.mark.timeout(120)
def test_options_are_answered_whatever_is_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGSTOP for 2.5 s, longer than the gate takes to shut for a silent sidecar; in between all is well again."""
    with (
        RedisServer(tmp_path) as redis,
        Stack(tmp_path, sidecar_flags=("--journal", redis.url)) as stack,
        Callers(
            tmp_path / "sipp",
            stack.proxy.address,
            scenario="answered.xml",
            rate=RATE,
            calls=RATE * 60,
            nap_ms=(200, 2000),
        ),
    ):
        stopped: dict[str, Process | None] = {
            "nothing": None,
            "the sidecar": stack.sidecar,
            "the shim": stack.shim,
            "redis": redis,
        }
        p99_ms: dict[str, float] = {}
        for name, process in stopped.items():
            stack.wait_gate(is_open=True)
            if process is not None:
                process.signal(signal.SIGSTOP)
            took = answer_ms(stack.proxy.ports.sip)
            if process is not None:
                process.signal(signal.SIGCONT)
            p99_ms[name] = took[len(took) * 99 // 100]
            with capsys.disabled():
                print(
                    f"\nOPTIONS while {name} is stopped, {RATE} naps/s: {len(took)} sent, "
                    f"answered after p50 {took[len(took) // 2]:.2f}, p99 {p99_ms[name]:.2f}, at most {took[-1]:.2f} ms"
                )
        assert all(value <= MOST_MS for value in p99_ms.values()), p99_ms
