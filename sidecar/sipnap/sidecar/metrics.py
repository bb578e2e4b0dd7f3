"""Prometheus metrics. Nothing is counted twice: a scrape reads what the engine and the dispatcher count anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from sipnap.sidecar.core.groups import WorkerGroup
from sipnap.sidecar.core.histogram import Histogram
from sipnap.sidecar.dispatcher import Dispatcher

_Family = TypeVar("_Family", CounterMetricFamily, GaugeMetricFamily)


class SidecarCollector(Collector):
    """What one dispatcher has to tell."""

    def __init__(self, dispatcher: Dispatcher, version: str) -> None:
        self._dispatcher = dispatcher
        self._version = version

    def collect(self) -> Iterator[Metric]:
        """All metric families, as they stand."""
        dispatcher = self._dispatcher
        engine = dispatcher.engine
        counters = engine.counters
        yield InfoMetricFamily(
            "sipnap_sidecar", "The running software.", {"version": self._version, "journal": dispatcher.journal.kind}
        )
        yield _family(
            GaugeMetricFamily, "sipnap_suspensions", "Suspensions in flight, by phase.", "phase",
            {"pending": engine.pending_count, "continuing": engine.continuing_count},
        )  # fmt: skip
        yield GaugeMetricFamily("sipnap_sleeping_callers", "Sleep calls that wait.", engine.sleepers)
        yield GaugeMetricFamily("sipnap_sessions", "Front end sessions open now.", dispatcher.connection_count)
        yield GaugeMetricFamily("sipnap_draining", "1 while nothing new is accepted.", int(engine.draining))
        yield CounterMetricFamily("sipnap_accepted", "Suspensions accepted.", counters.accepted)
        yield _family(
            CounterMetricFamily, "sipnap_refused", "Suspensions and sleeps refused, by reason.", "reason",
            {reason.value: count for reason, count in counters.refused.items()},
        )  # fmt: skip
        ended = {outcome.value: count for outcome, count in counters.outcomes.items()}
        yield _family(
            CounterMetricFamily, "sipnap_resumed",
            "Suspensions that have ended, by outcome: applied, gone, rejected, lost, cancelled, dropped.", "outcome",
            ended | {"lost": counters.lost, "cancelled": counters.cancelled, "dropped": counters.dropped},
        )  # fmt: skip
        yield CounterMetricFamily(
            "sipnap_fenced", "Journal writes refused: another sidecar owned the front end.", counters.fenced
        )
        yield CounterMetricFamily("sipnap_slept", "Sleep calls that ran their time.", counters.slept)
        yield _histogram("sipnap_lateness_seconds", "How long after its time a timer was fired.", dispatcher.lateness)
        yield from _group_families(list(engine.jobs.groups.values()))


def serve_metrics(dispatcher: Dispatcher, version: str, host: str, port: int) -> tuple[int, Callable[[], None]]:
    """Serve the metrics over HTTP on a thread of its own.

    Returns:
        The port it listens on, and a function that ends it.

    Raises:
        OSError: The address cannot be bound.
    """
    registry = CollectorRegistry()
    registry.register(SidecarCollector(dispatcher, version))
    server, thread = start_http_server(port, addr=host, registry=registry)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return server.server_port, close


def _family(kind: type[_Family], name: str, text: str, label: str, values: Mapping[str, float]) -> _Family:
    family = kind(name, text, labels=[label])
    for label_value, value in values.items():
        family.add_metric([label_value], value)
    return family


def _group_families(groups: Sequence[WorkerGroup]) -> Iterator[Metric]:
    gauges: tuple[tuple[str, str, Callable[[WorkerGroup], float]], ...] = (
        ("workers", "Workers of a group.", lambda group: group.workers),
        ("busy_workers", "Workers of a group that run an operation.", lambda group: len(group.running)),
        (
            "idle_workers",
            "Workers of a group that run nothing.",
            lambda group: max(0, group.workers - len(group.running)),
        ),
        ("queue_depth", "Operations that wait for a worker of a group.", lambda group: group.queued),
        ("queue_limit", "Most operations that may wait for a worker of a group.", lambda group: group.max_queued),
        (
            "saturation",
            "Busy and queued operations of a group for each of its workers; above 1 some wait.",
            lambda group: (len(group.running) + group.queued) / max(1, group.workers),
        ),
    )
    for name, text, value in gauges:
        yield _family(
            GaugeMetricFamily, f"sipnap_group_{name}", text, "group", {group.name: value(group) for group in groups}
        )
    ended = CounterMetricFamily(
        "sipnap_group_operations",
        "Operations of a group that have ended, by result: succeeded, failed, timed_out, abandoned.",
        labels=["group", "result"],
    )
    for group in groups:
        for result in ("succeeded", "failed", "timed_out", "abandoned"):
            ended.add_metric([group.name, result], getattr(group, result))
    yield ended
    yield _family(
        CounterMetricFamily, "sipnap_group_refused", "Naps refused because the queue of a group was full.", "group",
        {group.name: group.refused for group in groups},
    )  # fmt: skip
    yield _family(
        CounterMetricFamily, "sipnap_group_retried", "Attempts at operations beyond the first.", "group",
        {group.name: group.retried for group in groups},
    )  # fmt: skip
    waits = HistogramMetricFamily(
        "sipnap_group_wait_seconds", "How long operations waited for a worker.", labels=["group"]
    )
    runs = HistogramMetricFamily("sipnap_group_run_seconds", "How long workers had operations.", labels=["group"])
    for group in groups:
        waits.add_metric([group.name], _buckets(group.wait), group.wait.sum_seconds)
        runs.add_metric([group.name], _buckets(group.run), group.run.sum_seconds)
    yield waits
    yield runs


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, text, buckets=_buckets(histogram), sum_value=histogram.sum_seconds)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*map(str, map(float, histogram.bounds_seconds)), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
