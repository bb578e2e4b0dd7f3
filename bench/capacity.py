"""What a nap costs in a real Kamailio under load: sipnap beside Kamailio's own async module."""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import results
from tests.acceptance.proxy import Proxy
from tests.acceptance.sipp import SIPP
from tests.acceptance.stack import Shim
from tests.support.processes import Process, Sidecar, free_port, wait_until

SUMMARY = "SIPp calls through a real Kamailio: sipnap beside the async module"

SCRIPTS = Path(__file__).parent / "scripts"
NAP_MS = 1000


@dataclass(frozen=True, slots=True)
class Way:
    """One way to nap."""

    name: str
    """As the table shows it."""
    script: str
    """Proxy script."""
    define: str
    """What the script is to be."""
    kemi_script: str = ""
    """KEMI script, if it is one."""

    @property
    def is_sipnap(self) -> bool:
        """Whether sidecar and shim are part of it."""
        return self.define == "PATH_SIPNAP"


PATHS = {
    path.name: path
    for path in (
        Way("async_ms_route", "native.cfg", "PATH_ASYNC_MS"),
        Way("sipnap", "native.cfg", "PATH_SIPNAP"),
        Way("async_route", "native.cfg", "PATH_ASYNC"),
        Way("kemi_async", "kemi.cfg", "PATH_ASYNC_MS", "async_script.py"),
        Way("kemi_sipnap", "kemi.cfg", "PATH_SIPNAP", "sipnap_script.py"),
    )
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--paths", nargs="+", choices=PATHS, default=["async_ms_route", "sipnap"], help="what to compare"
    )
    parser.add_argument("--rates", nargs="+", type=int, default=[1000, 2000], help="calls/s, one step each")
    parser.add_argument("--seconds", type=int, default=5, help="how long each step takes")
    parser.add_argument(
        "--repeat", type=int, default=3, help="how often each is measured, interleaved; medians are shown"
    )
    parser.add_argument("--journal", default="sqlite", choices=["memory", "sqlite"], help="the sidecar's journal")
    parser.add_argument("--name", default="capacity", help="name of the files under bench/results")


def run(arguments: argparse.Namespace) -> int:
    """Measure, show, keep."""
    raw: list[dict[str, Any]] = []
    for rate in arguments.rates:
        for turn in range(arguments.repeat):
            for name in arguments.paths:
                measured = measure(PATHS[name], rate, arguments.seconds, arguments.journal)
                raw.append({"path": name, "rate": rate, "turn": turn, **measured})
                print(
                    f"{name} {rate}/s turn {turn + 1}: proxy {measured['proxy_us']:.0f} us/call, "
                    f"p99 {measured['late_p99_ms']:.0f} ms late, {measured['failed']} failed, "
                    f"{measured['retransmissions']} retransmissions",
                    flush=True,
                )
    rows = [
        {"path": name, "rate": rate} | results.medians(group, list(COLUMNS))
        for rate in arguments.rates
        for name in arguments.paths
        if (group := [row for row in raw if row["path"] == name and row["rate"] == rate])
    ]
    print(results.table(rows))
    settings = {key: value for key, value in vars(arguments).items() if key != "run"}
    print(results.keep(arguments.name, rows, raw, settings))
    lines = {name: [(row["rate"], row["host_us"]) for row in rows if row["path"] == name] for name in arguments.paths}
    print(results.plot(arguments.name, "Cost of a nap", "calls/s", "µs of CPU per call, whole host", lines))
    return 0


COLUMNS = (
    "proxy_us", "shim_us", "sidecar_us", "host_us", "late_p50_ms", "late_p90_ms", "late_p99_ms", "late_p999_ms",
    "early", "failed", "retransmissions",
)  # fmt: skip


def measure(path: Way, rate: int, seconds: int, journal: str) -> dict[str, float]:
    """One step of one path: everything is started, loaded and ended."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sipnap-bench-")))
        defines: dict[str, str | int] = {path.define: "", "NAP_MS": NAP_MS, "NAP_SECONDS": NAP_MS // 1000}
        proxy = stack.enter_context(_proxy(path, directory, defines))
        helpers: list[Process] = []
        if path.is_sipnap:
            kept = "memory" if journal == "memory" else f"sqlite:{directory}/journal.sqlite3"
            sidecar = stack.enter_context(Sidecar("--journal", kept))
            shim = stack.enter_context(Shim(proxy.ports, sidecar.target))
            wait_until(lambda: _gate_is_open(proxy), 10, "the gate opens")
            helpers = [shim, sidecar]
        processes = [proxy, *helpers]
        before = [process.cpu_seconds() for process in processes]
        callers = stack.enter_context(_Callers(directory, proxy.address, rate, seconds))
        outcome = callers.result()
        used = [process.cpu_seconds() - start for process, start in zip(processes, before, strict=True)]
    per_call = [cpu / (rate * seconds) * 1e6 for cpu in used] + [0.0] * (3 - len(used))
    return {
        "proxy_us": per_call[0], "shim_us": per_call[1], "sidecar_us": per_call[2], "host_us": sum(per_call), **outcome,
    }  # fmt: skip


def _proxy(path: Way, directory: Path, defines: dict[str, str | int]) -> Proxy:
    return Proxy(
        directory / "proxy",
        script=SCRIPTS / path.script,
        kemi_script=SCRIPTS / path.kemi_script if path.kemi_script else "kemi_script.py",
        memory_mb=1024,
        defines=defines,
    )


def _gate_is_open(proxy: Proxy) -> bool:
    return int(proxy.rpc("pv.shvGet", "sipnap_gate")["value"]) > 0


class _Callers(Process):
    """SIPp at full speed: it keeps response times only."""

    def __init__(self, directory: Path, proxy: str, rate: int, seconds: int) -> None:
        assert SIPP, "sipp is not installed: apt-get install sip-tester"
        self._directory = directory
        self._seconds = seconds
        super().__init__(
            "sipp",
            [
                SIPP, proxy, "-sf", SCRIPTS / "calls.xml", "-s", "nap", "-r", str(rate), "-m", str(rate * seconds),
                "-l", "60000", "-i", "127.0.0.1", "-p", str(free_port()), "-nostdin", "-buff_size", "4000000",
                "-trace_stat", "-stf", directory / "stat.csv", "-fd", "600", "-trace_rtt", "-rtt_freq", "1000",
                "-recv_timeout", "20000",
            ],
            cwd=directory,
        )  # fmt: skip

    def result(self) -> dict[str, float]:
        """Wait for the last call, and say what became of all."""
        self.wait(self._seconds * 3 + 60)
        with (self._directory / "stat.csv").open() as stat:
            row = list(csv.DictReader(stat, delimiter=";"))[-1]
        late = sorted(_late_ms(self._directory))
        return {
            "calls": len(late),
            "failed": int(row["FailedCall(C)"]),
            "retransmissions": int(row["Retransmissions(C)"]),
            "early": sum(1 for value in late if value < 0),
            "late_p50_ms": results.percentile(late, 50),
            "late_p90_ms": results.percentile(late, 90),
            "late_p99_ms": results.percentile(late, 99),
            "late_p999_ms": results.percentile(late, 99.9),
        }


def _late_ms(directory: Path) -> Sequence[float]:
    (log,) = directory.glob("*_rtt.csv")
    with log.open() as lines:
        rows = list(csv.reader(lines, delimiter=";"))
    return [float(row[1]) - NAP_MS for row in rows[1:] if len(row) >= 2]
