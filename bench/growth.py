"""Whether the cost of a call stays what it is while rate, pending naps and state grow tenfold, one at a time.

CPU per call is read while calls come and go at one rate, in a real Kamailio. It may fall as the rate rises, since more
travels in one message; it must not rise by more than a fifth.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

from bench import results, steady
from bench.load import WAYS, Step

SUMMARY = "cost per call as rate, pending naps and state size each grow tenfold"
SHORT = ["--rate", "50", "--seconds", "2", "--nap-ms", "200", "--ways", "sipnap"]
LONG = ["--rate", "700", "--seconds", "5", "--repeats", "3", "--ways", "sipnap"]

MOST_GROWTH = 1.2
"""How much the cost of a call may grow."""

_BASE_BYTES = 700  # what the INVITE of calls.xml has
_FIGURES = ("proxy_us", "shim_us", "sidecar_us", "host_us", "failed", "retransmissions")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["sipnap", "async_ms_route"], help="what to measure")
    parser.add_argument("--rate", type=int, default=400, help="calls/s to grow from")
    parser.add_argument("--nap-ms", type=int, default=1000, help="naps to grow from, in ms")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each is measured")
    parser.add_argument("--repeats", type=int, default=1, help="how often; medians are shown")
    parser.add_argument("--journal", default="sqlite", choices=["memory", "sqlite", "redis"], help="the sidecar's")
    results.add_directory_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, show, keep."""
    machine = results.machine()
    rate, nap_ms = arguments.rate, arguments.nap_ms
    variants = {
        "base": _Variant(rate, nap_ms),
        "rate": _Variant(rate * 10, nap_ms),
        "pending": _Variant(rate, nap_ms * 10),
        "state": _Variant(rate, nap_ms, _BASE_BYTES * 9),
    }
    raw: list[dict[str, Any]] = []
    for turn in range(arguments.repeats):
        for grown, variant in variants.items():
            for name in arguments.ways:
                step = Step(
                    WAYS[name],
                    variant.rate,
                    arguments.seconds,
                    variant.nap_ms,
                    arguments.journal,
                    variant.padding_bytes,
                )
                found = steady.measure(step)
                raw.append({"way": name, "grown": grown, "turn": turn, **found})
                print(f"{name}, {grown}: {found['host_us']:.0f} µs/call, {found['failed']} failed", flush=True)
    rows = [_row(name, grown, variants[grown], raw) for name in arguments.ways for grown in variants]
    print(results.table(rows))
    print(results.keep("growth", arguments, machine, {"rows": rows, "raw": raw}))
    series = {
        WAYS[name].title.replace("`", ""): [row["ratio"] for row in rows if row["way"] == name]
        for name in arguments.ways
    }
    title = "Cost of a call when one thing grows tenfold"
    axes = ("grown tenfold", "CPU of the whole host per call, base = 1")
    print(results.bars(arguments.results, "growth", title, axes, list(variants), series))
    return 0


class _Variant(NamedTuple):
    rate: int
    nap_ms: int
    padding_bytes: int = 0


def _row(name: str, grown: str, variant: _Variant, raw: list[dict[str, Any]]) -> dict[str, Any]:
    found, base = (
        results.medians([row for row in raw if row["way"] == name and row["grown"] == which], _FIGURES)
        for which in (grown, "base")
    )
    return {
        "way": name,
        "grown": grown,
        "rate": variant.rate,
        "pending": variant.rate * variant.nap_ms // 1000,
        "state_bytes": _BASE_BYTES + variant.padding_bytes,
        **found,
        "ratio": found["host_us"] / base["host_us"],
    }
