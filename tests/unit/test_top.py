"""What `sipnap top` and `sipnap workers list` make of the figures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sipnap.client.commands.top import top_lines
from sipnap.client.commands.workers_list import group_lines
from sipnap.client.distribution import count_of, mean_seconds, quantile_text, since, time_text
from sipnap.v1 import admin_service_pb2 as admin

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


def distribution(*counts: int, total_seconds: float = 0.0) -> admin.Distribution:
    """Bounds of 10 ms, 100 ms, 2 s, and none."""
    made = admin.Distribution()
    for bound_ms, count in zip((10, 100, 2000, None), counts, strict=True):
        bucket = made.buckets.add(count=count)
        if bound_ms is not None:
            bucket.upper_bound.FromMilliseconds(bound_ms)
    made.total.FromNanoseconds(int(total_seconds * 1e9))
    return made


def status(accepted: int, succeeded: int, run: admin.Distribution, late: admin.Distribution) -> admin.GetStatusResponse:
    made = admin.GetStatusResponse(
        version="0.1.0",
        instance_id="abc",
        pending=3,
        counters=admin.Counters(accepted=accepted),
        worker_groups=[
            admin.WorkerGroupStatus(
                name="lookups", kind=admin.WORKER_KIND_ASYNC, workers=4, busy=3, queued=2, max_queued=10,
                succeeded=succeeded, failed=2, run=run,
            ),
            admin.WorkerGroupStatus(name="far", kind=admin.WORKER_KIND_REMOTE),
        ],
        lateness=late,
    )  # fmt: skip
    made.front_ends.add(front_end_id="kamailio", connected=True)
    made.start_time.FromDatetime(NOW - timedelta(seconds=100))
    return made


def test_rates_are_those_of_the_interval() -> None:
    before = status(100, 50, distribution(0, 50, 0, 0, total_seconds=1.0), distribution(10, 0, 0, 0))
    after = status(300, 60, distribution(0, 60, 0, 0, total_seconds=1.5), distribution(10, 1, 0, 0, total_seconds=0.02))
    lines = list(top_lines(before, after, "127.0.0.1:5600", 2.0, NOW))
    rates = " cancelled 0.0 applied 0.0 gone 0.0 rejected 0.0 lost 0.0 slept 0.0"
    assert [" ".join(line.split()) for line in lines] == [
        "12:00:00 127.0.0.1:5600 sipnap 0.1.0 serving, up 1 min 40 s",
        "pending 3 continuing 0 sleeping 0 sessions 1",
        "per second: accepted 100.0 refused 0.0" + rates,
        "late by: mean 20 ms p99 ≤ 100 ms (1 timers)",
        "",
        "GROUP KIND WORKERS BUSY LOAD QUEUED OK/S FAILED/S TIMEOUT/S REFUSED/S RETRIED/S WAIT RUN",
        "lookups async 4 3 75% 2 5.0 0.0 0.0 0.0 0.0 - 50 ms",
        "far remote 0 0 - 0 0.0 0.0 0.0 0.0 0.0 - -",
    ]


def test_the_first_look_shows_rates_since_the_start() -> None:
    lines = list(top_lines(None, status(300, 60, distribution(0, 0, 0, 0), admin.Distribution()), "s", 2.0, NOW))
    assert "accepted 3.0" in lines[2]
    assert not any("late by" in line for line in lines), "no timer was fired yet"


def test_the_list_of_groups() -> None:
    groups = status(0, 60, distribution(0, 99, 1, 0, total_seconds=1.5), admin.Distribution()).worker_groups
    rows = list(group_lines(groups))
    assert rows[1].split() == [
        "lookups", "async", "4", "3", "2/10", "60", "2", "0", "0", "0", "0", "-", "15", "ms", "/", "≤", "100", "ms",
    ]  # fmt: skip
    assert rows[2].split()[-2:] == ["-", "-"]


@pytest.mark.parametrize(
    ("quantile", "text"), [(0.01, "≤ 10 ms"), (0.5, "≤ 100 ms"), (0.9, "≤ 2 s"), (0.95, "> 2 s"), (1.0, "> 2 s")]
)
def test_quantiles_are_bounds(quantile: float, text: str) -> None:
    assert quantile_text(distribution(10, 40, 40, 10), quantile) == text


def test_nothing_has_no_quantile_and_no_mean() -> None:
    nothing = distribution(0, 0, 0, 0)
    assert (quantile_text(nothing, 0.99), mean_seconds(nothing), count_of(nothing)) == ("-", None, 0)
    assert quantile_text(admin.Distribution(), 0.99) == "-"


def test_what_was_added() -> None:
    before, after = distribution(1, 2, 0, 0, total_seconds=1.0), distribution(1, 5, 0, 1, total_seconds=4.0)
    added = since(before, after)
    assert ([bucket.count for bucket in added.buckets], mean_seconds(added)) == ([0, 3, 0, 1], 0.75)


@pytest.mark.parametrize(("seconds", "text"), [(0.0004, "0.4 ms"), (0.01234, "12.3 ms"), (2.5, "2.5 s")])
def test_short_times(seconds: float, text: str) -> None:
    assert time_text(seconds) == text
