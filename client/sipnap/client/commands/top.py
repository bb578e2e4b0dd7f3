"""`sipnap top`: what a sidecar does right now, refreshed."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from sipnap.client.commands import target
from sipnap.client.commands.json_form import short_name
from sipnap.client.distribution import count_of, mean_seconds, quantile_text, since, time_text
from sipnap.client.errors import Unavailable
from sipnap.client.settings import count, seconds
from sipnap.client.table import duration_text, shown, table
from sipnap.v1 import admin_service_pb2 as admin

SUMMARY = "watch a running sidecar: rates, lateness, worker groups"
EPILOG = """\
examples:
  sipnap top
  sipnap top --interval 5
  sipnap top --interval 10 --count 6 > top.txt      for a script: plain text, one block after the other, then it ends

Rates are those of the last interval; in the first block those since the sidecar's start. Ctrl-C ends it.
"""

_CLEAR = "\x1b[H\x1b[2J"
_RATES = ("accepted", "refused", "cancelled", "applied", "gone", "rejected", "lost", "slept")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--interval", metavar="SECONDS", type=seconds, default=2.0, help="how often to look (default: 2)"
    )
    parser.add_argument(
        "--count", metavar="N", type=count, default=None, help="end after so many looks (default: go on until Ctrl-C)"
    )
    target.configure(parser)


def run(arguments: argparse.Namespace) -> int:
    """Look, print, wait, until it has been often enough."""
    is_terminal = sys.stdout.isatty()
    before: admin.GetStatusResponse | None = None
    looks = itertools.count(1) if arguments.count is None else range(1, arguments.count + 1)
    with target.connect(arguments) as client:
        for number in looks:
            if number > 1:
                time.sleep(arguments.interval)
            try:
                status = client.status()
            except Unavailable as problem:
                if number == 1:
                    raise
                print(f"{datetime.now(UTC):%H:%M:%S}  {shown(str(problem))}", flush=True)  # it may come back
                continue
            if before is not None and before.instance_id != status.instance_id:
                before = None  # it was started anew
            text = "\n".join(top_lines(before, status, arguments.sidecar, arguments.interval, datetime.now(UTC)))
            print(f"{_CLEAR}{text}" if is_terminal else text + "\n", flush=True)
            before = status
    return 0


def top_lines(
    before: admin.GetStatusResponse | None,
    status: admin.GetStatusResponse,
    sidecar: str,
    interval_seconds: float,
    now: datetime,
) -> Iterator[str]:
    """One look, in lines; rates are those since `before`, or since the sidecar's start if that is None."""
    up_seconds = max(0.001, (now - status.start_time.ToDatetime(UTC)).total_seconds())
    passed_seconds = up_seconds if before is None else interval_seconds
    before = before if before is not None else admin.GetStatusResponse()
    state = "draining" if status.draining else "serving"
    yield f"{now:%H:%M:%S}  {shown(sidecar)}  sipnap {shown(status.version)}  {state}, up {duration_text(up_seconds)}"
    yield (
        f"pending {status.pending}  continuing {status.continuing}  sleeping {status.sleeping}  "
        f"sessions {sum(front_end.connected for front_end in status.front_ends)}"
    )
    rates = (
        f"{name} {(getattr(status.counters, name) - getattr(before.counters, name)) / passed_seconds:.1f}"
        for name in _RATES
    )
    yield "per second: " + "  ".join(rates)
    late = since(before.lateness, status.lateness) if before.lateness.buckets else status.lateness
    mean = mean_seconds(late)
    if mean is not None:
        yield f"late by: mean {time_text(mean)}  p99 {quantile_text(late, 0.99)}  ({count_of(late)} timers)"
    yield ""
    groups_before = {group.name: group for group in before.worker_groups}
    yield from table(
        (
            "GROUP", "KIND", "WORKERS", "BUSY", "LOAD", "QUEUED", "OK/S", "FAILED/S", "TIMEOUT/S", "REFUSED/S",
            "RETRIED/S", "WAIT", "RUN",
        ),
        [
            _group_row(groups_before.get(group.name, admin.WorkerGroupStatus()), group, passed_seconds)
            for group in status.worker_groups
        ],
    )  # fmt: skip


def _group_row(
    before: admin.WorkerGroupStatus, group: admin.WorkerGroupStatus, passed_seconds: float
) -> tuple[str, ...]:
    def rate(name: str) -> str:
        return f"{(getattr(group, name) - getattr(before, name)) / passed_seconds:.1f}"

    def mean(name: str) -> str:
        was, is_now = getattr(before, name), getattr(group, name)
        found = mean_seconds(since(was, is_now) if was.buckets else is_now)
        return "-" if found is None else time_text(found)

    return (
        shown(group.name),
        short_name(admin.WorkerKind.DESCRIPTOR, group.kind),
        str(group.workers),
        str(group.busy),
        f"{group.busy / group.workers:.0%}" if group.workers else "-",
        str(group.queued),
        *map(rate, ("succeeded", "failed", "timed_out", "refused", "retried")),
        mean("wait"),
        mean("run"),
    )
