"""What a call costs while as many nap as ever will: CPU is read in a window in which calls come and go at one rate."""

from __future__ import annotations

import random
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import load
from bench.load import Step
from tests.acceptance.proxy import Proxy
from tests.acceptance.sipp import SIPP
from tests.support.processes import Process, free_port

_SETTLING_SECONDS = 0.5


def measure(step: Step) -> dict[str, Any]:
    """Let calls come for as long as a nap takes, then read CPU for `step.seconds`."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sipnap-bench-")))
        proxy, helpers = load.start(step, directory, stack)
        sipp = stack.enter_context(_Callers(step, proxy, directory))
        time.sleep(step.nap_ms / 1000 + _SETTLING_SECONDS)
        began, before = time.monotonic(), [process.cpu_seconds() for process in (proxy, *helpers)]
        time.sleep(step.seconds)
        used = [process.cpu_seconds() - start for process, start in zip((proxy, *helpers), before, strict=True)]
        calls = step.rate * (time.monotonic() - began)
        sipp.wait(step.nap_ms / 1000 + 60)
        row = load.last_line(directory / "stat.csv")
    per_call = [cpu / calls * 1e6 for cpu in used] + [0.0] * (3 - len(used))
    return {
        "proxy_us": per_call[0],
        "shim_us": per_call[1],
        "sidecar_us": per_call[2],
        "host_us": sum(per_call),
        "calls": sipp.calls,
        "failed": int(row["FailedCall(C)"]),
        "retransmissions": int(row["Retransmissions(C)"]),
    }


class _Callers(Process):
    """SIPp. With NAP_RANDOM among the step's defines each call asks for a nap of its own, up to the step's."""

    def __init__(self, step: Step, proxy: Proxy, directory: Path) -> None:
        assert SIPP, "sipp is not installed: apt-get install sip-tester"
        self.calls = int(step.rate * (step.nap_ms / 1000 + 2 * _SETTLING_SECONDS + step.seconds))
        headers = load.padding(step.padding_bytes)
        fields: list[str | Path] = []
        if "NAP_RANDOM" in step.defines:
            headers += "X-Nap-Ms: [field0]\n"
            dice = random.Random(step.nap_ms)
            naps = directory / "naps.csv"
            naps.write_text("SEQUENTIAL\n" + "".join(f"{dice.randint(1, step.nap_ms)};\n" for _ in range(self.calls)))
            fields = ["-inf", naps]
        scenario = directory / "calls.xml"
        text = (load.SCRIPTS / "calls.xml").read_text().replace("PADDING", headers)
        scenario.write_text(text.replace("[service]", step.user))
        super().__init__(
            "sipp",
            [
                SIPP, proxy.address, "-sf", scenario, *fields, "-r", str(step.rate),
                "-m", str(self.calls), "-l", "400000", "-i", "127.0.0.1", "-p", str(free_port()), "-nostdin",
                "-buff_size", "4000000", "-trace_stat", "-stf", directory / "stat.csv", "-fd", "1",
                "-recv_timeout", str(step.nap_ms + 20_000),
            ],
            cwd=directory,
        )  # fmt: skip
