"""`sipnap demo`, as a user runs it."""

from __future__ import annotations

from pathlib import Path

from tests.support.processes import Process, sipnap

DEMO_SECONDS = 20.0


def test_each_call_goes_as_promised(tmp_path: Path) -> None:
    # A real service's settings in the environment are none of the demo's business.
    with Process("demo", sipnap("demo"), env={"SIPNAP_LISTEN": "nonsense"}, cwd=tmp_path) as demo:
        assert demo.wait(DEMO_SECONDS) == 0, demo.tail()
        lines = demo.output().splitlines()
    heading = next(number for number, line in enumerate(lines) if line.startswith("call "))
    assert " ".join(lines[heading].split()) == "call INVITE 100 suspended shipped CANCEL due continued final reply"
    endings = [line.split("  ")[-1] for line in lines[heading + 1 : heading + 6]]
    assert endings == [
        "302 Moved Temporarily", "486 Busy Here", "302 Moved Temporarily", "487 Request Terminated",
        "503 Service Unavailable",
    ]  # fmt: skip
    assert sum(line.startswith("kept") for line in lines) == 5
    assert lines[-1] == "Each call went as promised."
    assert not list(tmp_path.iterdir())
