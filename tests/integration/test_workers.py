"""Worker groups of a real sidecar: operations, retries, resizing under load, full queues, SIGHUP."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sipnap.client import FrontEndSession, SuspensionKey, aio, errors, key_of, sync
from sipnap.client.operations import Value, arguments_of, operation_message
from sipnap.v1 import admin_service_pb2 as admin
from sipnap.v1 import suspension_pb2 as pb
from tests.support.operations import DIARY
from tests.support.processes import Sidecar, free_port, sipnap, wait_until

EPOCH = 1_000
OPERATIONS = ("--operations", "tests.support.operations")


@pytest.fixture
def diary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the operations of the sidecar write down."""
    path = tmp_path / "diary"
    monkeypatch.setenv(DIARY, str(path))
    return path


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    flags = ("--group", "name=lookups,workers=4,queue=20", "--group", "name=far,kind=remote")
    with Sidecar(*OPERATIONS, *flags, "--workers", "2") as sidecar:
        yield sidecar


class FrontEnd:
    """A front end that notes its continues by number, and answers for them."""

    def __init__(self, session: FrontEndSession) -> None:
        self.session = session
        self.continues: dict[int, pb.Continue] = {}
        self.times: Counter[int] = Counter()

    def suspend(self, number: int, *operations: pb.Operation, seconds: float = 20.0) -> None:
        key = SuspensionKey("bench", EPOCH, number, 1, 1)
        suspension = pb.Suspension(key=key.to_message(), resume_route="R", operations=operations)
        suspension.delay.FromNanoseconds(int(seconds * 1e9))
        self.session.suspend(suspension)

    async def result(self, number: int) -> pb.Continue:
        await self.until(lambda: number in self.continues)
        return self.continues[number]

    async def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)

    async def listen(self) -> None:
        async for batch in self.session.batches():
            for message in batch:
                self.continues[message.key.transaction_index] = message
                self.times[message.key.transaction_index] += 1
                self.session.answer(key_of(message.key), pb.CONTINUE_OUTCOME_APPLIED)


@asynccontextmanager
async def front_end(sidecar: Sidecar) -> AsyncIterator[FrontEnd]:
    async with FrontEndSession([sidecar.target], front_end_id="bench", boot_epoch=EPOCH) as session:
        await session.wait_connected(10)
        bench = FrontEnd(session)
        listener = asyncio.create_task(bench.listen())
        try:
            yield bench
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)


def diary_lines(diary: Path) -> list[str]:
    return diary.read_text().splitlines() if diary.exists() else []


def group_of(status: admin.GetStatusResponse, name: str) -> admin.WorkerGroupStatus:
    return next(group for group in status.worker_groups if group.name == name)


async def test_several_operations_of_one_nap_answer_together(sidecar: Sidecar) -> None:
    async with front_end(sidecar) as bench:
        hostile = bytes(range(256))
        bench.suspend(
            1,
            operation_message("echo", {"who": hostile, "ms": 50}, prefix="first_"),
            operation_message("echo", {"many": [1, True, b"x"]}, group="lookups", prefix="second_"),
            operation_message("pass"),
        )
        answer = await bench.result(1)
        assert (answer.status, answer.error, answer.error_code) == (pb.CONTINUE_STATUS_OK, "", "")
        assert arguments_of(answer.values) == {"first_who": hostile, "second_many": [1, True, b"x"]}


async def test_what_goes_wrong_reaches_the_script(sidecar: Sidecar, diary: Path) -> None:
    async with front_end(sidecar) as bench:
        bench.suspend(1, operation_message("flaky", {"id": "a", "failures": 2}))
        bench.suspend(2, operation_message("flaky", {"id": "b", "failures": 3}))
        bench.suspend(3, operation_message("stuck"))
        bench.suspend(4, operation_message("broken"), operation_message("echo", {"half": 1}))
        bench.suspend(5, operation_message("echo", {"ms": 60_000}, group="lookups"), seconds=0.2)
        bench.suspend(6, operation_message("leave"))
        answers = [await bench.result(number) for number in range(1, 7)]
        assert [(answer.status, answer.error_code, answer.error) for answer in answers] == [
            (pb.CONTINUE_STATUS_OK, "", ""),
            (pb.CONTINUE_STATUS_FAILED, "busy", "flaky: attempt 3: not now"),
            (pb.CONTINUE_STATUS_TIMED_OUT, "timeout", answers[2].error),
            (
                pb.CONTINUE_STATUS_FAILED,
                "zero_division_error",
                "broken: ZeroDivisionError: what nobody expects",
            ),
            (pb.CONTINUE_STATUS_TIMED_OUT, "timeout", "echo: took longer than the nap's 0.2 s"),
            (pb.CONTINUE_STATUS_FAILED, "system_exit", "leave: the operation called sys.exit(3)"),
        ]
        assert answers[2].error.startswith("stuck: took longer than 0.1")
        assert arguments_of(answers[0].values) == {"attempts": 3}
        assert arguments_of(answers[3].values) == {"half": 1}, "the good half is delivered"
        async with aio.Client(sidecar.target) as client:
            group = group_of(await client.status(), "default")
        assert (group.succeeded, group.failed, group.timed_out, group.retried) == (2, 3, 1, 5)


async def test_a_cancel_reaches_the_running_operation(diary: Path) -> None:
    with Sidecar(*OPERATIONS) as sidecar:
        async with front_end(sidecar) as bench:
            bench.suspend(1, operation_message("echo", {"id": "x", "ms": 60_000}))
            await bench.until(lambda: "x began" in diary_lines(diary))
            bench.session.cancel(SuspensionKey("bench", EPOCH, 1, 1, 1))
            await bench.until(lambda: "x cancelled" in diary_lines(diary))
            async with aio.Client(sidecar.target) as client:
                group = group_of(await client.status(), "default")
                assert (group.busy, group.abandoned) == (0, 1)


async def test_groups_are_resized_under_load_and_nothing_is_lost_nor_twice(diary: Path) -> None:
    with Sidecar(*OPERATIONS, "--group", "name=lookups,workers=1,queue=5000") as sidecar:
        async with front_end(sidecar) as bench, aio.Client(sidecar.target) as client:
            sent = 0
            busiest: list[int] = []

            async def load() -> None:
                nonlocal sent
                while True:
                    for _ in range(4):
                        sent += 1
                        arguments: dict[str, Value] = {"id": f"n{sent}", "ms": 20, "number": sent}
                        bench.suspend(sent, operation_message("echo", arguments, group="lookups"))
                    await asyncio.sleep(0.01)

            sender = asyncio.create_task(load())
            for workers in (1, 64, 1, 16):
                before = group_of(await client.status(), "lookups").workers
                resized = await client.set_workers("lookups", workers)
                assert (resized.previous_workers, resized.group.workers) == (before, workers)
                most = 0
                end_seconds = asyncio.get_running_loop().time() + 0.7
                while asyncio.get_running_loop().time() < end_seconds:
                    most = max(most, group_of(await client.status(), "lookups").busy)
                    await asyncio.sleep(0.02)
                busiest.append(most)
            sender.cancel()
            await bench.until(lambda: len(bench.continues) == sent)
            group = group_of(await client.status(), "lookups")
    assert busiest[0] == 1
    assert 1 < busiest[1] <= 64, "growing takes effect at once"
    assert set(bench.continues) == set(range(1, sent + 1))
    assert set(bench.times.values()) == {1}
    for number, answer in bench.continues.items():
        assert arguments_of(answer.values)["number"] == number, "its own result"
    noted = Counter(await asyncio.to_thread(diary_lines, diary))
    assert set(noted.values()) == {1}, "nothing runs twice"
    assert noted.keys() == {f"n{number} {what}" for number in range(1, sent + 1) for what in ("began", "ended")}
    assert (group.succeeded, group.queued, group.busy) == (sent, 0, 0)


async def test_a_full_queue_refuses_and_says_when_to_come_again(sidecar: Sidecar) -> None:
    async with front_end(sidecar) as bench, aio.Client(sidecar.target) as client:
        slow = operation_message("echo", {"ms": 200}, group="lookups")
        bench.suspend(1, slow)
        await bench.result(1)
        for number in range(2, 26):  # four run, twenty wait
            bench.suspend(number, slow)
        await bench.until(lambda: bench.session.outstanding == 24)
        async with asyncio.timeout(5):
            while group_of(await client.status(), "lookups").queued < 20:
                await asyncio.sleep(0.005)
        with pytest.raises(errors.Full, match="'lookups'") as caught:
            await client.suspend_route(SuspensionKey("bench", 0, 99, 1, 1), "R", 5, operations=[slow])
        assert caught.value.retry_after_seconds == pytest.approx(0.2 * 20 / 4, rel=0.3)
        bench.suspend(98, slow)
        refused = await bench.result(98)
        assert refused.status == pb.CONTINUE_STATUS_FAILED
        assert "full" in refused.error
        accepted = await client.suspend_route(
            SuspensionKey("bench", 0, 97, 1, 1), "R", 5, operations=[operation_message("pass")]
        )
        assert not accepted.already_held, "other groups are not touched"
        await bench.until(lambda: len(bench.continues) == 27)
        assert group_of(await client.status(), "lookups").refused == 2


async def test_large_results_at_once_come_in_several_messages() -> None:
    with Sidecar(*OPERATIONS, "--workers", "1000") as sidecar:
        async with front_end(sidecar) as bench:
            for number in range(1, 401):
                bench.suspend(number, operation_message("big", {"size": 60_000}))
            bench.suspend(401, operation_message("big", {"size": 66_000}))
            await bench.until(lambda: len(bench.continues) == 401)
    assert set(bench.times.values()) == {1}
    assert bench.continues[401].error_code == "bad_result"
    del bench.continues[401]
    assert {len(answer.values[0].value.text) for answer in bench.continues.values()} == {60_000}


def test_workers_on_the_command_line(sidecar: Sidecar) -> None:
    def run(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            sipnap(*words, "--sidecar", sidecar.target), capture_output=True, text=True, timeout=30, check=False
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    assert run("workers", "set", "lookups", "32") == (0, "lookups: 32 workers, before 4; 0 busy, 0 queued\n")
    code, said = run("workers", "list")
    assert code == 0
    rows = [line.split()[:4] for line in said.splitlines()[1:]]
    assert rows == [["default", "async", "2", "0"], ["lookups", "async", "32", "0"], ["far", "remote", "0", "0"]]
    for words, problem in [
        (("nowhere", "3"), "there are: default, lookups, far"),
        (("far", "3"), "sipnap worker"),
        (("lookups", "0"), "1 to 10000"),
        (("lookups", "10001"), "1 to 10000"),
    ]:
        code, said = run("workers", "set", *words)
        assert code in (1, 2)
        assert problem in said
    code, said = run("top", "--count", "2", "--interval", "0.1")
    assert code == 0
    assert said.count("GROUP ") == 2
    assert "\x1b" not in said, "no terminal, no codes for one"
    assert re.search(r"^lookups +async +32 ", said, re.MULTILINE)


def test_sighup_takes_other_workers_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "sipnap.toml"

    def write(*lines: str) -> None:
        file.write_text("\n".join(["[serve]", *lines]) + "\n")

    def workers() -> dict[str, int]:
        with sync.Client(server.target) as client:
            return {group.name: group.workers for group in client.status().worker_groups}

    def hang_up(says: str) -> None:
        seen = len(re.findall(says, server.output()))
        server.signal(signal.SIGHUP)
        wait_until(lambda: len(re.findall(says, server.output())) > seen, 10, server.tail)

    write("workers = 3", 'group = ["name=lookups,workers=4"]')
    with Sidecar("--config", file) as server:
        assert workers() == {"default": 3, "lookups": 4}
        write("workers = 5", 'group = ["name=lookups,workers=40"]', "max_pending = 77")
        hang_up("settings read again")
        assert workers() == {"default": 5, "lookups": 40}
        assert "needs a restart setting=max_pending" in server.output()
        write("workers = 6", 'group = ["name=lookups,workers=none"]')
        hang_up("settings not taken, nothing has changed reason=.*workers='none'")
        write("this is no TOML")
        hang_up("settings not taken, nothing has changed reason=.*is no TOML")
        file.unlink()
        hang_up("settings not taken, nothing has changed reason=.*cannot be read")
        assert workers() == {"default": 5, "lookups": 40}
        write("workers = 6", 'group = ["name=lookups,workers=7,kind=remote"]')
        hang_up("settings not taken.*not for kind=remote")
        write("workers = 6", 'group = ["name=new,workers=7"]')
        hang_up("settings read again")
        assert workers() == {"default": 6, "lookups": 40}
        assert "needs a restart group=new change=new" in server.output()
        assert 'needs a restart group=lookups change="not there now"' in server.output()
        assert server.stop() == 0


async def test_what_was_queued_survives_a_kill(tmp_path: Path, diary: Path) -> None:
    flags = (*OPERATIONS, "--workers", "1", "--journal", f"sqlite:{tmp_path / 'journal'}")
    with Sidecar(*flags) as sidecar:
        async with front_end(sidecar) as bench:
            bench.suspend(1, operation_message("echo", {"id": "a", "ms": 60_000}))
            await bench.until(lambda: "a began" in diary_lines(diary))
            both = [operation_message("echo", {"id": name, name: 1}, prefix=f"{name}_") for name in ("b", "c")]
            bench.suspend(2, *both)
            async with aio.Client(sidecar.target) as client, asyncio.timeout(10):
                while group_of(await client.status(), "default").queued < 2:
                    await asyncio.sleep(0.01)
            sidecar.kill()
            with Sidecar(*flags, "--workers", "3", port=sidecar.port):
                answer = await bench.result(2)
                assert sorted(arguments_of(answer.values)) == ["b_b", "b_id", "c_c", "c_id"]
                await bench.until(lambda: diary_lines(diary).count("a began") == 2)


def test_metrics_of_groups(sidecar: Sidecar) -> None:
    async def work() -> None:
        async with front_end(sidecar) as bench:
            bench.suspend(1, operation_message("echo", {"ms": 20}, group="lookups"))
            await bench.result(1)

    port = free_port()
    with Sidecar(*OPERATIONS, "--group", "name=lookups,workers=4", "--metrics", f"127.0.0.1:{port}") as sidecar:
        asyncio.run(work())
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            text = response.read().decode()
    for line in (
        'sipnap_group_workers{group="lookups"} 4.0',
        'sipnap_group_idle_workers{group="lookups"} 4.0',
        'sipnap_group_saturation{group="lookups"} 0.0',
        'sipnap_group_operations_total{group="lookups",result="succeeded"} 1.0',
        'sipnap_group_retried_total{group="lookups"} 0.0',
        'sipnap_group_run_seconds_bucket{group="lookups",le="0.01"} 0.0',
        'sipnap_group_run_seconds_bucket{group="lookups",le="+Inf"} 1.0',
        'sipnap_group_wait_seconds_count{group="lookups"} 1.0',
    ):
        assert line in text.splitlines(), line


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--group", "name=a"), "workers= is missing"),
        (("--group", "workers=3"), "a group needs a name"),
        (("--group", "name=a,workers=3,kind=thread"), "not async, process or remote"),
        (("--group", "name=a,workers=3,size=1"), "'size' is not one of"),
        (("--group", "name=a,workers=3,workers=4"), "workers is given twice"),
        (("--group", "name=a b,workers=3"), "a group needs a name"),
        (("--group", "name=a,workers=0"), "from 1 to 10000"),
        (("--group", "name=a,workers=3,queue=x"), "queue='x'"),
        (("--group", "name=a,kind=remote,workers=3"), "not for kind=remote"),
        (("--group", "name=a,workers=3", "--group", "name=a,workers=4"), "two by the name of 'a'"),
    ],
)
def test_bad_groups_are_told_why(flags: tuple[str, ...], problem: str) -> None:
    done = subprocess.run(
        sipnap("serve", "--journal", "memory", *flags), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode in (1, 2)
    assert problem in done.stderr
    assert len(done.stderr.splitlines()) == 1
