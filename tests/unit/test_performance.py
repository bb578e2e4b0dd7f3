"""What the documentation says about performance is what the results say."""

from __future__ import annotations

from typing import Any

import pytest

from bench import figures, report, results
from bench.search import Search


def _calls(way: str, rate: int, **figures_: float) -> dict[str, Any]:
    return {
        "way": way, "rate": rate, "reached": 1.0, "proxy_us": 90.0, "shim_us": 0.0, "sidecar_us": 0.0, "host_us": 90.0,
        "late_p50_ms": 0.5, "late_p90_ms": 1.0, "late_p99_ms": 2.0, "late_p999_ms": 3.0, "early": 0, "failed": 0,
        "retransmissions": 0, **figures_,
    }  # fmt: skip


MACHINE = {
    "cores": 2, "processor": "some", "memory_gib": 4.0, "system": "Linux", "python": "3.11.0", "grpcio": "1.85.1",
    "time": "2026-01-01T00:00:00Z",
}  # fmt: skip


@pytest.fixture
def found() -> dict[str, Any]:
    rows = [
        _calls("async_ms_route", 4000, proxy_us=100.0, host_us=100.0),
        _calls("sipnap", 4000, proxy_us=80.0, shim_us=30.0, sidecar_us=20.0, host_us=130.0, late_p99_ms=3.5),
    ]
    capacity = [
        {"way": "async_ms_route", "capacity": 9000, "found": [9000]},
        {"way": "sipnap", "capacity": 8000, "found": [8000]},
    ]
    # The machine is half as fast in the second of three turns, and somebody disturbs sipnap in the third.
    raw = [
        {"what": "rate", "turn": turn, **row, "proxy_us": row["proxy_us"] * slower}
        for turn, both in enumerate([(1.0, 1.0), (2.0, 2.0), (1.0, 1.5)])
        for row, slower in zip(rows, both, strict=True)
    ]
    raw.append({"what": "search", "turn": 0, **rows[1], "proxy_us": 1.0})
    return {"capacity": {"machine": MACHINE, "settings": {}, "rows": rows, "capacity": capacity, "raw": raw}}


def test_the_page_is_what_the_kept_results_say() -> None:
    found = report.read(results.DIRECTORY)
    assert report.DOCUMENT.read_text() == report.document(found), "stale: run python -m bench report"


def test_the_readme_is_what_the_kept_results_say() -> None:
    readme = report.README.read_text()
    section = report.section(report.read(results.DIRECTORY))
    assert readme == report.with_section(readme, section), "stale: run python -m bench report"


def test_how_fast_the_machine_was_is_said(found: dict[str, Any]) -> None:
    assert "How fast the machine was" not in report.document(found), "it was not measured"
    for row, pace_ms in zip(found["capacity"]["raw"], (90.0, 100.0, 200.0, 110.0, 100.0, 95.0, 1.0), strict=True):
        row["pace_ms"] = pace_ms
    text = " ".join(report.document(found).split())
    assert "took 100 ms of CPU by median, from 90.0 to 200 ms." in text


def test_what_is_slower_is_said_and_what_is_faster_is_not(found: dict[str, Any]) -> None:
    slower = report.document(found).partition("## What is slower than the peer")[2].partition("\n## ")[0]
    assert "native script: clean capacity: 8,000 calls/s, against 9,000" in slower
    assert "CPU of the whole host per call: 130" in slower
    assert "lateness p99: 3.50 ms, against 2.00" in slower
    assert "CPU of the proxy" not in slower


def test_goals_are_kept_missed_or_not_measured(found: dict[str, Any]) -> None:
    targets = {target.what: target for target in figures.targets(found)}
    proxy = targets["proxy CPU per call at 4,000 calls/s / native's"]
    assert proxy.measured == pytest.approx(0.8)
    assert proxy.is_kept
    capacity = targets["clean calls/s, native script / `async_ms_route`"]
    assert not capacity.is_kept
    assert capacity.measured is not None
    assert targets["proxy CPU per call at 8,000 calls/s / native's"].measured is None
    assert "**missed**" in report.document(found)
    assert "not measured" in report.document(found)


def test_without_results_nothing_is_claimed() -> None:
    assert "Not measured yet" in report.document({})
    assert "Not measured yet" in report.section({})


def test_a_readme_without_marks_is_left_alone() -> None:
    with pytest.raises(ValueError, match="marks"):
        report.with_section("no marks", "text")


@pytest.mark.parametrize("capacity", [250, 3000, 6000, 7777, 20_000])
def test_the_search_finds_the_highest_clean_rate(capacity: int) -> None:
    search = Search("way", 6000)
    for _ in range(3):
        tries = 1
        while search.tried(search.rate <= capacity, 0.05):
            tries += 1
            assert tries < 40, "it does not end"
        search.end(0.05)
    assert len(search.found) == 3
    for rate in search.found:
        assert capacity - 0.06 * capacity - 100 <= rate <= capacity


def test_a_way_that_is_never_clean_has_no_capacity() -> None:
    search = Search("way", 6000)
    while search.tried(False, 0.05):
        pass
    search.end(0.05)
    assert search.found == [0]
