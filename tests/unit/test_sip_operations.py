"""Operations and tasks of the Python front end: the real front end, a session and transactions that only record."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sipnap.client.keys import SuspensionKey, key_of
from sipnap.client.operations import named_values, operation_message
from sipnap.client.outstanding import seconds_of
from sipnap.shim.sip import App, Call, OperationFailed, OperationResult, Task
from sipnap.shim.sip.front_end import FrontEnd
from sipnap.shim.sip.message import parse_request
from sipnap.shim.sip.transactions import ServerTransaction, TransactionId
from sipnap.v1 import suspension_pb2 as pb

EPOCH = 7
HOSTILE = b"\xff\xfe \xe2\x80\xae%00"


class _Session:
    """Records what it is asked for; the test plays the sidecar."""

    def __init__(self) -> None:
        self.is_open = True
        self.suspended: list[pb.Suspension] = []
        self.cancelled: list[SuspensionKey] = []
        self.answers: list[tuple[SuspensionKey, pb.ContinueOutcome]] = []

    def suspend(self, suspension: pb.Suspension) -> None:
        self.suspended.append(suspension)

    def cancel(self, key: SuspensionKey) -> None:
        self.cancelled.append(key)

    def answer(self, key: SuspensionKey, outcome: pb.ContinueOutcome) -> None:
        self.answers.append((key, outcome))


class _Handle:
    def __init__(self) -> None:
        self.responses: list[tuple[int, str]] = []

    def respond(self, code: int, reason: str, headers: object) -> None:
        self.responses.append((code, reason))


class _Bench:
    """A front end whose request_route is the test's own coroutine."""

    def __init__(self, max_seconds: float = 100.0, margin_seconds: float = 2.0) -> None:
        self.app = App()
        self.session = _Session()
        self.handle = _Handle()
        self.max_seconds = max_seconds
        self.margin_seconds = margin_seconds
        self.calls: list[Call] = []
        self.errors: list[BaseException] = []

    def start(self, route: Callable[[Call], Awaitable[None]]) -> ServerTransaction:
        async def main(call: Call) -> None:
            self.calls.append(call)
            try:
                await route(call)
            except BaseException as error:
                self.errors.append(error)
                raise

        self.app.request_route(main)
        datagram = "\r\n".join(
            [
                "INVITE sip:4711@x SIP/2.0", "Via: SIP/2.0/UDP 127.0.0.1;branch=z9hG4bK1", "From: <sip:a@b>;tag=1",
                "To: <sip:b@c>", "Call-ID: x", "CSeq: 1 INVITE", "", "",
            ]
        )  # fmt: skip
        handle: Any = self.handle
        transaction = ServerTransaction(
            parse_request(datagram.encode(), "127.0.0.1", 5060), TransactionId(1, 2), handle
        )  # fmt: skip
        self.front_end.receive(transaction)
        return transaction

    @property
    def front_end(self) -> FrontEnd:
        if not hasattr(self, "_front_end"):
            self._front_end = FrontEnd(
                self.app, self.session, front_end_id="sip", boot_epoch=EPOCH,
                max_seconds=self.max_seconds, margin_seconds=self.margin_seconds,
            )  # fmt: skip
        return self._front_end

    async def suspension(self) -> pb.Suspension:
        """The next thing that the session was asked to hold."""
        await until(lambda: bool(self.session.suspended))
        return self.session.suspended.pop(0)

    def continued(self, suspension: pb.Suspension, status: pb.ContinueStatus, **fields: Any) -> None:
        received = pb.Continue(
            key=suspension.key, resume_route=suspension.resume_route, attempt=1, status=status, **fields
        )
        self.front_end.continue_all([received])

    async def final(self) -> tuple[int, str]:
        await until(lambda: any(code >= 200 for code, _ in self.handle.responses))
        return self.handle.responses[-1]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
def bench() -> _Bench:
    return _Bench()


# What comes back


def test_a_result_is_true_if_all_went_well() -> None:
    assert OperationResult("ok")
    for status in ("", "failed", "timed_out", "lost", "refused"):
        assert not OperationResult(status)


def test_text_of_a_result() -> None:
    result = OperationResult("ok", values={"to": b"sip:\xff@x", "count": 3})
    assert result.text("to") == "sip:\udcff@x"
    with pytest.raises(KeyError, match="other"):
        result.text("other")
    assert result.text("other", "") == ""
    assert result.text("to", "") == "sip:\udcff@x"
    with pytest.raises(TypeError, match="'count' is no text but 3"):
        result.text("count")


def test_text_that_a_failed_operation_did_not_find() -> None:
    result = OperationResult("failed", "http: no route to host", "http_connect", {"found": b"x"})
    assert result.text("found") == "x"
    with pytest.raises(OperationFailed, match=r"http: no route to host \(http_connect\)") as caught:
        result.text("to")
    assert caught.value.result is result
    assert result.text("to", "sip:b@c") == "sip:b@c"


# Operations


async def test_an_operation_is_asked_for_and_answers(bench: _Bench) -> None:
    async def main(call: Call) -> None:
        odd = HOSTILE.decode("utf-8", "surrogateescape")
        result = await call.operation(
            "enum", {"number": call.request_user, "odd": odd, "limit": 3},
            group="lookups", timeout_seconds=4, max_attempts=2,
        )  # fmt: skip
        assert (result.status, call.status, call.result) == ("ok", "ok", result)
        assert result.values == {"uri": b"sip:bob@x", "order": 10, "final": True, "all": [b"a", 1, False]}
        call.redirect(result.text("uri"))

    bench.start(main)
    suspension = await bench.suspension()
    assert key_of(suspension.key) == SuspensionKey("sip", EPOCH, 1, 2, 1)
    assert 4 <= seconds_of(suspension.delay) < 4.001
    assert seconds_of(suspension.deadline) > seconds_of(suspension.delay)
    assert suspension.state.request_uri == b"sip:4711@x"
    (operation,) = suspension.operations
    assert (operation.name, operation.group, operation.prefix, operation.max_attempts) == ("enum", "lookups", "", 2)
    assert not operation.HasField("timeout")
    assert {argument.name: argument.value for argument in operation.arguments} == {
        "number": pb.Value(text=b"4711"),
        "odd": pb.Value(text=HOSTILE),
        "limit": pb.Value(integer=3),
    }
    values = named_values({"uri": "sip:bob@x", "order": 10, "final": True, "all": ["a", 1, False]})
    bench.continued(suspension, pb.CONTINUE_STATUS_OK, values=values)
    assert await bench.final() == (302, "Moved Temporarily")
    assert bench.session.answers == [(key_of(suspension.key), pb.CONTINUE_OUTCOME_APPLIED)]
    assert not bench.session.cancelled


async def test_several_operations_share_a_nap(bench: _Bench) -> None:
    async def main(call: Call) -> None:
        result = await call.operations(
            operation_message("http", {"a": 1}, prefix="h_", timeout_seconds=0.5),
            operation_message("enum", prefix="e_"),
            timeout_seconds=1,
        )
        assert not result
        assert (result.status, result.error, result.error_code) == ("failed", "enum: no such name", "enum_nxdomain")
        call.reply(404, result.text("h_status"))

    bench.start(main)
    suspension = await bench.suspension()
    assert [(operation.name, operation.prefix) for operation in suspension.operations] == [
        ("http", "h_"),
        ("enum", "e_"),
    ]
    assert 0.5 <= seconds_of(suspension.operations[0].timeout) < 0.501
    bench.continued(
        suspension, pb.CONTINUE_STATUS_FAILED, error="enum: no such name", error_code="enum_nxdomain",
        values=named_values({"status": "Nobody"}, "h_"),
    )  # fmt: skip
    assert await bench.final() == (404, "Nobody")


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (pb.CONTINUE_STATUS_FAILED, "failed"),
        (pb.CONTINUE_STATUS_TIMED_OUT, "timed_out"),
        (pb.CONTINUE_STATUS_LOST, "lost"),
        (99, "failed"),
    ],
)
async def test_what_goes_wrong_is_told(bench: _Bench, wire: Any, status: str) -> None:
    async def main(call: Call) -> None:
        result = await call.operation("http")
        assert not result
        assert (result.status, call.status, call.error) == (status, status, "it went wrong")
        call.reply(500, f"{result.status} {result.error_code}")

    bench.start(main)
    bench.continued(await bench.suspension(), wire, error="it went wrong")
    assert await bench.final() == (500, f"{status} {status}")


async def test_a_value_that_is_missing_ends_the_call_with_the_reason_in_the_log(
    bench: _Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(call: Call) -> None:
        call.redirect((await call.operation("http")).text("uri"))

    bench.start(main)
    bench.continued(
        await bench.suspension(), pb.CONTINUE_STATUS_FAILED, error="http: refused", error_code="http_connect"
    )
    assert (await bench.final())[0] == 500
    assert "http: refused (http_connect)" in caplog.text


async def test_nobody_answers(bench: _Bench) -> None:
    bench.margin_seconds = 0.01

    async def main(call: Call) -> None:
        result = await call.operation("http", timeout_seconds=0.01)
        call.reply(500, f"{result.status} {result.error_code}")

    bench.start(main)
    assert await bench.final() == (500, "lost lost")
    assert len(bench.session.cancelled) == 1


async def test_refused_at_the_door(bench: _Bench) -> None:
    bench.session.is_open = False

    async def main(call: Call) -> None:
        result = await call.operation("http")
        assert not result
        assert (result.status, result.error_code, call.status) == ("refused", "refused", "")
        bench.session.is_open = True
        too_long = await call.operation("http", timeout_seconds=101)
        assert "--max-seconds" in too_long.error
        call.reply(503, result.error)

    bench.start(main)
    assert await bench.final() == (503, "no sidecar takes naps now")
    assert not bench.session.suspended


async def test_one_nap_at_a_time(bench: _Bench) -> None:
    async def main(call: Call) -> None:
        first, second = await asyncio.gather(call.operation("a"), call.operation("b"))
        assert first
        call.reply(500, second.error)

    bench.start(main)
    bench.continued(await bench.suspension(), pb.CONTINUE_STATUS_OK)
    assert "call.operations" in (await bench.final())[1]
    assert not bench.session.suspended


@pytest.mark.parametrize("operations", [[], [operation_message("x")] * 9], ids=["none", "nine"])
async def test_one_to_eight_operations(bench: _Bench, operations: list[pb.Operation]) -> None:
    async def main(call: Call) -> None:
        with pytest.raises(ValueError, match="operation"):
            await call.operations(*operations)
        call.reply(404, "Not Found")

    bench.start(main)
    assert (await bench.final())[0] == 404


async def test_a_cancel_ends_the_operation(bench: _Bench) -> None:
    async def main(call: Call) -> None:
        await call.operation("http")

    transaction = bench.start(main)
    suspension = await bench.suspension()
    transaction.cancelled(True)
    await until(lambda: bool(bench.errors))
    assert isinstance(bench.errors[0], asyncio.CancelledError)
    assert bench.session.cancelled == [key_of(suspension.key)]
    bench.continued(suspension, pb.CONTINUE_STATUS_OK)
    assert bench.session.answers == [(key_of(suspension.key), pb.CONTINUE_OUTCOME_GONE)]


async def test_a_route_that_loses_patience_may_nap_again(bench: _Bench) -> None:
    async def main(call: Call) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await call.operation("slow")
        result = await call.operation("quick")
        call.reply(404, result.text("found"))

    bench.start(main)
    slow, quick = await bench.suspension(), await bench.suspension()
    assert bench.session.cancelled == [key_of(slow.key)]
    bench.continued(slow, pb.CONTINUE_STATUS_OK)  # it was on its way
    bench.continued(quick, pb.CONTINUE_STATUS_OK, values=named_values({"found": "it"}))
    assert await bench.final() == (404, "it")
    assert [outcome for _, outcome in bench.session.answers] == [pb.CONTINUE_OUTCOME_GONE, pb.CONTINUE_OUTCOME_APPLIED]


async def test_a_resume_route_finds_the_result(bench: _Bench) -> None:
    async def main(call: Call) -> None:
        await call.async_route("RESUME", 3, [operation_message("enum")])

    @bench.app.route("RESUME")
    async def resume(call: Call) -> None:
        call.reply(404, call.result.text("uri"))

    bench.start(main)
    suspension = await bench.suspension()
    assert (suspension.resume_route, suspension.operations[0].name) == ("RESUME", "enum")
    bench.continued(suspension, pb.CONTINUE_STATUS_OK, values=named_values({"uri": "sip:x@y"}))
    assert await bench.final() == (404, "sip:x@y")


async def test_another_program_may_have_asked(bench: _Bench) -> None:
    async def main(call: Call) -> None:
        assert call.t_suspend() is not None

    @bench.app.route("RESUME")
    async def resume(call: Call) -> None:
        call.reply(404, call.result.text("uri"))

    bench.start(main)
    await until(lambda: bool(bench.calls) and bench.calls[0].nap is not None)
    key = pb.SuspensionKey(transaction_index=1, transaction_label=2, nap_number=1)
    asked = pb.Suspension(key=key, resume_route="RESUME")
    bench.continued(asked, pb.CONTINUE_STATUS_OK, values=named_values({"uri": "sip:x@y"}))
    assert await bench.final() == (404, "sip:x@y")


# Tasks

TASK_KEY = SuspensionKey("sip", EPOCH, 2**32 - 1, 5, 0)


def task(**fields: Any) -> pb.Suspension:
    return pb.Suspension(key=TASK_KEY.to_message(), resume_route=fields.pop("route", "CLEAN_UP"), **fields)


async def test_a_task_is_answered_when_its_route_has_ended(bench: _Bench) -> None:
    go_on, seen = asyncio.Event(), []

    @bench.app.task("CLEAN_UP")
    async def clean_up(task: Task) -> None:
        seen.append(task)
        await go_on.wait()

    bench.continued(task(), pb.CONTINUE_STATUS_OK, data=HOSTILE, values=named_values({"x": 1}))
    await until(lambda: bool(seen))
    assert not bench.session.answers
    go_on.set()
    await until(lambda: bool(bench.session.answers))
    assert bench.session.answers == [(TASK_KEY, pb.CONTINUE_OUTCOME_APPLIED)]
    assert (seen[0].route, seen[0].data, seen[0].key, seen[0].status) == ("CLEAN_UP", HOSTILE, TASK_KEY, "ok")
    assert seen[0].values == {"x": 1}


async def test_a_task_that_nobody_knows_is_rejected(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    @bench.app.route("CLEAN_UP")
    async def resume(call: Call) -> None:
        raise AssertionError("a route of calls is no task")

    bench.continued(task(), pb.CONTINUE_STATUS_OK)
    assert bench.session.answers == [(TASK_KEY, pb.CONTINUE_OUTCOME_REJECTED)]
    assert "@app.task" in caplog.text


async def test_a_task_that_raises_does_not_come_again(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    @bench.app.task("CLEAN_UP")
    async def clean_up(task: Task) -> None:
        raise LookupError("a bug")

    bench.continued(task(), pb.CONTINUE_STATUS_OK)
    await until(lambda: bool(bench.session.answers))
    assert bench.session.answers == [(TASK_KEY, pb.CONTINUE_OUTCOME_APPLIED)]
    assert "LookupError('a bug')" in caplog.text


async def test_a_task_that_cancels_itself_is_answered(bench: _Bench) -> None:
    @bench.app.task("CLEAN_UP")
    async def clean_up(task: Task) -> None:
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        gone.cancel()
        await gone

    bench.continued(task(), pb.CONTINUE_STATUS_OK)
    await until(lambda: bool(bench.session.answers))


async def test_a_drain_waits_for_tasks_and_answers_for_none_that_it_cuts_short(bench: _Bench) -> None:
    running, go_on = asyncio.Event(), asyncio.Event()

    @bench.app.task("CLEAN_UP")
    async def clean_up(task: Task) -> None:
        running.set()
        await go_on.wait()

    bench.continued(task(), pb.CONTINUE_STATUS_OK)
    await running.wait()
    drain = asyncio.create_task(bench.front_end.drain(5))
    await asyncio.sleep(0)
    assert not drain.done()
    go_on.set()
    await drain
    assert bench.session.answers == [(TASK_KEY, pb.CONTINUE_OUTCOME_APPLIED)]

    bench.session.answers.clear()
    go_on.clear()
    running.clear()
    bench.continued(task(), pb.CONTINUE_STATUS_OK)
    await running.wait()
    await bench.front_end.drain(0.01)
    assert not bench.session.answers
    assert not bench.front_end.tasks.running


async def test_a_call_starts_a_task_and_the_task_another(bench: _Bench) -> None:
    async def main(call: Call) -> None:
        assert call.run_task("FIRST", HOSTILE.decode("utf-8", "surrogateescape"))
        call.reply(404, "Not Found")

    @bench.app.task("FIRST")
    async def first(task: Task) -> None:
        assert task.data == HOSTILE
        assert task.run_task("SECOND", operations=[operation_message("pass", group="mail")])

    bench.start(main)
    suspension = await bench.suspension()
    key = key_of(suspension.key)
    assert (key.front_end_id, key.boot_epoch, key.nap_number) == ("sip", EPOCH, 0)
    assert (suspension.resume_route, suspension.data) == ("FIRST", HOSTILE)
    assert 0 < seconds_of(suspension.delay) < 0.01
    assert not suspension.HasField("state")
    bench.continued(suspension, pb.CONTINUE_STATUS_OK, data=suspension.data)
    second = await bench.suspension()
    assert (second.resume_route, second.data, second.operations[0].group) == ("SECOND", b"", "mail")
    assert 100 <= seconds_of(second.delay) < 100.001
    assert key_of(second.key) != key


async def test_a_task_is_refused_at_the_door(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    submit = bench.front_end.tasks.submit
    for seconds in (-1, 101, float("nan")):
        assert not submit("R", b"", seconds, ())
    assert "--max-seconds" in caplog.text
    bench.session.is_open = False
    assert not submit("R", b"", 0, ())
    with pytest.raises(ValueError, match="not a route name"):
        submit("no name", b"", 0, ())
    assert not bench.session.suspended


def test_tasks_and_routes_share_their_names() -> None:
    async def nothing(anything: object) -> None:
        pass

    app = App()
    assert app.task("A")(nothing) is nothing
    assert app.find_task("A") is nothing
    assert app.find_route("A") is None
    app.route("B")(nothing)
    with pytest.raises(ValueError, match="'A' already"):
        app.route("A")
    with pytest.raises(ValueError, match="'B' already"):
        app.task("B")
    with pytest.raises(ValueError, match="not a route name"):
        app.task("no name")


@pytest.fixture(autouse=True)
def log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
