"""What every benchmark does with what it found: a table for people, JSON for programs, a plot for both."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pygal

DIRECTORY = Path(__file__).parent / "results"
"""Where results are kept, one JSON file and one SVG plot for each benchmark."""

Row = Mapping[str, Any]


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
        "system": platform.platform(),
        "python": platform.python_version(),
        "grpcio": metadata.version("grpcio"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def table(rows: Sequence[Row]) -> str:
    """The rows as a table; columns in the order of the first row's keys."""
    columns = list(rows[0])
    cells = [columns, *([_shown(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def keep(name: str, rows: Sequence[Row], raw: Sequence[Row], settings: Mapping[str, Any]) -> Path:
    """Write ``results/NAME.json``: machine, settings, the rows shown and every single measurement."""
    DIRECTORY.mkdir(exist_ok=True)
    path = DIRECTORY / f"{name}.json"
    content = {"benchmark": name, "machine": machine(), "settings": settings, "rows": rows, "raw": raw}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def plot(name: str, title: str, x_title: str, y_title: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> Path:
    """Write ``results/NAME.svg``: one line for each series of (x, y)."""
    DIRECTORY.mkdir(exist_ok=True)
    chart = pygal.XY(title=title, x_title=x_title, y_title=y_title, legend_at_bottom=True, js=[])
    for label, points in lines.items():
        chart.add(label, list(points))
    path = DIRECTORY / f"{name}.svg"
    chart.render_to_file(str(path))
    return path


def medians(measurements: Sequence[Row], keys: Sequence[str]) -> dict[str, float]:
    """The median of each key over repeated measurements."""
    return {key: round(statistics.median(row[key] for row in measurements), 3) for key in keys}


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value that `percent` of an ordered, non-empty sequence do not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"
    return "-" if value is None else str(value)
