"""How long a sidecar takes to be ready again with so many naps in its SQLite journal."""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import results
from sipnap.client import sync
from sipnap.sidecar.core.engine import Engine
from sipnap.sidecar.core.suspension import Limits, NapKey, Request
from sipnap.sidecar.journal.sqlite import SqliteJournal
from tests.support.processes import Process, free_port, sipnap

SUMMARY = "restart with pending naps in the SQLite journal"

SHORT = ["--pending", "10000"]
LONG = ["--pending", "10000", "100000", "1000000"]

STATE_BYTES = 250
_BATCH = 5000


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--pending", nargs="+", type=int, default=[10_000, 100_000], help="naps in the journal")
    results.add_directory_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, show, keep."""
    machine = results.machine()
    rows = []
    for pending in arguments.pending:
        with tempfile.TemporaryDirectory(prefix="sipnap-bench-") as directory:
            rows.append(_restart(Path(directory) / "journal.sqlite3", pending))
    print(results.table(rows))
    print(results.keep("recovery", arguments, machine, {"rows": rows}))
    lines = {"sqlite": [(row["pending"], row["ready_seconds"]) for row in rows]}
    axes = ("naps in the journal", "seconds until ready")
    print(results.plot(arguments.results, "recovery", "Restart with pending naps", axes, lines))
    return 0


def _restart(path: Path, pending: int) -> dict[str, Any]:
    written = time.monotonic()
    asyncio.run(_fill(path, pending))
    written = time.monotonic() - written
    target = f"127.0.0.1:{free_port()}"
    started = time.monotonic()
    with Process(
        "sidecar",
        sipnap("serve", "--listen", target, "--journal", f"sqlite:{path}"),
        ready="^sipnap serve: ready",
        ready_seconds=120,
    ) as sidecar:
        ready = time.monotonic() - started
        with sync.Client(target) as client:
            held = client.status().pending
        progress = sidecar.output().count("recovering ")
        sidecar.kill()
    assert held == pending, f"{held} of {pending} recovered"
    return {
        "pending": pending,
        "written_seconds": written,
        "ready_seconds": ready,
        "megabytes": path.stat().st_size / 1e6,
        "progress_lines": progress,
    }


async def _fill(path: Path, pending: int) -> None:
    engine = Engine(time.monotonic, Limits(max_delay_seconds=1e6))
    front_end = engine.attach("bench", 1)
    journal = SqliteJournal(path)
    async for _ in journal.recover():
        raise AssertionError("a new journal is empty")
    dice = random.Random(pending)
    for start in range(0, pending, _BATCH):
        batch = []
        for number in range(start, min(start + _BATCH, pending)):
            request = Request(NapKey(1, number, 5, 1), "RESUME", dice.uniform(3600, 7200), None, b"s" * STATE_BYTES)
            batch.append(engine.reserve(front_end, request)[0])
        await journal.commit(batch, [])
    await journal.close()
