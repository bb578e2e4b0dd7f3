"""A real Kamailio under the load of a real SIPp: one step of a benchmark, from start to end."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import resource
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from bench import results
from tests.acceptance.proxy import Ports, Proxy
from tests.acceptance.sipp import SIPP
from tests.acceptance.stack import Shim
from tests.support.processes import Process, Sidecar, free_port, wait_until
from tests.support.redis_server import RedisServer

SCRIPTS = Path(__file__).parent / "scripts"
ROOT = Path(__file__).parent.parent

PROBES_PER_SECOND = 400
"""Of each load, so many calls/s are placed by the prober, which measures their lateness."""

MOST_BAD = 0.001
"""Share of calls that may fail or be sent again in a step that counts as clean."""

LEAST_REACHED = 0.97
"""Share of the rate that the callers have to reach for the step to count."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to nap."""

    name: str
    """As tables and files show it."""
    title: str
    """As the documentation shows it."""
    script: str
    """Proxy script, in bench/scripts."""
    defines: Mapping[str, str]
    """What the script is to be."""
    kemi_script: str = ""
    """KEMI script, if it is one."""

    is_bare: bool = False
    """Whether `bench.bare_shim` stands in the place of shim and sidecar."""

    @property
    def is_sipnap(self) -> bool:
        """Whether sidecar and shim are part of it, or the bare shim."""
        return "PATH_SIPNAP" in self.defines


WAYS = {
    way.name: way
    for way in (
        Way("async_ms_route", "native `async_ms_route`", "native.cfg", {"PATH_ASYNC_MS": ""}),
        Way("sipnap", "sipnap, native script", "native.cfg", {"PATH_SIPNAP": ""}),
        Way(
            "sipnap_minimal", "sipnap, native script, minimal state", "native.cfg",
            {"PATH_SIPNAP": "", "SIPNAP_MINIMAL": ""},
        ),
        Way(
            "bare_shim", "bare shim: no sidecar, no promise", "native.cfg",
            {"PATH_SIPNAP": "", "SIPNAP_MINIMAL": ""}, is_bare=True,
        ),
        Way("async_route", "native `async_route`", "native.cfg", {"PATH_ASYNC": ""}),
        Way("kemi_async", "KEMI, `KSR.async.ms_route`", "kemi.cfg", {"PATH_ASYNC_MS": ""}, "async_script.py"),
        Way("kemi_sipnap", "sipnap, KEMI", "kemi.cfg", {"PATH_SIPNAP": ""}, "sipnap_script.py"),
    )
}  # fmt: skip
"""All of them; the first is what the others are compared with."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be measured."""

    way: Way
    """By whom the calls are held."""
    rate: int
    """Calls/s, those of the prober included."""
    seconds: float
    """For how long calls are placed."""
    nap_ms: int = 1000
    """How long each call naps."""
    journal: str = "sqlite"
    """The sidecar's: memory, sqlite (synced to the disk) or redis."""
    padding_bytes: int = 0
    """How much larger than some 700 bytes each INVITE is."""
    defines: Mapping[str, str | int] = field(default_factory=dict)
    """More for the script."""
    sidecar_flags: Sequence[str] = ()
    """More for the sidecar."""
    user: str = "nap"
    """User part that SIPp calls; may have its keywords."""
    first_probe: int = 0
    """Number that the prober calls first, and counts on from; 0: it calls ``probe``."""


COLUMNS = (
    "reached", "proxy_us", "shim_us", "sidecar_us", "host_us", "caller_us",
    "late_p50_ms", "late_p90_ms", "late_p99_ms", "late_p999_ms", "early", "failed", "retransmissions",
)  # fmt: skip
"""What `measure` finds: share of the rate that was reached, µs of CPU per call, lateness, counts."""


def has_minimal_state() -> bool:
    """Whether sipnap.cfg knows SIPNAP_MINIMAL."""
    return "SIPNAP_MINIMAL" in (ROOT / "shim/sipnap/shim/kamailio/sipnap.cfg").read_text()


def is_clean(measured: Mapping[str, float]) -> bool:
    """Whether the calls went as they should."""
    bad = measured["failed"] + measured["retransmissions"]
    return bad <= MOST_BAD * measured["calls"] and measured["reached"] >= LEAST_REACHED


def measure(step: Step) -> dict[str, float]:
    """One step: everything is started, loaded and ended."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sipnap-bench-")))
        proxy, helpers = start(step, directory, stack)
        processes = [proxy, *helpers]
        before = [process.cpu_seconds() for process in processes]
        outcome = _load(step, proxy, directory, stack)
        used = [process.cpu_seconds() - start for process, start in zip(processes, before, strict=True)]
        ended = [process.tail() for process in processes if process.exit_code is not None]
        if ended:
            raise RuntimeError("\n".join(ended))
    per_call = [cpu / outcome["calls"] * 1e6 for cpu in used] + [0.0] * (3 - len(used))
    return {
        "proxy_us": per_call[0], "shim_us": per_call[1], "sidecar_us": per_call[2], "host_us": sum(per_call), **outcome,
    }  # fmt: skip


def start(step: Step, directory: Path, stack: ExitStack) -> tuple[Proxy, list[Process]]:
    """Start the proxy, and shim and sidecar if they are part of it; leaving the stack ends them."""
    proxy = stack.enter_context(_proxy(step, directory / "proxy"))
    if not step.way.is_sipnap:
        return proxy, []
    if step.way.is_bare:
        shim: Process = stack.enter_context(_bare_shim(proxy.ports))
        wait_until(lambda: gate_is_open(proxy), 10, "the gate opens")
        return proxy, [shim]
    sidecar = stack.enter_context(Sidecar(*_journal_flags(step, directory, stack), *step.sidecar_flags))
    shim = stack.enter_context(Shim(proxy.ports, sidecar.target))
    wait_until(lambda: gate_is_open(proxy), 10, "the gate opens")
    return proxy, [shim, sidecar]


def _bare_shim(ports: Ports) -> Process:
    return Process(
        "bare shim",
        [
            sys.executable, "-m", "bench.bare_shim", "--listen-port", str(ports.shim), "--proxy-port", str(ports.nap),
        ],
        ready=r"^ready",
        env={"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        cwd=ROOT,
    )  # fmt: skip


def last_line(statistics: Path) -> Mapping[str, str]:
    """What SIPp counted, at its end."""
    with statistics.open() as lines:
        return list(csv.DictReader(lines, delimiter=";"))[-1]


def gate_is_open(proxy: Proxy) -> bool:
    """Whether requests may nap."""
    return int(proxy.rpc("pv.shvGet", "sipnap_gate")["value"]) > 0


def _proxy(step: Step, directory: Path) -> Proxy:
    way = step.way
    seconds = max(1, step.nap_ms // 1000)
    with redirect_stdout(io.StringIO()):  # it says which files it wrote
        return Proxy(
            directory,
            script=SCRIPTS / way.script,
            kemi_script=SCRIPTS / way.kemi_script if way.kemi_script else "kemi_script.py",
            memory_mb=1024,
            defines={**way.defines, "NAP_MS": step.nap_ms, "NAP_SECONDS": seconds, **step.defines},
        )


def _journal_flags(step: Step, directory: Path, stack: ExitStack) -> list[str]:
    if step.journal == "memory":
        return ["--journal", "memory"]
    if step.journal == "redis":
        folder = directory / "redis"
        folder.mkdir()
        return ["--journal", stack.enter_context(RedisServer(folder)).url]
    return ["--journal", f"sqlite:{directory}/journal.sqlite3"]


def _load(step: Step, proxy: Proxy, directory: Path, stack: ExitStack) -> dict[str, float]:
    probes_per_second = min(PROBES_PER_SECOND, step.rate // 4)
    rate = step.rate - probes_per_second
    calls = int(rate * step.seconds)
    scenario = directory / "calls.xml"
    text = (SCRIPTS / "calls.xml").read_text().replace("PADDING", padding(step.padding_bytes))
    scenario.write_text(text.replace("[service]", step.user))
    cpu_before = _children_cpu_seconds()
    prober = stack.enter_context(
        Process(
            "prober",
            [
                sys.executable, "-m", "bench.probe", "--proxy-port", str(proxy.ports.sip),
                "--rate", str(probes_per_second), "--seconds", str(step.seconds), "--nap-ms", str(step.nap_ms),
                "--first-user", str(step.first_probe),
            ],
            env={"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            cwd=ROOT,
        )
    )  # fmt: skip
    assert SIPP, "sipp is not installed: apt-get install sip-tester"
    sipp = stack.enter_context(
        Process(
            "sipp",
            [
                SIPP, proxy.address, "-sf", scenario, "-r", str(rate), "-m", str(calls),
                "-l", "400000", "-i", "127.0.0.1", "-p", str(free_port()), "-nostdin", "-buff_size", "4000000",
                "-trace_stat", "-stf", directory / "stat.csv", "-fd", "1", "-recv_timeout", str(step.nap_ms + 20_000),
            ],
            cwd=directory,
        )
    )  # fmt: skip
    bound_seconds = step.seconds * 3 + step.nap_ms / 1000 + 60
    sipp.wait(bound_seconds)
    prober.wait(bound_seconds)
    caller_seconds = _children_cpu_seconds() - cpu_before
    probed = json.loads(re.sub(r"\A[^{]*", "", prober.output()))
    with (directory / "stat.csv").open() as stat:
        rows = list(csv.DictReader(stat, delimiter=";"))
    total = calls + probed["calls"]
    return {
        "calls": total,
        "reached": min(1.0, calls / _placing_seconds(rows, calls) / rate),
        "caller_us": caller_seconds / total * 1e6,
        "failed": int(rows[-1]["FailedCall(C)"]) + probed["failed"],
        "retransmissions": int(rows[-1]["Retransmissions(C)"]),
        "early": sum(1 for late_ms in probed["proxy_late_ms"] + probed["late_ms"] if late_ms < 0),
        **results.lateness(probed["late_ms"]),
        **{f"proxy_{name}": value for name, value in results.lateness(probed["proxy_late_ms"]).items()},
        "probes": len(probed["late_ms"]),
    }


def _placing_seconds(rows: Sequence[Mapping[str, str]], calls: int) -> float:
    """How long it took SIPp to place all calls: it writes a line each second."""
    seconds = [float(row["CurrentTime"].split("\t")[-1]) for row in rows]
    placed = [int(row["TotalCallCreated"]) for row in rows]
    last = next(index for index, count in enumerate(placed) if count >= calls)
    if last == 0:
        return seconds[0] - float(rows[0]["StartTime"].split("\t")[-1])
    # Within its last second it placed what was left at the pace of the one before.
    began = float(rows[0]["StartTime"].split("\t")[-1])
    per_second = placed[last - 1] / max(1e-3, seconds[last - 1] - began)
    return seconds[last - 1] - began + min(seconds[last] - seconds[last - 1], (calls - placed[last - 1]) / per_second)


def padding(size: int) -> str:
    """Headers of so many bytes together, to the hundred."""
    return "".join(f"X-Padding: {'p' * 87}\n" for _ in range(round(size / 100)))


def _children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
