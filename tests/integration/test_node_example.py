"""The Node example, for real: packages from the npm registry, the protos of this checkout, a running sidecar."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import Sidecar

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(180)  # npm fetches some thirty packages
def test_a_node_program_naps_and_receives_its_continue(sidecar: Sidecar, tmp_path: Path) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    assert node, "no node on the PATH; scripts/system-packages installs it"
    assert npm, "no npm on the PATH; scripts/system-packages installs it"
    for name in ("package.json", "package-lock.json", "nap.js"):
        shutil.copy(ROOT / "examples" / "node" / name, tmp_path)
    _run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=tmp_path)
    said = _run(node, "nap.js", "--sidecar", sidecar.target, "--protos", ROOT / "protos", cwd=tmp_path)
    steps = [line.split("ms  ", 1)[1] for line in said.splitlines()]
    assert steps[0] == "Sleep for 200 ms"
    assert steps[1] == "slept"
    assert steps[2].startswith("session open, sidecar ")
    assert steps[3:] == [
        "suspended for 200 ms, DURABILITY_MEMORY",
        "continue for route RESUME, CONTINUE_STATUS_OK, attempt 1",
        "answered APPLIED",
        "continue for route ANSWERED, CONTINUE_STATUS_OK, 0 values",
        "task for route CLEAN_UP, data 4711",
    ]
    times_ms = [int(line.split()[0]) for line in said.splitlines()]
    assert times_ms[1] - times_ms[0] >= 199, "slept too little"  # printed as whole milliseconds, each rounded


def _run(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, f"{words[0]} {words[1]}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout
