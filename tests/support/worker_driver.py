"""A front end that asks for operations and counts what comes back; and the processes that serve it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from sipnap.client import FrontEndSession, aio, key_of
from sipnap.client.operations import Value, from_value, operation_message
from sipnap.v1 import admin_service_pb2 as admin
from sipnap.v1 import suspension_pb2 as pb
from tests.support.processes import Process, sipnap

MODULE = "tests.support.worker_operations"


def worker_process(
    *targets: str, group: str = "far", concurrency: int = 4, extra_ms: int = 0, ready: bool = True
) -> Process:
    """A `sipnap worker` with the operations of these tests; `extra_ms` makes its `echo` slow."""
    words = ["worker", "--group", group, "--operations", MODULE, "--concurrency", str(concurrency)]
    for target in targets:
        words += ["--sidecar", target]
    return Process(
        "worker",
        sipnap(*words),
        ready=r"^sipnap worker: ready on " if ready else None,
        env={"WORKER_EXTRA_MS": str(extra_ms)},
    )


async def until(condition: object, seconds: float = 10.0) -> None:
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


class Driver:
    """Asks, and remembers what came back, by number."""

    def __init__(self, session: FrontEndSession) -> None:
        self.session = session
        self.came: dict[int, list[pb.Continue]] = {}
        self.came_seconds: dict[int, float] = {}
        self.asked = 0

    def ask(
        self, operation: str, arguments: Mapping[str, Value] | None = None, *, seconds: float = 30.0,
        group: str = "far", max_attempts: int = 0, prefix: str = "", timeout_seconds: float | None = None,
    ) -> int:  # fmt: skip
        self.asked += 1
        suspension = pb.Suspension(
            key=pb.SuspensionKey(boot_epoch=1, transaction_index=self.asked, transaction_label=7, nap_number=1),
            resume_route="RESUME",
            state=pb.TransactionState(call_id=b"call-%d" % self.asked),
            operations=[
                operation_message(
                    operation,
                    arguments,
                    group=group,
                    prefix=prefix,
                    max_attempts=max_attempts,
                    timeout_seconds=timeout_seconds,
                )
            ],
        )
        suspension.delay.FromNanoseconds(int(seconds * 1e9))
        self.session.suspend(suspension)
        return self.asked

    async def receive_forever(self) -> None:
        async for batch in self.session.batches():
            now = time.monotonic()
            for received in batch:
                number = received.key.transaction_index
                self.came.setdefault(number, []).append(received)
                self.came_seconds.setdefault(number, now)
                self.session.answer(key_of(received.key), pb.CONTINUE_OUTCOME_APPLIED)

    async def answer(self, number: int, seconds: float = 15.0) -> pb.Continue:
        await until(lambda: number in self.came, seconds)
        return self.came[number][0]

    async def all_answers(self, seconds: float = 30.0) -> None:
        try:
            await until(lambda: len(self.came) >= self.asked, seconds)
        except TimeoutError:
            raise AssertionError(f"{len(self.came)} answers to {self.asked} questions: {self.statuses()}") from None

    def statuses(self) -> Counter[str]:
        """How many ended how, by status and error code."""
        answers = [answers[0] for answers in self.came.values()]
        return Counter(
            " ".join((pb.ContinueStatus.Name(one.status).removeprefix("CONTINUE_STATUS_"), one.error_code)).strip()
            for one in answers
        )

    @property
    def repeated(self) -> int:
        return sum(len(answers) > 1 for answers in self.came.values())


def values_of(answer: pb.Continue) -> dict[str, Value]:
    return {named.name: from_value(named.value) for named in answer.values}


@asynccontextmanager
async def driving(*targets: str, front_end_id: str = "driver") -> AsyncIterator[Driver]:
    async with FrontEndSession(targets, front_end_id=front_end_id, boot_epoch=1) as session:
        driver = Driver(session)
        task = asyncio.create_task(driver.receive_forever())
        await session.wait_connected(15)
        try:
            yield driver
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def group_status(target: str, name: str = "far") -> admin.WorkerGroupStatus:
    """What the sidecar says of a worker group."""
    async with aio.Client(target) as client:
        status = await client.status()
    return next(group for group in status.worker_groups if group.name == name)


async def until_group(target: str, condition: object, seconds: float = 15.0, name: str = "far") -> None:
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition(await group_status(target, name)):
            await asyncio.sleep(0.02)
