"""What a session does with what it is told, on a stream that the test speaks at the other end of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from sipnap.client import session as session_module
from sipnap.client.keys import Key, SuspensionKey, key_of
from sipnap.client.outstanding import Outstanding, Suspended, seconds_of
from sipnap.client.session import AHEAD_SECONDS, FrontEndSession
from sipnap.v1 import front_end_service_pb2 as wire
from sipnap.v1 import suspension_pb2 as pb

if TYPE_CHECKING:
    from sipnap.client.frames import SessionFrame
    from sipnap.client.session import _Call

KEY = SuspensionKey("proxy", 1, 1, 5, 1)


class FakeCall:
    """A stream: what the session writes, and what it is to read."""

    def __init__(self, *, is_welcome: bool = True) -> None:
        self.written: list[wire.SessionRequest] = []
        self._accepted = 0
        self.to_read: asyncio.Queue[object] = asyncio.Queue()
        if is_welcome:
            self.welcome()

    def welcome(self) -> None:
        """Answer the Hello: from then on the session is connected."""
        self.tell(wire.SessionResponse(welcome=wire.Welcome(protocol_version=1)))

    def tell(self, response: wire.SessionResponse) -> None:
        self.to_read.put_nowait(response)

    async def accept(self, *indexes: int, is_new: bool = True, due: Sequence[int] = ()) -> None:
        """Answer for what submits these, when it is written: each has its index and 100 as its number, if it is new.

        `due`: numbers to be said in the same message.
        """
        await until(lambda: {suspension.key.transaction_index for suspension in self.suspends} >= set(indexes))
        response = wire.SessionResponse(due=due)
        for request in self.written[self._accepted :]:
            if request.suspends:
                result = response.frame_results.add(frame_number=request.frame_number)
                result.numbers.extend(100 + each.key.transaction_index if is_new else 0 for each in request.suspends)
        self._accepted = len(self.written)
        self.tell(response)

    def say_due(self, *numbers: int) -> None:
        self.tell(wire.SessionResponse(due=numbers))

    def end(self) -> None:
        """In good order; the session opens another one."""
        self.to_read.put_nowait(grpc.aio.EOF)

    async def write(self, frame: SessionFrame) -> None:
        self.written.append(wire.SessionRequest.FromString(frame.SerializeToString()))

    async def read(self) -> object:
        return await self.to_read.get()

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.OK

    def cancelled(self) -> bool:
        return False

    # What the session has said so far, in the order in which it has

    @property
    def suspends(self) -> list[pb.Suspension]:
        return [suspension for request in self.written for suspension in request.suspends]

    @property
    def applied(self) -> list[int]:
        return [number for request in self.written for number in request.applied]

    @property
    def results(self) -> list[tuple[SuspensionKey, pb.ContinueOutcome]]:
        return [
            (key_of(result.key)._replace(front_end_id="proxy"), result.outcome)
            for request in self.written
            for result in request.results
        ]


class Session(FrontEndSession):
    """A session on fake streams, one after the other; the last of them is opened as often as it takes."""

    def __init__(self, *calls: FakeCall) -> None:
        super().__init__(["nowhere"], front_end_id="proxy", boot_epoch=1)
        self._fakes: list[Any] = list(calls)
        self.handed_on: list[tuple[float, Key]] = []
        """When which nap was handed on, for those who have called `listen`."""
        self.due: list[Suspended] = []
        """What was handed on as it was asked for, for those who have called `listen`."""
        self.batches_handed_on = 0

    def _open_call(self, target: str) -> tuple[_Call, Callable[[], Awaitable[None]]]:
        async def close() -> None:
            pass

        return (self._fakes.pop(0) if len(self._fakes) > 1 else self._fakes[0]), close

    def listen(self) -> None:
        def remember(continues: Sequence[tuple[Key, pb.Continue]]) -> None:
            now = asyncio.get_running_loop().time()
            self.handed_on += [(now, key) for key, _ in continues]

        def remember_due(due: Sequence[Suspended]) -> None:
            now = asyncio.get_running_loop().time()
            self.handed_on += [(now, suspended.key) for suspended in due]
            self.due += due
            self.batches_handed_on += 1

        self.on_continues(remember)
        self.on_due(remember_due)

    @property
    def keys_handed_on(self) -> list[Key]:
        return [key for _, key in self.handed_on]


@pytest.fixture
def call() -> FakeCall:
    return FakeCall()


@pytest.fixture
async def session(call: FakeCall) -> AsyncIterator[Session]:
    async with Session(call) as session:
        await session.wait_connected(5)
        yield session


def refusal_of(key: SuspensionKey) -> wire.SessionResponse:
    response = wire.SessionResponse()
    result = response.frame_results.add(frame_number=1)
    result.refusals.add(key=key.to_message(), reason=pb.REFUSAL_REASON_JOURNAL_UNAVAILABLE, message="full")
    return response


def nap(number: int = KEY.transaction_index, seconds: float = 1.0) -> pb.Suspension:
    key = KEY._replace(transaction_index=number)
    suspension = pb.Suspension(key=key.to_message(), resume_route="RESUME")
    suspension.delay.FromNanoseconds(int(seconds * 1e9))
    return suspension


def continue_of(number: int) -> wire.SessionResponse:
    key = KEY._replace(transaction_index=number).to_message()
    key.front_end_id = ""  # in a session it is implied
    order = pb.Continue(key=key, resume_route="RESUME", status=pb.CONTINUE_STATUS_OK, attempt=1)
    return wire.SessionResponse(continues=[order])


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


def key_with(index: int) -> SuspensionKey:
    return KEY._replace(transaction_index=index)


async def hear(session: Session, call: FakeCall, *responses: wire.SessionResponse) -> list[pb.Continue]:
    """Have the session read these, and then a continue of another nap; returns what it hands on until that."""
    for response in responses:
        call.to_read.put_nowait(response)
    last = KEY._replace(transaction_index=999)
    call.to_read.put_nowait(
        wire.SessionResponse(continues=[pb.Continue(key=last.to_message(), status=pb.CONTINUE_STATUS_OK)])
    )
    heard: list[pb.Continue] = []
    async with asyncio.timeout(5):
        async for batch in session.batches():
            heard += batch
            if heard[-1].key.transaction_index == 999:
                break
    return heard[:-1]


async def test_a_refusal_ends_the_nap_as_failed_once(session: Session, call: FakeCall) -> None:
    session.suspend(pb.Suspension(key=KEY.to_message(), resume_route="RESUME"))
    (failed,) = await hear(session, call, refusal_of(KEY), refusal_of(KEY))
    assert (failed.status, failed.resume_route) == (pb.CONTINUE_STATUS_FAILED, "RESUME")
    assert failed.error == "refused: journal_unavailable: full"


async def test_a_refusal_of_what_was_cancelled_is_nobodys_business(session: Session, call: FakeCall) -> None:
    session.suspend(pb.Suspension(key=KEY.to_message(), resume_route="RESUME"))
    session.cancel(KEY)
    assert await hear(session, call, refusal_of(KEY)) == []
    assert session.outstanding == 0


async def test_what_nobody_thought_of_does_not_end_the_session_for_good(call: FakeCall) -> None:
    tries = 0

    class Stumbling(Session):
        def _open_call(self, target: str) -> tuple[_Call, Callable[[], Awaitable[None]]]:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise RuntimeError("nobody thought of this")
            return super()._open_call(target)

    async with Stumbling(call) as session:
        await session.wait_connected(5)
    assert tries == 2


async def test_time_in_which_nobody_is_heard_does_not_count_for_what_is_remembered(
    call: FakeCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[bool] = []

    def sweep(_: Outstanding, *, has_sidecar: bool) -> list[tuple[Key, str]]:
        swept.append(has_sidecar)
        return []

    monkeypatch.setattr(Outstanding, "sweep", sweep)
    monkeypatch.setattr(session_module, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(session_module, "STALE_SECONDS", 0.1)
    async with Session(call) as session:
        await session.wait_connected(5)
        await until(lambda: True in swept)
        await until(lambda: not swept[-1])
        assert session._connected.is_set(), "it is silent, but not given up"
        call.tell(wire.SessionResponse(heartbeat=wire.Heartbeat(nonce=1)))
        await until(lambda: swept[-1])


async def test_the_door_shuts_with_the_one_that_fills_it(session: Session, call: FakeCall) -> None:
    heard: list[bool] = []
    session.on_gate(heard.append)
    call.tell(wire.SessionResponse(credits=wire.Credits(max_pending=2)))
    await until(lambda: session.is_open)
    session.suspend(nap(1))
    assert session.is_open
    session.suspend(nap(2))
    assert (session.is_open, heard) == (False, [True, False])


async def test_a_deadline_travels_with_it_and_grows_shorter(session: Session, call: FakeCall) -> None:
    suspension = nap(1)
    suspension.deadline.FromSeconds(9)
    session.suspend(suspension)
    await until(lambda: call.suspends)
    (sent,) = call.suspends
    assert 8 < seconds_of(sent.deadline) <= 9
    assert suspension.deadline.seconds == 9, "the caller's own message stays as it is"


@pytest.mark.parametrize("hurry", ["operations", "a short nap"])
async def test_what_cannot_wait_does_not_wait_for_others(
    call: FakeCall, monkeypatch: pytest.MonkeyPatch, hurry: str
) -> None:
    monkeypatch.setattr(session_module, "_GATHER_SECONDS", 60.0)
    async with Session(call) as session:
        await session.wait_connected(5)
        session.suspend(nap(1))
        await until(lambda: call.suspends)
        session.suspend(nap(2))
        urgent = nap(3, 0.05 if hurry == "a short nap" else 1.0)
        if hurry == "operations":
            urgent.operations.add(name="http")
        session.suspend(urgent)
        await until(lambda: len(call.suspends) == 3)


# What is said ahead of its time


async def test_the_hello_says_how_far_ahead_a_sidecar_may_be(session: Session, call: FakeCall) -> None:
    hello = call.written[0].hello
    assert (hello.front_end_id, hello.boot_epoch) == ("proxy", 1)
    assert AHEAD_SECONDS <= seconds_of(hello.ahead) < AHEAD_SECONDS + 1e-6


async def test_what_is_said_ahead_of_its_time_waits_for_it(session: Session, call: FakeCall) -> None:
    session.listen()
    loop = asyncio.get_running_loop()
    due_seconds = {}
    for number, seconds in {1: 0.4, 2: 0.32, 3: 0.01, 4: 0.36, 5: 0.3205}.items():
        asked_seconds = loop.time()
        session.suspend(nap(number, seconds))
        due_seconds[number] = asked_seconds + seconds
    await call.accept(1, 2, 3, 4, 5)
    call.say_due(103, 101, 102)
    call.say_due(105, 104)
    await until(lambda: len(session.handed_on) == 5)
    for handed_on_seconds, key in session.handed_on:
        early_seconds = due_seconds[key[2]] - handed_on_seconds
        assert early_seconds <= 0, f"{key} was handed on {early_seconds:.6f} s early"
    assert [key[2] for key in session.keys_handed_on] == [3, 2, 5, 4, 1], "in order of their time"


async def test_it_is_the_front_ends_own_object_and_comes_with_others(session: Session, call: FakeCall) -> None:
    session.listen()

    class Mine(Suspended):
        __slots__ = ("what_for",)

    submitted = []
    for number in (1, 2, 3):
        message = nap(number, 0.05)
        mine = Mine(key_with(number), message.SerializeToString(), "RESUME", 0.05)
        assert session.submit(mine)
        assert not session.submit(Mine(key_with(number), b"", "", 0.0)), "its key is outstanding"
        assert session.find(key_with(number)) is mine
        submitted.append(mine)
    await call.accept(1, 2, 3, due=[103, 102, 101])
    await until(lambda: len(session.due) == 3)
    assert session.due == submitted
    assert session.batches_handed_on < 3


async def test_its_number_may_come_with_it(session: Session, call: FakeCall) -> None:
    session.listen()
    session.suspend(nap(1, 0.001))
    await call.accept(1, due=[101])
    await until(lambda: session.handed_on)


async def test_without_a_callback_of_its_own_it_is_a_continue(session: Session, call: FakeCall) -> None:
    session.suspend(nap(1, 0.03))
    asked_seconds = asyncio.get_running_loop().time()
    await call.accept(1, due=[101])
    async with asyncio.timeout(5):
        (first,) = await anext(session.batches())
    assert asyncio.get_running_loop().time() >= asked_seconds + 0.03
    assert first == pb.Continue(
        key=key_with(1).to_message(), resume_route="RESUME", status=pb.CONTINUE_STATUS_OK, attempt=1
    ), "with its front end"
    session.answer(key_with(1), pb.CONTINUE_OUTCOME_APPLIED)
    await until(lambda: call.applied)
    assert (call.applied, call.results) == ([101], [])


async def test_what_is_cancelled_while_it_waits_is_not_handed_on(session: Session, call: FakeCall) -> None:
    session.listen()
    for number in (1, 2):
        session.suspend(nap(number, 0.4))
    await call.accept(1, 2, due=[101, 102])
    call.tell(continue_of(3))
    await until(lambda: session.handed_on)
    session.cancel(key_with(1))
    await until(lambda: len(session.handed_on) == 2)
    assert [key[2] for key in session.keys_handed_on] == [3, 2]
    await until(lambda: call.results)
    assert call.results == [(key_with(1), pb.CONTINUE_OUTCOME_GONE)], (
        "for the sidecar it was too late to cancel: it waits for an answer"
    )


@pytest.mark.parametrize("is_accepted", [False, True])
async def test_what_was_cancelled_before_it_is_said_to_be_over_is_answered_for(
    session: Session, call: FakeCall, is_accepted: bool
) -> None:
    session.listen()
    session.suspend(nap(1, 0.2))
    if is_accepted:
        await call.accept(1)
        call.tell(continue_of(3))
        await until(lambda: session.handed_on)
    else:
        await until(lambda: call.suspends)
    session.cancel(key_with(1))
    if not is_accepted:
        await call.accept(1)
    call.say_due(101)
    await until(lambda: call.results)
    assert call.results == [(key_with(1), pb.CONTINUE_OUTCOME_GONE)]
    call.tell(continue_of(4))
    await until(lambda: session.keys_handed_on[-1:] == [key_with(4)])
    assert key_with(1) not in session.keys_handed_on


async def test_what_is_said_again_while_it_waits_is_handed_on_once(session: Session, call: FakeCall) -> None:
    session.listen()
    asked_seconds = asyncio.get_running_loop().time()
    session.suspend(nap(1, 0.15))
    session.suspend(nap(9, 0.2))
    await call.accept(1, 9, due=[101])
    call.say_due(101)
    call.tell(continue_of(1))
    call.say_due(109, 101)
    await until(lambda: len(session.handed_on) == 2)
    (handed_on_seconds, first), (_, last) = session.handed_on
    assert (first[2], last[2]) == (1, 9)
    assert handed_on_seconds >= asked_seconds + 0.15


async def test_nothing_waits_for_a_proxy_that_was_restarted(session: Session, call: FakeCall) -> None:
    session.listen()
    session.suspend(nap(1, 0.3))
    await call.accept(1, due=[101])
    call.tell(continue_of(2))
    await until(lambda: session.handed_on)
    call.cancel = call.end  # type: ignore[attr-defined]  # what a stream does when it is left
    session.set_boot_epoch(2)
    call.welcome()
    await until(lambda: call.written[-1].hello.boot_epoch == 2)
    session.suspend(nap(3, 0.4))
    await call.accept(3, due=[103])
    await until(lambda: len(session.handed_on) == 2)
    assert [key[2] for key in session.keys_handed_on] == [2, 3]


# Answers by number


async def test_what_was_applied_is_answered_by_its_number(session: Session, call: FakeCall) -> None:
    session.listen()
    for number in (1, 2, 3, 4):
        session.suspend(nap(number, 0.01))
    await call.accept(1, 2, 3, 4, due=[101, 102, 103, 104])
    await until(lambda: len(session.due) == 4)
    first, second, third, fourth = session.due
    session.applied([first, third])
    session.answer(second.key, pb.CONTINUE_OUTCOME_GONE)
    session.answer(fourth.key, pb.CONTINUE_OUTCOME_APPLIED)
    await until(lambda: len(call.applied) == 3 and call.results)
    assert call.applied == [101, 103, 104]
    assert call.results == [(key_with(2), pb.CONTINUE_OUTCOME_GONE)], "not that it was applied"
    assert session.outstanding == 0


@pytest.mark.parametrize("at_once", [False, True])
async def test_what_was_applied_does_not_wait_until_there_is_something_else_to_say(
    call: FakeCall, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    monkeypatch.setattr(session_module, "HEARTBEAT_SECONDS", 60.0)
    async with Session(call) as session:
        session.listen()
        await session.wait_connected(5)
        session.suspend(nap(1, 0.01))
        await call.accept(1, due=[101])
        await until(lambda: session.due)
        if at_once:
            session.applied(session.due)
        else:
            session.answer(key_with(1), pb.CONTINUE_OUTCOME_APPLIED)
        await until(lambda: call.applied)


async def test_what_came_in_full_is_answered_by_its_key(session: Session, call: FakeCall) -> None:
    session.listen()
    session.suspend(nap(1))
    session.suspend(nap(2))
    await call.accept(1, 2)
    call.tell(continue_of(1))
    call.tell(continue_of(2))
    await until(lambda: len(session.handed_on) == 2)
    session.answer(key_with(1), pb.CONTINUE_OUTCOME_APPLIED)
    suspended = session.find(key_with(2))
    assert suspended is not None
    session.applied([suspended])
    await until(lambda: len(call.results) == 2)
    assert call.results == [(key_with(number), pb.CONTINUE_OUTCOME_APPLIED) for number in (1, 2)]
    assert call.applied == []


async def test_a_repetition_in_the_same_stream_is_answered_from_memory(session: Session, call: FakeCall) -> None:
    session.listen()
    for number in (1, 2):
        session.suspend(nap(number, 0.01))
    await call.accept(1, 2, due=[101])
    call.tell(continue_of(2))
    await until(lambda: len(session.handed_on) == 2)
    session.applied(session.due)
    session.answer(key_with(2), pb.CONTINUE_OUTCOME_REJECTED)
    await until(lambda: call.applied and call.results)
    call.tell(continue_of(1))
    call.tell(continue_of(2))
    await until(lambda: len(call.results) == 3)
    assert call.applied == [101]
    assert call.results == [
        (key_with(2), pb.CONTINUE_OUTCOME_REJECTED),
        (key_with(1), pb.CONTINUE_OUTCOME_APPLIED),
        (key_with(2), pb.CONTINUE_OUTCOME_REJECTED),
    ]
    assert len(session.handed_on) == 2


async def test_a_number_of_an_old_stream_is_not_said_in_a_new_one() -> None:
    """There it would name another nap."""
    old, new = FakeCall(), FakeCall(is_welcome=False)
    async with Session(old, new) as session:
        session.listen()
        await session.wait_connected(5)
        for number in (1, 2, 3):
            session.suspend(nap(number, 0.01))
        await old.accept(1, 2, 3, due=[101, 102, 103])
        await until(lambda: len(session.due) == 3)
        session.cancel(key_with(3))
        old.end()
        await until(lambda: not session._connected.is_set())
        new.welcome()
        await session.wait_connected(5)
        session.suspend(nap(4, 0.01))
        await new.accept(4, due=[104])
        new.tell(continue_of(2))  # a repetition; the first is not repeated before its answer comes
        await until(lambda: len(session.due) == 4)
        session.applied(session.due)
        await until(lambda: new.results and new.applied)
        assert new.results == [(key_with(number), pb.CONTINUE_OUTCOME_APPLIED) for number in (1, 2, 3)]
        assert new.applied == [104]
        assert [each.key.transaction_index for each in new.suspends] == [4], "what was delivered is not submitted again"


async def test_what_is_answered_between_two_streams_is_answered_when_it_is_asked_for_again() -> None:
    old, new = FakeCall(), FakeCall(is_welcome=False)
    async with Session(old, new) as session:
        session.listen()
        await session.wait_connected(5)
        session.suspend(nap(1, 0.01))
        await old.accept(1, due=[101])
        await until(lambda: session.handed_on)
        old.end()
        await until(lambda: not session._connected.is_set())
        session.applied(session.due)
        new.welcome()
        await session.wait_connected(5)
        new.tell(continue_of(1))
        await until(lambda: new.results)
        assert new.results == [(key_with(1), pb.CONTINUE_OUTCOME_APPLIED)]
        assert new.applied == [], "it is no number of this stream"


async def test_what_waits_for_its_time_survives_the_stream_that_said_it() -> None:
    old, new = FakeCall(), FakeCall(is_welcome=False)
    async with Session(old, new) as session:
        session.listen()
        await session.wait_connected(5)
        asked_seconds = asyncio.get_running_loop().time()
        session.suspend(nap(1, 0.4))
        await old.accept(1, due=[101])
        await until(lambda: session._early)
        old.end()
        await until(lambda: not session._connected.is_set())
        new.welcome()
        await session.wait_connected(5)
        new.tell(continue_of(1))
        await until(lambda: session.handed_on)
        assert session.handed_on[0][0] >= asked_seconds + 0.4
        session.applied(session.due)
        await until(lambda: new.results)
        assert (new.applied, new.results, new.suspends) == ([], [(key_with(1), pb.CONTINUE_OUTCOME_APPLIED)], [])
        assert len(session.handed_on) == 1


async def test_what_is_not_delivered_is_submitted_again_and_held_already() -> None:
    """Then it has no number in the new stream, and its continue comes in full."""
    old, new = FakeCall(), FakeCall()
    async with Session(old, new) as session:
        session.listen()
        await session.wait_connected(5)
        session.suspend(nap(1, 0.3))
        await old.accept(1)
        old.end()
        await new.accept(1, is_new=False)
        (sent,), ((left_us,),) = new.suspends, [request.left_us for request in new.written if request.suspends]
        assert seconds_of(sent.delay) == pytest.approx(0.3)
        assert left_us < 300_000
        new.say_due(101)  # that is nobody's number here
        new.tell(continue_of(1))
        await until(lambda: session.handed_on)
        assert session.due == []
        session.answer(key_with(1), pb.CONTINUE_OUTCOME_APPLIED)
        await until(lambda: new.results)
        assert (new.applied, new.results) == ([], [(key_with(1), pb.CONTINUE_OUTCOME_APPLIED)])


async def test_numbers_that_do_not_fit_end_the_stream_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever they were meant for: in the next stream it comes by its key."""
    old, new = FakeCall(), FakeCall()
    async with Session(old, new) as session:
        session.listen()
        await session.wait_connected(5)
        session.suspend(nap(1, 0.2))
        await until(lambda: old.suspends)
        response = wire.SessionResponse(due=[5])
        response.frame_results.add(frame_number=1, numbers=[5, 6])
        old.tell(response)
        await new.accept(1)
        new.say_due(101)
        await until(lambda: session.handed_on)
        assert (len(session.due), session.outstanding) == (1, 1)
    assert "2 numbers for 1 suspensions" in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_suspension_is_written_as_it_was_encoded(session: Session, call: FakeCall) -> None:
    suspension = nap(1, 2.0)
    suspension.state.head = b"INVITE sip:b@example.org SIP/2.0\r\n"
    session.suspend(suspension)
    session.suspend(nap(1, 9.0))  # its key is outstanding already
    await until(lambda: call.suspends)
    (sent,) = call.suspends
    ((left_us,),) = [request.left_us for request in call.written if request.suspends]
    assert 1_900_000 < left_us <= 2_000_001
    suspension.key.front_end_id = sent.key.front_end_id
    assert sent == suspension
    assert suspension.delay.seconds == 2, "the caller's own message stays as it is"
