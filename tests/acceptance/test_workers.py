"""Workers that die under load, seen from the proxy: every call is answered once, by its own result or as failed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sipnap.v1.admin_service_pb2 import WorkerGroupStatus
from tests.acceptance.sipp import Callers, header_of
from tests.acceptance.stack import Stack
from tests.support.processes import Process, sipnap, wait_until

MODULE = "tests.acceptance.slow_operations"
RATE, SECONDS = 300, 8
KILL_EVERY_SECONDS = 0.6
LEAST_KILLS = 6


def children_of(pid: int) -> list[int]:
    """Process ids of the workers that a process has started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if (
                int(fields[1]) == pid
                and fields[0] != "Z"
                and b"worker" in (entry / "cmdline").read_bytes().split(b"\0")
            ):
                found.append(int(entry.name))
        except OSError:
            continue  # it has just ended
    return sorted(found)


def kill_while(sipp: Callers, kill_one: Callable[[], None]) -> int:
    """Kill a worker every now and then while calls are placed; how many."""
    kills = 0
    next_kill = time.monotonic() + KILL_EVERY_SECONDS
    while sipp.exit_code is None and kills < 100:
        if time.monotonic() >= next_kill:
            kill_one()
            kills += 1
            next_kill += KILL_EVERY_SECONDS
        time.sleep(0.02)
    return kills


def judge(stack: Stack, sipp: Callers, called: list[str], kills: int, what: str) -> Counter[str]:
    """Every call was answered once, by its own result or as failed; how many with what."""
    calls = sipp.result(60)
    assert (calls.successful, calls.failed) == (len(called), 0), f"{calls}\n{sipp.errors()}"
    replies = sipp.final_replies()
    answers: Counter[str] = Counter()
    for number in called:
        assert len(replies[number]) == 1, f"{number} was answered {len(replies[number])} times"
        (reply,) = replies[number]
        if header_of(reply, "X-Status") == "ok":
            answers["ok"] += 1
            assert header_of(reply, "Contact") == f"<sip:{number}@127.0.0.1>", "mixed up"
        else:
            answers[header_of(reply, "X-Code")] += 1
    retried = group_of(stack).retried
    print(f"\n{what}: {len(called)} calls at {RATE}/s, {kills} workers killed, {retried} retries: {dict(answers)}")
    assert kills >= LEAST_KILLS
    assert set(answers) <= {"ok", "worker_lost"}
    assert answers["ok"] > len(called) * 0.95
    wait_until(lambda: not stack.held(), 10, "nothing is held")
    assert stack.counters().applied == len(called)
    assert "acceptance: resumed twice" not in stack.proxy.output()
    return answers


@pytest.fixture
def called() -> list[str]:
    return [str(number) for number in random.Random(11).sample(range(10**8, 10**9), RATE * SECONDS)]


def callers(directory: Path, stack: Stack, called: list[str], operation: str) -> Callers:
    keys = ("-key", "operation", operation, "-key", "group", "cpu", "-key", "most_ms", "8000")
    return Callers(
        directory / "sipp", stack.proxy.address, scenario="looked_up.xml", rate=RATE, calls=len(called), user="lookup",
        fields=called, keys=keys,
    )  # fmt: skip


@pytest.mark.timeout(120)
@pytest.mark.parametrize("operation", ["compute", "compute_once"])
def test_process_workers_are_killed(tmp_path: Path, called: list[str], operation: str) -> None:
    """Tried again, or ended as failed, as the operation's own policy says."""
    flags = ["--operations", MODULE, "--group", "name=cpu,workers=6,kind=process"]
    with Stack(tmp_path, script="operations.cfg", sidecar_flags=flags) as stack:
        wait_until(lambda: len(children_of(stack.sidecar.pid)) == 6, 30, "all workers are there")
        dice = random.Random(12)
        with callers(tmp_path, stack, called, operation) as sipp:
            kills = kill_while(sipp, lambda: kill_any(children_of(stack.sidecar.pid), dice))
            answers = judge(stack, sipp, called, kills, f"process, {operation}")
        retried = group_of(stack).retried
        assert (retried > 0, answers["worker_lost"] > 0) == ((True, False) if operation == "compute" else (False, True))
        wait_until(lambda: len(children_of(stack.sidecar.pid)) == 6, 20, "the killed ones are replaced")


@pytest.mark.timeout(120)
def test_remote_workers_are_killed(tmp_path: Path, called: list[str]) -> None:
    flags = ["--group", "name=cpu,kind=remote"]
    with ExitStack() as exits, Stack(tmp_path, script="operations.cfg", sidecar_flags=flags) as stack:
        names = iter(range(1000))

        def start() -> Process:
            command = sipnap(
                "worker", "--group", "cpu", "--operations", MODULE, "--sidecar", stack.sidecar.target,
                "--concurrency", "4", "--worker-id", f"worker-{next(names)}",
            )  # fmt: skip
            return exits.enter_context(Process("worker", command))

        workers = [start() for _ in range(4)]
        wait_until(lambda: group_of(stack).workers == 16, 30, "all workers are there")
        places = cycle(len(workers))

        def replace() -> None:
            place = next(places)
            workers[place].kill()
            workers[place] = start()

        with callers(tmp_path, stack, called, "compute_once") as sipp:
            kills = kill_while(sipp, replace)
            answers = judge(stack, sipp, called, kills, "remote")
        assert answers["ok"] == len(called), "a remote worker's jobs are given to another one"
        assert group_of(stack).retried > 0


def group_of(stack: Stack) -> WorkerGroupStatus:
    """The group's own figures."""
    return next(group for group in stack.client.status().worker_groups if group.name == "cpu")


def kill_any(pids: list[int], dice: random.Random) -> None:
    if pids:
        os.kill(dice.choice(pids), signal.SIGKILL)


def cycle(count: int) -> Iterator[int]:
    while True:
        yield from range(count)
