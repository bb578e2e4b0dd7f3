"""What the results say: figures with a bound that they were meant to keep, and comparisons with a peer."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
Results = Mapping[str, Mapping[str, Any]]
"""The content of each JSON file by the name of its benchmark; those that are missing were not measured."""


@dataclass(frozen=True, slots=True)
class Target:
    """A figure and the bound that it was meant to keep."""

    what: str
    """The figure, with its unit."""
    bound: float
    """As much as it may be, or has to be."""
    is_most: bool
    """Whether the bound is an upper one."""
    measured: float | None
    """None: not measured."""

    @property
    def is_kept(self) -> bool:
        """Whether it was measured and is within the bound."""
        if self.measured is None:
            return False
        return self.measured <= self.bound if self.is_most else self.measured >= self.bound


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of sipnap beside that of a peer."""

    what: str
    """The figure."""
    unit: str
    """Of both."""
    ours: float
    """Of sipnap."""
    peers: float
    """Of the peer."""
    peer: str
    """Who that is."""
    more_is_better: bool = False
    """Whether the greater one wins."""

    @property
    def is_worse(self) -> bool:
        """Whether sipnap is the slower, the later or the greater one, by more than a hundredth."""
        if self.more_is_better:
            return self.ours < self.peers * 0.99
        return self.ours > self.peers * 1.01


def rows_of(found: Results, benchmark: str, section: str = "rows") -> Sequence[Row]:
    """A section of a benchmark's result; empty if there is none."""
    rows: Sequence[Row] = found.get(benchmark, {}).get(section, ())
    return rows


def pick(rows: Sequence[Row], **wanted: Any) -> Row | None:
    """The row that has these values, if there is one."""
    return next((row for row in rows if all(row.get(key) == value for key, value in wanted.items())), None)


def targets(found: Results) -> list[Target]:
    """All figures that were meant to keep a bound."""
    return [*_capacity(found), *_lateness(found), *_timers(found), *_others(found)]


def comparisons(found: Results) -> list[Comparison]:
    """All figures that a peer has as well."""
    return [*_calls_beside_native(found), *_timers_beside_peers(found), *_lookups_beside_module(found)]


def _value(row: Row | None, key: str) -> float | None:
    return None if row is None else row[key]


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def _at(found: Results, way: str, rate: int, figure: Callable[[Row], float]) -> float | None:
    row = pick(rows_of(found, "capacity"), way=way, rate=rate)
    return None if row is None else figure(row)


def _beside_native(found: Results, way: str, rate: int, key: str) -> float | None:
    """Median of the turns' ratios to native's: within a turn the machine was as fast for both."""
    raw = [row for row in rows_of(found, "capacity", "raw") if row["what"] == "rate" and row["rate"] == rate]
    peers = {row["turn"]: row[key] for row in raw if row["way"] == "async_ms_route"}
    ratios: list[float] = [row[key] / peers[row["turn"]] for row in raw if row["way"] == way and row["turn"] in peers]
    return statistics.median(ratios) if ratios else None


def capacity_of(found: Results, way: str) -> float | None:
    """Highest clean rate of a way, calls/s; None if it was not looked for."""
    row = pick(rows_of(found, "capacity", "capacity"), way=way)
    return None if row is None else row["capacity"]


def _capacity(found: Results) -> Iterator[Target]:
    native, kemi = capacity_of(found, "async_ms_route"), capacity_of(found, "kemi_async")
    yield Target(
        "clean calls/s, native script / `async_ms_route`", 1.0, False, _ratio(capacity_of(found, "sipnap"), native)
    )
    yield Target(
        "clean calls/s, KEMI / KEMI with `KSR.async.ms_route`", 0.85, False,
        _ratio(capacity_of(found, "kemi_sipnap"), kemi),
    )  # fmt: skip

    def helpers(row: Row) -> float:
        return float(row["shim_us"] + row["sidecar_us"])

    for way, bound, words in (("sipnap", 0.90, ""), ("sipnap_minimal", 0.80, ", minimal state")):
        for rate in (4000, 8000):
            yield Target(
                f"proxy CPU per call at {rate:,} calls/s / native's{words}", bound, True,
                _beside_native(found, way, rate, "proxy_us"),
            )  # fmt: skip
    for rate, bound in ((4000, 45.0), (8000, 30.0)):
        yield Target(
            f"shim and sidecar CPU per call at {rate:,} calls/s, µs", bound, True, _at(found, "sipnap", rate, helpers)
        )
    yield Target(
        "whole host's CPU per call at 8,000 calls/s / native's", 1.15, True,
        _beside_native(found, "sipnap", 8000, "host_us"),
    )  # fmt: skip


def _lateness(found: Results) -> Iterator[Target]:
    def p99(row: Row) -> float:
        return float(row["late_p99_ms"])

    ours, native = _at(found, "sipnap", 4000, p99), _at(found, "async_ms_route", 4000, p99)
    yield Target(
        "lateness at 4,000 calls/s, p99 beyond native's, ms", 2.0, True,
        None if ours is None or native is None else ours - native,
    )  # fmt: skip
    alone = [row for row in rows_of(found, "timers", "lateness") if row["what"] == "sipnap"]
    yield Target(
        "lateness of the sidecar alone at 10,000 fires/s, p99, ms", 5.0, True,
        max((row["late_p99_ms"] for row in alone), default=None),
    )  # fmt: skip
    early = [row["early"] for row in rows_of(found, "capacity", "raw") if "sipnap" in row["way"]]
    early += [row["early"] for row in alone]
    yield Target("naps that ended early, anywhere", 0, True, sum(early) if early else None)


def _timers(found: Results) -> Iterator[Target]:
    insertion = rows_of(found, "timers", "insertion")
    million = pick(insertion, what="sipnap", pending=1_000_000)
    thousand = pick(insertion, what="sipnap", pending=1_000)
    yield Target("bytes per nap beyond its state, 1,000,000 pending", 450, True, _value(million, "bytes_beyond_state"))
    yield Target(
        "insertion at 1,000,000 pending / at 1,000", 1.5, True,
        _ratio(_value(million, "insert_us"), _value(thousand, "insert_us")),
    )  # fmt: skip
    full = pick(rows_of(found, "timers", "lateness"), what="sipnap", pending=1_000_000)
    yield Target(
        "longest stall of the loop, 1,000,000 pending, ms", 50, True,
        None if full is None else max(full["longest_stall_ms"], full["longest_stall_filling_ms"]),
    )  # fmt: skip


def _others(found: Results) -> Iterator[Target]:
    rpc = rows_of(found, "rpc")
    stream = pick(rpc, journal="full", what="stream", batch=32)
    yield Target(
        "cycles/s over a Session, SQLite synced at each commit, 32 in a message", 60_000, False,
        _value(stream, "per_second"),
    )  # fmt: skip
    for grown, words in (("rate", "the rate"), ("pending", "pending naps"), ("state", "the state")):
        row = pick(rows_of(found, "growth"), way="sipnap", grown=grown)
        yield Target(f"cost of a call with {words} ten times as large / before", 1.2, True, _value(row, "ratio"))


def _calls_beside_native(found: Results) -> Iterator[Comparison]:
    for ours, peer, words in (
        ("sipnap", "async_ms_route", "native script"),
        ("kemi_sipnap", "kemi_async", "KEMI"),
    ):
        name = "`async_ms_route`" if peer == "async_ms_route" else "`KSR.async.ms_route`"
        our_capacity, peers_capacity = capacity_of(found, ours), capacity_of(found, peer)
        if our_capacity is not None and peers_capacity is not None:
            yield Comparison(f"{words}: clean capacity", "calls/s", our_capacity, peers_capacity, name, True)
        for row in rows_of(found, "capacity"):
            beside = pick(rows_of(found, "capacity"), way=peer, rate=row["rate"])
            if row["way"] != ours or beside is None:
                continue
            at = f"{words} at {row['rate']:,} calls/s"
            for key, what, unit in (
                ("proxy_us", "CPU of the proxy per call", "µs"),
                ("host_us", "CPU of the whole host per call", "µs"),
                ("late_p50_ms", "lateness p50", "ms"),
                ("late_p99_ms", "lateness p99", "ms"),
            ):
                yield Comparison(f"{at}: {what}", unit, row[key], beside[key], name)


def _timers_beside_peers(found: Results) -> Iterator[Comparison]:
    for row in rows_of(found, "timers", "insertion"):
        beside = pick(rows_of(found, "timers", "insertion"), what="asyncio.call_later", pending=row["pending"])
        if row["what"] == "sipnap" and beside is not None:
            yield Comparison(
                f"sidecar alone: insertion with {row['pending']:,} pending", "µs", row["insert_us"],
                beside["insert_us"], "`asyncio.call_later`",
            )  # fmt: skip
    for row in rows_of(found, "timers", "list"):
        beside = pick(rows_of(found, "timers", "list"), what="async_ms_route", pending=row["pending"])
        if row["what"] == "sipnap" and beside is not None:
            yield Comparison(
                f"naps of random length, {row['pending']:,} pending: CPU of the proxy per call", "µs",
                row["proxy_us"], beside["proxy_us"], "`async_ms_route`",
            )  # fmt: skip


def _lookups_beside_module(found: Results) -> Iterator[Comparison]:
    for row in rows_of(found, "lookup"):
        beside = pick(rows_of(found, "lookup"), way="http_async_client", rate=row["rate"])
        if row["way"] != "sipnap_http" or beside is None:
            continue
        for key, what, unit in (
            ("proxy_us", "CPU of the proxy per call", "µs"),
            ("host_us", "CPU of the whole host per call", "µs"),
            ("late_p99_ms", "time beyond the lookup's own, p99", "ms"),
        ):
            yield Comparison(
                f"HTTP lookup at {row['rate']:,} calls/s: {what}", unit, row[key], beside[key], "`http_async_client`"
            )
    ours = pick(rows_of(found, "lookup", "capacity"), way="sipnap_http")
    beside = pick(rows_of(found, "lookup", "capacity"), way="http_async_client")
    if ours is not None and beside is not None:
        yield Comparison(
            "HTTP lookup: clean capacity", "calls/s", ours["capacity"], beside["capacity"], "`http_async_client`", True
        )
