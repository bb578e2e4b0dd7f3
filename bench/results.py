"""What every benchmark does with what it found: a table for people, JSON for programs, a plot for both."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent / "results"
"""Results that are kept: one JSON file and one SVG plot for each benchmark."""

SHORT_DIRECTORY = DIRECTORY / "short"
"""Where `make bench` puts those of its short form, which nobody should quote."""

Row = Mapping[str, Any]


def add_directory_flag(parser: argparse.ArgumentParser) -> None:
    """The flag that all benchmarks have."""
    parser.add_argument("--results", type=Path, default=DIRECTORY, help="folder for the JSON file and the plot")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cores": os.cpu_count(),
        "processor": model,
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}, {_distribution()}",
        "python": platform.python_version(),
        "grpcio": metadata.version("grpcio"),
        "load_before": round(os.getloadavg()[0], 2),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def pace_ms() -> float:
    """How fast the machine is just now: CPU time of a fixed piece of Python work, ms, the best of three.

    Guests of one host share caches and memory: the same work may take twice as long with no other process in sight.
    """
    return min(_work_ms() for _ in range(3))


def _work_ms() -> float:
    began_ns = time.process_time_ns()
    seen: dict[int, tuple[int, int]] = {}
    found = 0
    for number in range(300_000):
        seen[number & 0xFFFF] = (number, found)
        other = seen.get(number * 7919 & 0x7FFF)
        found += other[0] if other is not None else 1
    return (time.process_time_ns() - began_ns) * 1e-6


def table(rows: Sequence[Row]) -> str:
    """The rows as a table; columns in the order of the first row's keys."""
    columns = list(rows[0])
    cells = [columns, *([shown(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def keep(name: str, arguments: argparse.Namespace, machine_before: Row, sections: Mapping[str, Sequence[Row]]) -> Path:
    """Write ``NAME.json`` into the folder that ``--results`` names.

    Args:
        name: Of the benchmark.
        arguments: Its flags.
        machine_before: What `machine` said when it began.
        sections: The rows that are shown, and every single measurement under ``raw``.
    """
    folder: Path = arguments.results
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(arguments).items()
        if key not in {"run", "results"} and not callable(value)
    }
    content = {"benchmark": name, "machine": machine_before, "settings": settings, **sections}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(_rounded(content), indent=1) + "\n")
    return path


def plot(
    folder: Path,
    name: str,
    title: str,
    axes: tuple[str, str],
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    second: Collection[str] = (),
) -> Path:
    """Write ``NAME.svg``: one line for each series of (x, y).

    Args:
        folder: Where to.
        name: Of the file.
        title: Above the plot.
        axes: What x and y are, with their units.
        lines: The series by name.
        second: Which series have their own axis on the right.
    """
    import pygal

    def top(is_second: bool) -> tuple[float, float]:
        values = [y for label, points in lines.items() if (label in second) == is_second for _, y in points]
        return 0, max(values, default=1) * 1.05 or 1

    chart = pygal.XY(range=top(False), secondary_range=top(True), dots_size=2, **_looks(title, axes))
    for label, points in lines.items():
        chart.add(label, list(points), secondary=label in second)
    return _write_plot(chart, folder / f"{name}.svg")


def bars(
    folder: Path,
    name: str,
    title: str,
    axes: tuple[str, str],
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
) -> Path:
    """Write ``NAME.svg``: groups of bars, one bar of each series in each group."""
    import pygal

    chart = pygal.Bar(x_labels=list(groups), **_looks(title, axes))
    for label, values in series.items():
        chart.add(label, list(values))
    return _write_plot(chart, folder / f"{name}.svg")


def _looks(title: str, axes: tuple[str, str]) -> dict[str, Any]:
    return {
        "title": title, "x_title": axes[0], "y_title": axes[1], "legend_at_bottom": True, "js": [],
        "truncate_legend": -1, "include_x_axis": True,
    }  # fmt: skip


def _write_plot(chart: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(chart.render(is_unicode=True, disable_xml_declaration=True) + "\n")
    return path


def medians(measurements: Sequence[Row], keys: Iterable[str]) -> dict[str, float]:
    """The median of each key over repeated measurements."""
    return {key: statistics.median(row[key] for row in measurements) for key in keys}


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value that `percent` of an ordered sequence do not exceed; not a number for an empty one."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")


PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}
"""Those that are shown of a lateness."""


def lateness(late_ms: Iterable[float]) -> dict[str, float]:
    """Percentiles of so many milliseconds, as columns of a row."""
    ordered = sorted(late_ms)
    return {f"late_{name}_ms": percentile(ordered, percent) for name, percent in PERCENTILES.items()}


def shown(value: Any) -> str:
    """A cell of a table."""
    if isinstance(value, float):
        if value != value:  # not a number
            return "-"
        return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"
    return "-" if value is None else str(value)


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.release()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return None if value != value else round(value, 3)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
