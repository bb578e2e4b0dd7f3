"""What a nap costs in a real Kamailio under load, and how many it can take: sipnap beside Kamailio's own async module.

Every call is an INVITE that naps one second and is answered 404. Ways are measured in turn (A B A B), each step with
processes of its own, and medians are shown. CPU is user and system time of all processes and threads, per call, SIPp
and the prober apart ("caller").
"""

from __future__ import annotations

import argparse
from typing import Any

from bench import load, results, search
from bench.load import COLUMNS, WAYS, Step

SUMMARY = "SIPp calls through a real Kamailio: sipnap beside the async module"
SHORT = ["--rates", "500", "--repeats", "1", "--seconds", "2", "--ways", "async_ms_route", "sipnap", "async_route"]
LONG = ["--rates", "4000", "8000", "--repeats", "3", "--seconds", "6", "--find-capacity"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="what to compare")
    parser.add_argument("--rates", nargs="*", type=int, default=[1000, 2000], help="calls/s, one step each")
    parser.add_argument("--seconds", type=float, default=5.0, help="for how long each step places calls")
    parser.add_argument("--repeats", type=int, default=3, help="how often each is measured; medians are shown")
    parser.add_argument(
        "--journal", default="sqlite", choices=["memory", "sqlite", "redis"], help="the sidecar's journal"
    )
    search.configure(parser, start=6000)
    parser.add_argument(
        "--search-ways", nargs="+", choices=WAYS, default=["async_ms_route", "sipnap", "kemi_async", "kemi_sipnap"],
        help="whose capacity --find-capacity finds",
    )  # fmt: skip
    parser.add_argument("--name", default="capacity", help="name of the files")
    results.add_directory_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, show, keep."""
    machine = results.machine()
    names = [name for name in arguments.ways if name != "sipnap_minimal" or load.has_minimal_state()]
    if len(names) < len(arguments.ways):
        print("sipnap_minimal is left out: sipnap.cfg does not know SIPNAP_MINIMAL")
    raw: list[dict[str, Any]] = []
    sections: dict[str, list[dict[str, Any]]] = {"rows": [], "capacity": [], "raw": raw}
    for rate in arguments.rates:
        for turn in range(arguments.repeats):
            raw += [{"what": "rate", "turn": turn, **_measured(name, rate, arguments)} for name in names]
    sections["rows"] = [
        {"way": name, "rate": rate, **results.medians(group, [*COLUMNS, *_PROXY_COLUMNS]), "turns": len(group)}
        for rate in arguments.rates
        for name in names
        if (group := [row for row in raw if row["way"] == name and row["rate"] == rate])
    ]
    if sections["rows"]:
        shown = ("way", "rate", *COLUMNS)
        print(results.table([{key: row[key] for key in shown} for row in sections["rows"]]))
    results.keep(arguments.name, arguments, machine, sections)  # the search takes long: this much is safe
    if arguments.find_capacity:
        sections["capacity"] = search.find(
            [name for name in names if name in arguments.search_ways],
            arguments,
            lambda name, rate: _measured(name, rate, arguments),
            raw,
        )
        print(results.table([{key: row[key] for key in ("way", "capacity")} for row in sections["capacity"]]))
    print(results.keep(arguments.name, arguments, machine, sections))
    _plot(arguments, sections["rows"])
    return 0


_PROXY_COLUMNS = ("proxy_late_p50_ms", "proxy_late_p99_ms", "proxy_late_p999_ms", "calls", "probes")


def _measured(name: str, rate: int, arguments: argparse.Namespace) -> dict[str, Any]:
    step = Step(WAYS[name], rate, arguments.seconds, journal=arguments.journal)
    pace_ms = results.pace_ms()
    found = load.measure(step)
    print(
        f"{name} {rate}/s: proxy {found['proxy_us']:.0f}, shim {found['shim_us']:.0f}, sidecar "
        f"{found['sidecar_us']:.0f} µs/call; late p50 {found['late_p50_ms']:.1f}, p99 {found['late_p99_ms']:.1f} ms, "
        f"{found['early']:.0f} early, {found['failed']:.0f} failed, {found['retransmissions']:.0f} retransmissions, "
        f"{found['reached']:.0%} of the rate, pace {pace_ms:.0f} ms{'' if load.is_clean(found) else ': NOT CLEAN'}",
        flush=True,
    )
    return {"way": name, "rate": rate, "pace_ms": pace_ms, **found}


def _plot(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    for suffix, title, unit, key in (
        ("", "Cost of a nap: proxy, shim and sidecar together", "µs of CPU per call", "host_us"),
        ("-lateness", "Lateness of a nap, 99th percentile, as the caller feels it", "ms", "late_p99_ms"),
    ):
        lines = {
            WAYS[name].title.replace("`", ""): [(row["rate"], row[key]) for row in rows if row["way"] == name]
            for name in arguments.ways
            if any(row["way"] == name for row in rows) and not (suffix and name == "async_route")
        }
        print(results.plot(arguments.results, arguments.name + suffix, title, ("calls/s", unit), lines))
