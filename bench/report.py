"""Write docs/performance.md, and the section of README.md about it, from what is in bench/results."""

from __future__ import annotations

import argparse
import json
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import results
from bench.figures import Comparison, Results, capacity_of, comparisons, pick, rows_of, targets
from bench.load import WAYS

SUMMARY = "write docs/performance.md and the README's section from bench/results"

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "performance.md"
README = ROOT / "README.md"
BEGIN = "<!-- performance: written by `python -m bench report` -->"
END = "<!-- end of performance -->"

_NOT_MEASURED = "Not measured yet: `python -m bench full` does it, and writes this page.\n"
_RATIOS = (
    "A CPU figure divided by native's is the median of the turns' ratios: what the machine does to both in a turn, "
    "with its other guests, drops out. All others are medians, and so what this hour of this machine made of them."
)
_HOW = (
    "Medians of interleaved runs (A B A B) on one machine that proxy, shim, sidecar and SIPp share. Each call is an "
    "INVITE that naps one second and is answered 404. CPU is user and system time of all processes and threads, from "
    "`/proc`, per call; SIPp's own comes on top. Lateness is from INVITE to answer minus the nap, with the kernel's "
    "time stamps, of the 400 calls/s that a prober places among the others; whether a nap was *early* is decided by "
    "the proxy's own clock, read before the suspend and in the resumed route. A rate is *clean* when at most 0.1 % of "
    "the calls fail or are sent again. sipnap ran with its SQLite journal, synced to the disk at each commit, with the "
    "default transaction state, gate and backstop. Either way the proxy has four processes for SIP and two for what is "
    "resumed (`workers` and `async_workers` for the module, `SIPNAP_WORKERS` for sipnap)."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    results.add_directory_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write both."""
    found = read(arguments.results)
    DOCUMENT.write_text(document(found))
    README.write_text(with_section(README.read_text(), section(found)))
    print(f"{DOCUMENT.relative_to(ROOT)} and {README.name} say what is in {arguments.results}")
    return 0


def read(folder: Path) -> dict[str, Any]:
    """All results of a folder, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def with_section(readme: str, text: str) -> str:
    """The README with another text between the marks.

    Raises:
        ValueError: It lacks the marks.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{text}{END}{after}"


def section(found: Results) -> str:
    """The README's section: the figures that decide, and what is slower than the peer."""
    if not rows_of(found, "capacity"):
        return f"\n{_NOT_MEASURED}\n"
    parts = [f"Measured with `python -m bench` on {_machine(found, 'capacity')}.", _summary_table(found)]
    worse = _worse(comparisons(found))
    if worse:
        parts.append("Where the peer is ahead:\n\n" + "\n".join(worse))
    else:
        parts.append("The peer is ahead in none of the figures.")
    parts.append(
        "All figures, how they were measured, and which goals were missed: [docs/performance.md](docs/performance.md)."
    )
    return "\n" + "\n\n".join(parts) + "\n\n"


def document(found: Results) -> str:
    """The whole page."""
    head = "# Performance\n\n" + _paragraph(
        "Written by `python -m bench report` from the results in [bench/results](../bench/results), which hold each "
        "single measurement, its settings and the machine. `make bench` runs the short form of all benchmarks, `python "
        "-m bench full` the long one; `python -m bench NAME --help` says what each can do."
    )
    parts = [part for part in _parts(found) if part]
    return head + ("\n".join(parts) if parts else _NOT_MEASURED)


def _parts(found: Results) -> Iterator[str]:
    if not found:
        return
    yield "## Goals\n\n" + _goals(found) + _pace(found) + _floor(found)
    worse = _worse(comparisons(found))
    yield "## What is slower than the peer\n\n" + ("\n".join(worse) if worse else "None of the figures below.") + "\n"
    yield _calls(found)
    yield _timers(found)
    yield _rpc(found)
    yield _growth(found)
    yield _pool(found)
    yield _lookup(found)
    yield _recovery(found)
    yield "## Machines\n\n" + "".join(
        f"- {name}: {_machine(found, name)}, {found[name]['machine']['time']}\n" for name in found
    )


def _machine(found: Results, name: str) -> str:
    machine = found[name]["machine"]
    return (
        f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB, {machine['system']}, "
        f"Python {machine['python']}, grpcio {machine['grpcio']}"
    )


def _goals(found: Results) -> str:
    rows = [
        [
            target.what,
            f"{'at most' if target.is_most else 'at least'} {target.bound:,g}",
            "not measured" if target.measured is None else _to_compare(target.measured),
            "" if target.measured is None else "kept" if target.is_kept else "**missed**",
        ]
        for target in targets(found)
    ]
    return _table(["figure", "goal", "measured", ""], rows) + "\n" + _paragraph(_RATIOS).rstrip() + "\n"


def _pace(found: Results) -> str:
    """How fast the machine was while the µs were counted."""
    paces = [row["pace_ms"] for row in rows_of(found, "capacity", "raw") if row["what"] == "rate" and "pace_ms" in row]
    if not paces:
        return ""
    text = (
        "How fast the machine was: a fixed piece of Python work, done before each step (`pace_ms` in "
        f"bench/results.py), took {_number(statistics.median(paces))} ms of CPU by median, from "
        f"{_number(min(paces))} to {_number(max(paces))} ms. All figures in µs go up and down with it."
    )
    return "\n" + _paragraph(text).removesuffix("\n")


def _floor(found: Results) -> str:
    """What of the goals for shim and sidecar is spent before sipnap has done anything."""
    rows = [row for row in rows_of(found, "capacity") if row["way"] == "bare_shim"]
    if not rows:
        return ""
    costs = " and ".join(f"{_number(row['shim_us'])} µs at {row['rate']:,} calls/s" for row in rows)
    text = (
        "The goals in µs are for shim and sidecar together, both Python. The bare shim (bench/bare_shim.py) takes the "
        "proxy's datagrams, waits in itself and sends the NAP requests, and does nothing else: no sidecar, no journal, "
        f"no repetition, no CANCEL. In the same runs it costs {costs}: the system calls and the little Python around "
        "them, on cores that proxy and SIPp keep busy. What is left of a goal is what the hand-over, the stream, the "
        "rules, the journal and its sync may cost."
    )
    return "\n" + _paragraph(text).removesuffix("\n")


def _worse(compared: Sequence[Comparison]) -> list[str]:
    lines = []
    for one in compared:
        if one.is_worse:
            times = f" ({one.ours / one.peers:.2f} times)" if one.peers > 0 else ""
            lines.append(
                f"- {one.what}: {_number(one.ours)} {one.unit}, against {_number(one.peers)} with {one.peer}{times}"
            )
    return lines


def _summary_table(found: Results) -> str:
    ways = [name for name, way in WAYS.items() if not way.is_bare and pick(rows_of(found, "capacity"), way=name)]
    rates = sorted({row["rate"] for row in rows_of(found, "capacity")})
    header = ["", "clean calls/s"]
    for rate in rates:
        header += [f"proxy, µs per call at {rate:,}/s", f"whole host, µs at {rate:,}/s", f"late p99, ms at {rate:,}/s"]
    lines = []
    for way in ways:
        capacity = capacity_of(found, way)
        line = [WAYS[way].title, "" if capacity is None else f"{capacity:,}"]
        for rate in rates:
            row = pick(rows_of(found, "capacity"), way=way, rate=rate)
            line += (
                ["", "", ""] if row is None else [_number(row[key]) for key in ("proxy_us", "host_us", "late_p99_ms")]
            )
        lines.append(line)
    return _table(header, lines).rstrip("\n")


_CALL_COLUMNS = {
    "proxy_us": "proxy µs", "shim_us": "shim µs", "sidecar_us": "sidecar µs", "host_us": "sum µs",
    "late_p50_ms": "late p50 ms", "late_p90_ms": "p90", "late_p99_ms": "p99", "late_p999_ms": "p99.9",
    "early": "early", "failed": "failed", "retransmissions": "sent again",
}  # fmt: skip


def _calls(found: Results) -> str:
    rows = rows_of(found, "capacity")
    if not rows:
        return ""
    text = "## Naps in Kamailio under load\n\n" + _paragraph(_HOW)
    for rate in sorted({row["rate"] for row in rows}):
        here = [row for row in rows if row["rate"] == rate]
        cells = [[WAYS[row["way"]].title, *(_number(row[key]) for key in _CALL_COLUMNS)] for row in here]
        text += f"{rate:,} calls/s:\n\n" + _table(["", *_CALL_COLUMNS.values()], cells) + "\n"
    capacities = rows_of(found, "capacity", "capacity")
    if capacities:
        cells = [
            [WAYS[row["way"]].title, f"{row['capacity']:,}", ", ".join(f"{rate:,}" for rate in row["found"])]
            for row in capacities
        ]
        text += "Highest clean rate:\n\n" + _table(["", "calls/s", "of each turn"], cells) + "\n"
    return text + _plots("capacity", "capacity-lateness")


def _timers(found: Results) -> str:
    insertion = rows_of(found, "timers", "insertion")
    if not insertion:
        return ""
    text = "## Timers of the sidecar alone\n\n" + _paragraph(
        "Naps with 250 bytes of state and random delays. `asyncio.call_later` holds a handle and a number, nothing "
        "else of a nap; its bytes are all that it takes."
    )
    cells = [
        [row["what"], f"{row['pending']:,}", _number(row["insert_us"]), _number(row["bytes_beyond_state"])]
        for row in insertion
    ]
    text += _table(["", "pending", "insertion µs", "bytes beyond state"], cells) + "\n"
    cells = [
        [
            row["what"], f"{row['fires_per_second']:,}", f"{row['pending']:,}",
            *(_number(row[f"late_{name}_ms"]) for name in results.PERCENTILES), _number(row["early"]),
            _number(row["longest_stall_filling_ms"]), _number(row["longest_stall_ms"]),
        ]
        for row in rows_of(found, "timers", "lateness")
    ]  # fmt: skip
    header = [
        "",
        "fires/s",
        "pending beside",
        "late p50 ms",
        "p90",
        "p99",
        "p99.9",
        "early",
        "longest stall filling ms",
        "firing ms",
    ]
    text += _table(header, cells) + "\n"
    listed = rows_of(found, "timers", "list")
    if listed:
        text += _paragraph(
            "Naps of random length in a real Kamailio. Its module keeps them in one sorted list under one lock and "
            "walks it for each insertion; it ends at 10,000 naps and below 30 s."
        )
        cells = [
            [
                WAYS[row["what"]].title, f"{row['pending']:,}", f"{row['rate']:,}", _number(row["proxy_us"]),
                _number(row["host_us"]), f"{row['failed']:,} of {row['calls']:,}",
            ]
            for row in listed
        ]  # fmt: skip
        text += (
            _table(["", "pending", "calls/s", "proxy µs per call", "whole host µs", "refused or failed"], cells) + "\n"
        )
    return text + _plots("timers")


def _rpc(found: Results) -> str:
    rows = rows_of(found, "rpc")
    if not rows:
        return ""
    names = {"memory": "memory", "normal": "SQLite, normal", "full": "SQLite, full", "redis": "Redis"}
    text = "## RPCs alone\n\n" + _paragraph(
        "Client and sidecar on one machine. A cycle is a whole nap: suspend, accept, fire, continue, acknowledge. "
        "*stream* is a bare Session with so many naps in each message, *session* the client library, which chooses its "
        "own batches, *SuspendRoute* the unary call."
    )
    cells = [
        [
            names[row["journal"]], row["what"], _number(row["batch"]), f"{row['per_second']:,.0f}",
            _number(row["client_us"]), _number(row["sidecar_us"]),
        ]
        for row in rows
    ]  # fmt: skip
    return (
        text
        + _table(["journal", "", "in a message", "per second", "client µs", "sidecar µs"], cells)
        + "\n"
        + _plots("rpc")
    )


def _growth(found: Results) -> str:
    rows = rows_of(found, "growth")
    if not rows:
        return ""
    cells = [
        [
            WAYS[row["way"]].title, row["grown"], f"{row['rate']:,}", f"{row['pending']:,}", f"{row['state_bytes']:,}",
            _number(row["proxy_us"]), _number(row["host_us"]), _number(row["ratio"]), _number(row["failed"]),
        ]
        for row in rows
    ]  # fmt: skip
    header = ["", "grown", "calls/s", "pending", "bytes of SIP", "proxy µs", "whole host µs", "to base", "failed"]
    return "## Growth\n\nOne thing at a time grows tenfold.\n\n" + _table(header, cells) + "\n" + _plots("growth")


def _pool(found: Results) -> str:
    phases = rows_of(found, "pool", "phases")
    if not phases:
        return ""
    settings = found["pool"]["settings"]
    text = "## The worker pool\n\n" + _paragraph(
        f"An operation of {settings['operation_ms']} ms, {settings['rate']} asked for per second over a Session, while "
        "the group is given other numbers of workers."
    )
    cells = [[_number(row[key]) for key in ("workers", "seconds", "done_per_second", "most_queued")] for row in phases]
    text += _table(["workers", "seconds", "done per second", "most queued"], cells) + "\n"
    total = rows_of(found, "pool", "total")[0]
    text += _paragraph(
        f"Asked for: {total['asked']:,}; answered once: {total['once']:,}; lost: {total['lost']}; "
        f"twice: {total['twice']}; failed or another's answer: {total['failed']}."
    )
    remote = rows_of(found, "pool", "remote")
    if remote:
        text += _paragraph(
            f"Remote workers, an operation of {settings['remote_ms']} ms, {settings['concurrency']} at a time in each:"
        )
        cells = [[_number(row[key]) for key in ("workers", "per_second", "ratio", "failed")] for row in remote]
        text += _table(["workers", "operations/s", "to one worker", "failed"], cells) + "\n"
    return text + _plots("pool")


def _lookup(found: Results) -> str:
    rows = rows_of(found, "lookup")
    if not rows:
        return ""
    titles = {"http_async_client": "`http_async_client` module", "sipnap_http": "sipnap, operation `http`"}
    columns = {
        "proxy_us": "proxy µs", "shim_us": "shim µs", "sidecar_us": "sidecar µs", "host_us": "sum µs",
        "late_p50_ms": "beyond p50 ms", "late_p99_ms": "p99", "failed": "failed or wrong",
        "retransmissions": "sent again",
    }  # fmt: skip
    text = "## The same HTTP lookup\n\n" + _paragraph(
        f"Each call asks an HTTP server that takes {found['lookup']['settings']['lookup_ms']} ms, and checks that the "
        "answer is its own. The whole host is without the HTTP server, which is the same for both."
    )
    cells = [
        [titles[row["way"]], f"{row['rate']:,}", *(_number(row[key]) for key in columns)] for row in rows
    ]  # fmt: skip
    text += _table(["", "calls/s", *columns.values()], cells) + "\n"
    capacities = rows_of(found, "lookup", "capacity")
    if capacities:
        cells = [[titles[row["way"]], f"{row['capacity']:,}"] for row in capacities]
        text += _table(["highest clean rate", "calls/s"], cells) + "\n"
    return text + _plots("lookup")


def _recovery(found: Results) -> str:
    rows = rows_of(found, "recovery")
    if not rows:
        return ""
    cells = [[f"{row['pending']:,}", _number(row["ready_seconds"]), _number(row["megabytes"])] for row in rows]
    return (
        "## Restart\n\nFrom the start of a sidecar until it serves, with a SQLite journal that was left to it.\n\n"
        + _table(["naps in the journal", "seconds until ready", "MB"], cells)
        + "\n"
        + _plots("recovery")
    )


def _paragraph(text: str) -> str:
    """Text in lines of a width that is good to read and to compare."""
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False) + "\n\n"


def _plots(*names: str) -> str:
    return "".join(f"![{name}](../bench/results/{name}.svg)\n" for name in names)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _to_compare(value: float) -> str:
    """A number that stands beside its bound: what is missed by little is seen to be."""
    return _number(value) if value == int(value) or abs(value) >= 10 else f"{value:.3f}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
