"""Naps of random length in a real Kamailio: its async module keeps those of milliseconds in one sorted list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench import steady
from bench.load import WAYS, Step

LONGEST_MS = 29_000
"""The module refuses 30,000 and more."""

_WINDOW_SECONDS = 8.0


def compare(pending: Sequence[int], rate: int) -> list[dict[str, Any]]:
    """What a call costs the proxy while so many others nap, in the module's list and with sipnap.

    Args:
        pending: How many nap at once. Their lengths are drawn evenly from 1 ms to what keeps so many pending.
        rate: Calls/s; raised where naps of 29 s would not be enough.
    """
    rows = []
    for count in pending:
        for name in ("async_ms_route", "sipnap"):
            longest_ms = min(LONGEST_MS, round(2000 * count / rate))
            step = Step(
                WAYS[name], max(rate, round(2000 * count / LONGEST_MS)), _WINDOW_SECONDS, nap_ms=longest_ms,
                journal="memory", defines={"NAP_RANDOM": ""},
            )  # fmt: skip
            found = steady.measure(step)
            rows.append({"what": name, "pending": count, "rate": step.rate, "longest_nap_ms": longest_ms, **found})
            print(
                f"{name}, {count} pending: proxy {found['proxy_us']:.0f} µs/call, {found['failed']} of "
                f"{found['calls']} calls refused or failed",
                flush=True,
            )
    return rows
