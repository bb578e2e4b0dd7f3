"""Prometheus metrics. Nothing is counted twice: a scrape reads what the engine and the dispatcher count anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

from sipnap.sidecar.dispatcher import Dispatcher, Lateness

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
        groups = engine.groups.values()
        for name, text, value in (
            ("sipnap_group_workers", "Workers of a group.", lambda group: group.workers),
            (
                "sipnap_group_busy_workers",
                "Workers of a group that run an operation.",
                lambda group: len(group.running),
            ),
            ("sipnap_group_queue_depth", "Operations that wait for a worker of a group.", lambda group: group.queued),
        ):
            yield _family(GaugeMetricFamily, name, text, "group", {group.name: value(group) for group in groups})


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


def _family(kind: type[_Family], name: str, text: str, label: str, values: dict[str, int]) -> _Family:
    family = kind(name, text, labels=[label])
    for label_value, value in values.items():
        family.add_metric([label_value], value)
    return family


def _histogram(name: str, text: str, lateness: Lateness) -> HistogramMetricFamily:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*map(str, map(float, lateness.bounds_seconds)), "+Inf"), lateness.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=lateness.sum_seconds)
