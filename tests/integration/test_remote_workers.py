"""Remote workers for real: sidecar and workers are processes, and some of them are killed."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from sipnap.client import SuspensionKey
from sipnap.v1 import suspension_pb2 as pb
from sipnap.v1 import worker_service_pb2 as wire
from sipnap.v1.worker_service_pb2_grpc import WorkerServiceStub
from tests.support.processes import Process, Sidecar, sipnap, wait_until
from tests.support.worker_driver import driving, group_status, until_group, values_of, worker_process

GROUP = ("--group", "name=far,kind=remote")


def hello(**changes: Any) -> wire.WorkRequest:
    """A good hello, but for what is given."""
    good = {"protocol_version": 1, "worker_id": "w", "group": "far", "operations": ["echo"]}
    return wire.WorkRequest(hello=wire.WorkerHello(**{**good, **changes}))


@pytest.fixture
def far_sidecar() -> Iterator[Sidecar]:
    with Sidecar(*GROUP, "--lease-seconds", "2") as process:
        yield process


async def test_an_operation_is_run_by_a_worker_and_answers_with_its_own_values(far_sidecar: Sidecar) -> None:
    with worker_process(far_sidecar.target) as worker:
        async with driving(far_sidecar.target) as driver:
            number = driver.ask("echo", {"text": "hello", "list": ["a", "b"], "yes": True}, prefix="found_")
            answer = await driver.answer(number)
            assert values_of(answer) == {
                "found_text": b"hello",
                "found_list": [b"a", b"b"],
                "found_yes": True,
                "found_pid": worker.pid,
                "found_call_id": b"call-1",
            }


async def test_what_goes_wrong_in_a_worker_reaches_the_script(far_sidecar: Sidecar) -> None:
    with worker_process(far_sidecar.target):
        async with driving(far_sidecar.target) as driver:
            wrong = {
                "fail": ("FAILED", "no_luck", "fail: it cannot be done"),
                "odd": ("FAILED", "bad_result", "odd: the operation returned what cannot be sent"),
                "leave": ("FAILED", "system_exit", "leave: the operation called sys.exit(3)"),
                "too_slow": ("TIMED_OUT", "timeout", "too_slow: took longer than 0.1 s"),
            }
            for operation, (status, code, text) in wrong.items():
                answer = await driver.answer(driver.ask(operation))
                assert pb.ContinueStatus.Name(answer.status) == f"CONTINUE_STATUS_{status}"
                assert answer.error_code == code
                assert answer.error.startswith(text)
            started_seconds = time.monotonic()
            answer = await driver.answer(driver.ask("echo", {"ms": 20_000}, timeout_seconds=0.2, max_attempts=1))
            assert (answer.error_code, time.monotonic() - started_seconds < 5) == ("timeout", True)
            # Its place is free again, and the worker does as before.
            assert (await driver.answer(driver.ask("echo"))).status == pb.CONTINUE_STATUS_OK


async def test_an_error_that_asks_for_it_is_tried_again_as_often_as_the_policy_says(far_sidecar: Sidecar) -> None:
    with worker_process(far_sidecar.target):
        async with driving(far_sidecar.target) as driver:
            answer = await driver.answer(driver.ask("fail", {"retry_ms": 20}, max_attempts=4))
            assert answer.error_code == "no_luck"
            assert (await group_status(far_sidecar.target)).retried == 3
            await driver.answer(driver.ask("fail", {"retry_ms": 20}))
            assert (await group_status(far_sidecar.target)).retried == 3 + 2, "3 attempts unless the request says more"


async def test_jobs_wait_for_a_worker_that_knows_the_operation(far_sidecar: Sidecar) -> None:
    async with driving(far_sidecar.target) as driver:
        early, unknown = driver.ask("echo"), driver.ask("nobody_knows_it", seconds=2.5)
        await until_group(far_sidecar.target, lambda group: group.queued == 2)
        with worker_process(far_sidecar.target, concurrency=3):
            assert (await driver.answer(early)).status == pb.CONTINUE_STATUS_OK
            await until_group(far_sidecar.target, lambda group: group.workers == 3)
            answer = await driver.answer(unknown)
            assert (answer.status, answer.error_code) == (pb.CONTINUE_STATUS_TIMED_OUT, "timeout")
        await until_group(far_sidecar.target, lambda group: group.workers == 0)


async def test_killed_workers_cost_time_and_nothing_else(far_sidecar: Sidecar) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(worker_process(far_sidecar.target, concurrency=8)) for _ in range(3)]
        async with driving(far_sidecar.target) as driver:
            for round_ in range(30):
                for number in range(20):
                    driver.ask("echo", {"text": f"{round_}/{number}", "ms": 40})
                await asyncio.sleep(0.03)
                if round_ in (8, 20):
                    workers.pop().kill()
            await driver.all_answers()
            assert driver.statuses() == {"OK": 600}
            assert driver.repeated == 0
            for number, (answer, *_) in driver.came.items():
                assert values_of(answer)["text"] == f"{(number - 1) // 20}/{(number - 1) % 20}".encode()
                assert values_of(answer)["call_id"] == f"call-{number}".encode()
            group = await group_status(far_sidecar.target)
            assert (group.succeeded, group.failed, group.busy, group.queued) == (600, 0, 0, 0)
            assert 0 < group.retried <= 16


async def test_without_an_attempt_left_the_job_of_a_killed_worker_fails_as_worker_lost(far_sidecar: Sidecar) -> None:
    with worker_process(far_sidecar.target, concurrency=5) as victim:
        async with driving(far_sidecar.target) as driver:
            for _ in range(5):
                driver.ask("echo", {"ms": 30_000}, max_attempts=1)
            await until_group(far_sidecar.target, lambda group: group.busy == 5)
            for _ in range(50):
                driver.ask("echo", max_attempts=1)
            with worker_process(far_sidecar.target, concurrency=5):
                victim.kill()
                await driver.all_answers()
                assert driver.statuses() == {"OK": 50, "FAILED worker_lost": 5}
                assert (await group_status(far_sidecar.target)).retried == 0


async def test_a_job_that_kills_its_workers_ends_when_its_attempts_are_used_up(far_sidecar: Sidecar) -> None:
    with ExitStack() as stack:
        victims = [stack.enter_context(worker_process(far_sidecar.target)) for _ in range(3)]
        async with driving(far_sidecar.target) as driver:
            answer = await driver.answer(driver.ask("die"))
            assert (answer.status, answer.error_code) == (pb.CONTINUE_STATUS_FAILED, "worker_lost")
            assert [victim.wait(5) for victim in victims] == [-signal.SIGKILL] * 3


async def test_the_job_of_a_worker_that_stands_still_is_done_by_another_and_its_own_result_is_stale(
    far_sidecar: Sidecar,
) -> None:
    with worker_process(far_sidecar.target, concurrency=1) as still:
        async with driving(far_sidecar.target) as driver:
            first = driver.ask("echo", {"ms": 500})
            await until_group(far_sidecar.target, lambda group: group.busy == 1)
            still.signal(signal.SIGSTOP)
            with worker_process(far_sidecar.target, concurrency=1) as other:
                assert values_of(await driver.answer(first))["pid"] == other.pid
                assert "lease ran out" in far_sidecar.output()
                await until_group(far_sidecar.target, lambda group: group.workers == 1)
                still.signal(signal.SIGCONT)
                await until_group(far_sidecar.target, lambda group: group.workers == 2)
                # Both work, and what the first one had in hand makes no difference any more.
                for _ in range(20):
                    driver.ask("echo", {"ms": 20})
                await driver.all_answers()
                pids = {values_of(answers[0])["pid"] for answers in driver.came.values()}
                assert pids == {still.pid, other.pid}
                assert driver.statuses() == {"OK": 21}
                assert driver.repeated == 0
                assert (await group_status(far_sidecar.target)).retried == 1


async def test_a_sidecar_that_stood_still_does_not_take_that_for_its_workers_silence(far_sidecar: Sidecar) -> None:
    with worker_process(far_sidecar.target):
        async with driving(far_sidecar.target) as driver:
            numbers = [driver.ask("echo", {"ms": ms}, max_attempts=1) for ms in (500, 5500)]
            await until_group(far_sidecar.target, lambda group: group.busy == 2)
            far_sidecar.signal(signal.SIGSTOP)
            await asyncio.sleep(4.5)  # the lease time is 2 s; longer than 5 s the front end would not wait
            far_sidecar.signal(signal.SIGCONT)
            for number in numbers:
                assert (await driver.answer(number)).status == pb.CONTINUE_STATUS_OK
            assert (await group_status(far_sidecar.target)).retried == 0


async def test_an_operation_that_blocks_its_thread_keeps_its_lease(far_sidecar: Sidecar) -> None:
    with worker_process(far_sidecar.target):
        async with driving(far_sidecar.target) as driver:
            answer = await driver.answer(driver.ask("spin", {"ms": 3000}))  # the lease time is 2 s
            assert answer.status == pb.CONTINUE_STATUS_OK
            assert (await group_status(far_sidecar.target)).retried == 0


async def test_a_worker_that_drains_finishes_what_it_has(far_sidecar: Sidecar) -> None:
    with (
        worker_process(far_sidecar.target, concurrency=4) as leaving,
        worker_process(far_sidecar.target, concurrency=4) as staying,
    ):
        async with driving(far_sidecar.target) as driver:
            for _ in range(8):
                driver.ask("echo", {"ms": 1000, "say": True}, max_attempts=1)
            await until_group(far_sidecar.target, lambda group: group.busy == 8)
            # Before that they may still be on their way to it, and it would give them back.
            await asyncio.to_thread(
                wait_until, lambda: leaving.output().count("echo has begun") == 4, 5, "the worker is at its four"
            )
            for _ in range(40):
                driver.ask("echo", {"ms": 20}, max_attempts=1)
            leaving.signal(signal.SIGTERM)
            await until_group(far_sidecar.target, lambda group: group.workers <= 8)
            assert leaving.wait(10) == 0
            await driver.all_answers()
            assert driver.statuses() == {"OK": 48}, "a drain costs no attempt"
            done_by = Counter(values_of(answers[0])["pid"] for answers in driver.came.values())
            assert (done_by[leaving.pid], done_by[staying.pid]) == (4, 44)
            assert (await group_status(far_sidecar.target)).retried == 0


async def test_a_second_signal_ends_a_worker_at_once(far_sidecar: Sidecar) -> None:
    with worker_process(far_sidecar.target) as worker:
        async with driving(far_sidecar.target) as driver:
            driver.ask("echo", {"ms": 20_000, "say": True})
            await asyncio.to_thread(worker.wait_output, "echo has begun")
            worker.signal(signal.SIGTERM)
            worker.wait_output("worker drains in_hand=1")
            worker.signal(signal.SIGTERM)
            assert worker.wait(3) == 1


async def test_a_slow_worker_holds_nothing_that_a_fast_one_could_do(far_sidecar: Sidecar) -> None:
    with (
        worker_process(far_sidecar.target, concurrency=2, extra_ms=1500) as slow,
        worker_process(far_sidecar.target, concurrency=2) as fast,
    ):
        async with driving(far_sidecar.target) as driver:
            started_seconds = time.monotonic()
            for _ in range(60):
                driver.ask("echo", {"ms": 20})
            await driver.all_answers()
            done_by = Counter(values_of(answers[0])["pid"] for answers in driver.came.values())
            assert sum(done_by.values()) == 60
            assert done_by[slow.pid] == 2
            by_fast = [
                driver.came_seconds[number]
                for number, answers in driver.came.items()
                if values_of(answers[0])["pid"] == fast.pid
            ]
            assert max(by_fast) - started_seconds < 1.5, "nothing waited for the slow one"


async def test_twice_the_workers_do_twice_as_much(far_sidecar: Sidecar) -> None:
    rates = {}
    with ExitStack() as stack:
        async with driving(far_sidecar.target) as driver:
            for count in (2, 4):
                for _ in range(2):
                    stack.enter_context(worker_process(far_sidecar.target, concurrency=2))
                await until_group(far_sidecar.target, lambda group, count=count: group.workers == 2 * count)
                started_seconds = time.monotonic()
                for _ in range(160):
                    driver.ask("echo", {"ms": 50})
                await driver.all_answers()
                rates[count] = 160 / (time.monotonic() - started_seconds)
    print(f"50 ms operation, workers of 2 places: {rates[2]:.0f}/s with two, {rates[4]:.0f}/s with four")
    assert rates[4] > 1.6 * rates[2]


async def test_a_cancelled_call_frees_the_worker(far_sidecar: Sidecar) -> None:
    with worker_process(far_sidecar.target, concurrency=1):
        async with driving(far_sidecar.target) as driver:
            driver.ask("echo", {"ms": 20_000})
            await until_group(far_sidecar.target, lambda group: group.busy == 1)
            driver.session.cancel(SuspensionKey("driver", 1, 1, 7, 1))
            assert (await driver.answer(driver.ask("echo"))).status == pb.CONTINUE_STATUS_OK
            assert (await group_status(far_sidecar.target)).abandoned == 1


async def test_a_worker_goes_to_the_next_sidecar_when_its_own_drains_or_dies() -> None:
    with Sidecar(*GROUP) as first, Sidecar(*GROUP) as second, worker_process(first.target, second.target) as worker:
        first.stop()
        await until_group(second.target, lambda group: group.workers == 4)
        async with driving(second.target) as driver:
            assert (await driver.answer(driver.ask("echo"))).status == pb.CONTINUE_STATUS_OK
        second.kill()
        with Sidecar(*GROUP, port=first.port) as first_again:
            await until_group(first_again.target, lambda group: group.workers == 4)
        assert worker.stop() == 0


async def test_a_sidecar_that_drains_has_its_workers_finish(far_sidecar: Sidecar) -> None:
    with worker_process(far_sidecar.target, concurrency=2):
        async with driving(far_sidecar.target) as driver:
            for _ in range(6):
                driver.ask("echo", {"ms": 400}, max_attempts=1)
            await until_group(far_sidecar.target, lambda group: group.busy == 2)
            far_sidecar.signal(signal.SIGTERM)
            await driver.all_answers()
            assert driver.statuses() == {"OK": 6}
        assert far_sidecar.wait(10) == 0


async def test_a_restarted_sidecar_has_its_jobs_done(tmp_path: Path) -> None:
    flags = (*GROUP, "--journal", f"sqlite:{tmp_path / 'journal'}")
    with Sidecar(*flags) as killed, worker_process(killed.target) as worker:
        async with driving(killed.target) as driver:
            for _ in range(20):
                driver.ask("echo", {"ms": 700})
            await until_group(killed.target, lambda group: group.busy == 4)
            killed.kill()
            with Sidecar(*flags, port=killed.port):
                await driver.all_answers()
                assert driver.statuses() == {"OK": 20}
                assert worker.stop() == 0


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--group", "nowhere"], "'nowhere' is no group of kind remote here (there are: far); start the sidecar with"),
        (["--group", "default"], "'default' is no group of kind remote here"),
    ],
)
def test_a_worker_that_the_sidecar_cannot_use_says_why(far_sidecar: Sidecar, flags: list[str], complaint: str) -> None:
    with Process("worker", sipnap("worker", "--sidecar", far_sidecar.target, *flags)) as worker:
        assert worker.wait(20) == 1
        assert complaint in worker.output()


@pytest.mark.parametrize(
    ("request_", "code", "reason", "words"),
    [
        (wire.WorkRequest(credits=1), "INVALID_ARGUMENT", "INVALID", "has to carry hello"),
        (hello(protocol_version=2), "FAILED_PRECONDITION", "PROTOCOL", "version 2 is not spoken here, only 1"),
        (hello(worker_id=""), "INVALID_ARGUMENT", "INVALID", "worker_id ''"),
        (hello(worker_id="x" * 129), "INVALID_ARGUMENT", "INVALID", "is not 1 to 128"),
        (hello(operations=[]), "INVALID_ARGUMENT", "INVALID", "0 operations, expected 1 to 256"),
        (hello(operations=["o"] * 257), "INVALID_ARGUMENT", "INVALID", "257 operations"),
        (hello(operations=["no spaces"]), "INVALID_ARGUMENT", "INVALID", "operation 'no spaces' is not 1 to 64"),
        (hello(group=""), "FAILED_PRECONDITION", "GROUP_UNKNOWN", "there are: far"),
    ],
)
async def test_a_bad_hello_is_refused_in_so_many_words(
    far_sidecar: Sidecar, request_: wire.WorkRequest, code: str, reason: str, words: str
) -> None:
    async with grpc.aio.insecure_channel(far_sidecar.target) as channel:
        call = WorkerServiceStub(channel).Work(None)
        await call.write(request_)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code().name == code
    assert words in str(caught.value.details())
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]  # an aio error has what it asks for
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == reason
