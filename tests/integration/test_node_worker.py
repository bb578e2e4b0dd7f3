"""The Node worker, for real: it serves an operation beside a Python worker, is killed, and drains."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from sipnap.client.operations import Value
from sipnap.v1 import suspension_pb2 as pb
from tests.support.processes import Process, Sidecar
from tests.support.worker_driver import driving, group_status, until_group, values_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def node_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its packages."""
    directory = tmp_path_factory.mktemp("node")
    npm = shutil.which("npm")
    assert npm, "no npm on the PATH; scripts/system-packages installs it"
    for name in ("package.json", "package-lock.json", "worker.js"):
        shutil.copy(ROOT / "examples" / "node" / name, directory)
    words = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(words, cwd=directory, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def node_worker(directory: Path, sidecar: Sidecar, *flags: str, ready: bool = True) -> Process:
    node = shutil.which("node")
    assert node, "no node on the PATH; scripts/system-packages installs it"
    words: list[str | Path] = [node, "worker.js", "--sidecar", sidecar.target, "--protos", ROOT / "protos", *flags]
    return Process("worker.js", words, cwd=directory, ready=r"^worker.js: ready on " if ready else None)


@pytest.mark.timeout(240)  # npm fetches some thirty packages
async def test_a_worker_in_node_does_what_one_in_python_does(node_directory: Path) -> None:
    with (
        Sidecar("--group", "name=lookups,kind=remote", "--lease-seconds", "1") as sidecar,
        node_worker(node_directory, sidecar, "--concurrency", "4") as first,
    ):
        async with driving(sidecar.target) as driver:

            def ask(user: str, ms: int = 20, max_attempts: int = 0) -> int:
                arguments: dict[str, Value] = {"user": user, "ms": ms}
                return driver.ask("account", arguments, group="lookups", max_attempts=max_attempts)

            answer = await driver.answer(ask("alice"))
            assert values_of(answer) == {"account": b"account-of-alice", "is_prepaid": True, "call_id": b"call-1"}
            answer = await driver.answer(driver.ask("account", group="lookups"))
            assert (answer.status, answer.error_code) == (pb.CONTINUE_STATUS_FAILED, "no_user")

            # Longer than a lease: it is extended. Cancelled when nobody waits: the place is free again.
            assert (await driver.answer(ask("slow", 2500))).status == pb.CONTINUE_STATUS_OK
            late = [
                driver.ask("account", {"user": "x", "ms": 30_000}, group="lookups", timeout_seconds=0.2, max_attempts=1)
                for _ in range(4)
            ]
            for number in late:
                assert (await driver.answer(number)).error_code == "timeout"
            assert (await driver.answer(ask("after"))).status == pb.CONTINUE_STATUS_OK
            assert (await group_status(sidecar.target, "lookups")).retried == 0

            # Killed under load, with another one beside it.
            driver.came.clear()
            before = driver.asked
            with node_worker(node_directory, sidecar, "--concurrency", "4") as second:
                numbers = [ask(f"user{number}", 30) for number in range(200)]
                await driver.answer(numbers[20])
                first.kill()
                for number in numbers:
                    answer = await driver.answer(number)
                    assert values_of(answer)["account"] == f"account-of-user{number - before - 1}".encode()
                assert driver.repeated == 0

                # A drain finishes what has begun.
                await until_group(sidecar.target, lambda group: group.workers == 4, name="lookups")
                numbers = [ask("last", 600, max_attempts=1) for _ in range(4)]
                await until_group(sidecar.target, lambda group: group.busy == 4, name="lookups")
                second.signal(signal.SIGTERM)
                for number in numbers:
                    assert (await driver.answer(number)).status == pb.CONTINUE_STATUS_OK
                assert second.wait(10) == 0


@pytest.mark.timeout(240)
def test_a_worker_in_node_says_what_is_wrong(node_directory: Path) -> None:
    with Sidecar() as sidecar, node_worker(node_directory, sidecar, "--group", "nowhere", ready=False) as worker:
        assert worker.wait(20) == 1
        assert "'nowhere' is no group of kind remote here" in worker.output()
