"""What a session does with what it is told, on a stream that the test speaks at the other end of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from sipnap.client.keys import Key, SuspensionKey, key_of
from sipnap.client.outstanding import seconds_of
from sipnap.client.session import AHEAD_SECONDS, FrontEndSession
from sipnap.v1 import front_end_service_pb2 as wire
from sipnap.v1 import suspension_pb2 as pb

if TYPE_CHECKING:
    from sipnap.client.frames import SessionFrame
    from sipnap.client.session import _Call

KEY = SuspensionKey("proxy", 1, 1, 5, 1)


class FakeCall:
    """A stream: what the session writes, and what it is to read."""

    def __init__(self) -> None:
        self.written: list[wire.SessionRequest] = []
        self.to_read: asyncio.Queue[object] = asyncio.Queue()
        self.tell(wire.SessionResponse(welcome=wire.Welcome(protocol_version=1)))

    def tell(self, response: wire.SessionResponse) -> None:
        self.to_read.put_nowait(response)

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
        """When which continue was handed on, for those who have called `listen`."""

    def _open_call(self, target: str) -> tuple[_Call, Callable[[], Awaitable[None]]]:
        async def close() -> None:
            pass

        return (self._fakes.pop(0) if len(self._fakes) > 1 else self._fakes[0]), close

    def listen(self) -> None:
        def remember(continues: Sequence[tuple[Key, pb.Continue]]) -> None:
            now = asyncio.get_running_loop().time()
            self.handed_on += [(now, key) for key, _ in continues]

        self.on_continues(remember)

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


def continue_of(number: int, *, continue_number: int, wait_us: int = 0) -> wire.SessionResponse:
    key = KEY._replace(transaction_index=number).to_message()
    key.front_end_id = ""  # in a session it is implied
    order = pb.Continue(
        key=key, resume_route="RESUME", status=pb.CONTINUE_STATUS_OK, attempt=1, continue_number=continue_number,
        wait_us=wait_us,
    )  # fmt: skip
    return wire.SessionResponse(continues=[order])


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


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


# Continues that come ahead of their time


async def test_the_hello_says_how_far_ahead_continues_may_come(session: Session, call: FakeCall) -> None:
    hello = call.written[0].hello
    assert (hello.front_end_id, hello.boot_epoch) == ("proxy", 1)
    assert AHEAD_SECONDS <= seconds_of(hello.ahead) < AHEAD_SECONDS + 1e-6


async def test_what_comes_ahead_of_its_time_waits_for_it(session: Session, call: FakeCall) -> None:
    session.listen()
    waits_us = {1: 60_000, 2: 20_000, 3: 0, 4: 40_000, 5: 20_500}
    sent_seconds = asyncio.get_running_loop().time()
    for number, wait_us in waits_us.items():
        session.suspend(nap(number))
        call.tell(continue_of(number, continue_number=number, wait_us=wait_us))
    await until(lambda: len(session.handed_on) == len(waits_us))
    for handed_on_seconds, key in session.handed_on:
        early_seconds = sent_seconds + waits_us[key[2]] * 1e-6 - handed_on_seconds
        assert early_seconds <= 0, f"{key} was handed on {early_seconds:.6f} s early"
    assert [key[2] for key in session.keys_handed_on] == [3, 2, 5, 4, 1], "in order of their time"


async def test_batches_have_to_wait_as_well(session: Session, call: FakeCall) -> None:
    session.suspend(nap(1))
    sent_seconds = asyncio.get_running_loop().time()
    call.tell(continue_of(1, continue_number=1, wait_us=30_000))
    async with asyncio.timeout(5):
        (first,) = await anext(session.batches())
    assert asyncio.get_running_loop().time() >= sent_seconds + 0.03
    assert first.key == KEY._replace(transaction_index=1).to_message(), "with its front end"


async def test_what_is_cancelled_while_it_waits_is_not_handed_on(session: Session, call: FakeCall) -> None:
    session.listen()
    for number in (1, 2):
        session.suspend(nap(number))
    call.tell(continue_of(1, continue_number=1, wait_us=30_000))
    call.tell(continue_of(2, continue_number=2))
    await until(lambda: session.handed_on)
    session.cancel(KEY._replace(transaction_index=1))
    call.tell(continue_of(3, continue_number=3, wait_us=60_000))
    await until(lambda: len(session.handed_on) == 2)
    assert [key[2] for key in session.keys_handed_on] == [2, 3]
    await until(lambda: call.results)
    assert call.results == [(KEY._replace(transaction_index=1), pb.CONTINUE_OUTCOME_GONE)], (
        "for the sidecar it was too late to cancel: it waits for the answer to its continue"
    )


async def test_what_is_sent_again_while_it_waits_is_handed_on_once(session: Session, call: FakeCall) -> None:
    session.listen()
    session.suspend(nap(1))
    sent_seconds = asyncio.get_running_loop().time()
    call.tell(continue_of(1, continue_number=1, wait_us=40_000))
    call.tell(continue_of(1, continue_number=2, wait_us=30_000))
    call.tell(continue_of(1, continue_number=3))
    call.tell(continue_of(9, continue_number=4, wait_us=70_000))
    await until(lambda: len(session.handed_on) == 2)
    (handed_on_seconds, first), (_, last) = session.handed_on
    assert (first[2], last[2]) == (1, 9)
    assert handed_on_seconds >= sent_seconds + 0.04


async def test_nothing_waits_for_a_proxy_that_was_restarted(session: Session, call: FakeCall) -> None:
    session.listen()
    session.suspend(nap(1))
    call.tell(continue_of(1, continue_number=1, wait_us=30_000))
    call.tell(continue_of(2, continue_number=2))
    await until(lambda: session.handed_on)
    call.cancel = call.end  # type: ignore[attr-defined]  # what a stream does when it is left
    session.set_boot_epoch(2)
    call.tell(wire.SessionResponse(welcome=wire.Welcome(protocol_version=1)))
    await until(lambda: call.written[-1].hello.boot_epoch == 2)
    call.tell(continue_of(3, continue_number=1, wait_us=60_000))
    await until(lambda: len(session.handed_on) == 2)
    assert [key[2] for key in session.keys_handed_on] == [2, 3]


# Answers by number


async def test_what_was_applied_is_answered_by_its_number(session: Session, call: FakeCall) -> None:
    session.listen()
    for number in (1, 2, 3):
        session.suspend(nap(number))
        call.tell(continue_of(number, continue_number=10 + number))
    await until(lambda: len(session.handed_on) == 3)
    outcomes = pb.CONTINUE_OUTCOME_APPLIED, pb.CONTINUE_OUTCOME_GONE, pb.CONTINUE_OUTCOME_APPLIED
    for (_, key), outcome in zip(session.handed_on, outcomes, strict=True):
        session.answer(key, outcome)
    await until(lambda: len(call.applied) == 2 and call.results)
    assert call.applied == [11, 13]
    assert call.results == [(KEY._replace(transaction_index=2), pb.CONTINUE_OUTCOME_GONE)], "not that it was applied"


async def test_a_repetition_in_the_same_stream_is_answered_from_memory(session: Session, call: FakeCall) -> None:
    session.listen()
    session.suspend(nap(1))
    call.tell(continue_of(1, continue_number=1))
    await until(lambda: session.handed_on)
    session.answer(session.keys_handed_on[0], pb.CONTINUE_OUTCOME_APPLIED)
    await until(lambda: call.applied)
    call.tell(continue_of(1, continue_number=2, wait_us=1000))
    await until(lambda: call.results)
    assert call.applied == [1]
    assert call.results == [(KEY._replace(transaction_index=1), pb.CONTINUE_OUTCOME_APPLIED)]
    assert len(session.handed_on) == 1


async def test_a_number_of_an_old_stream_is_not_said_in_a_new_one() -> None:
    """There it would name another nap."""
    old, new = FakeCall(), FakeCall()
    async with Session(old, new) as session:
        session.listen()
        await session.wait_connected(5)
        for number in (1, 2):
            session.suspend(nap(number))
        await until(lambda: len(old.suspends) == 2)
        for number in (1, 2):
            old.tell(continue_of(number, continue_number=number))
        await until(lambda: len(session.handed_on) == 2)
        old.end()
        await until(lambda: not session._connected.is_set())
        await session.wait_connected(5)
        first, second = (KEY._replace(transaction_index=number) for number in (1, 2))
        session.answer(first, pb.CONTINUE_OUTCOME_APPLIED)
        new.tell(continue_of(2, continue_number=1))  # a repetition; the first is not repeated before its answer comes
        new.tell(continue_of(9, continue_number=2))
        await until(lambda: len(session.handed_on) == 3)
        session.answer(second, pb.CONTINUE_OUTCOME_APPLIED)
        await until(lambda: new.results and new.applied)
        assert new.results == [(first, pb.CONTINUE_OUTCOME_APPLIED)]
        assert new.applied == [1]
        assert new.suspends == [], "what was delivered is not submitted again"


async def test_what_is_answered_between_two_streams_is_answered_when_it_is_asked_for_again() -> None:
    old, new = FakeCall(), FakeCall()
    async with Session(old, new) as session:
        session.listen()
        await session.wait_connected(5)
        session.suspend(nap(1))
        old.tell(continue_of(1, continue_number=7))
        await until(lambda: session.handed_on)
        old.end()
        await until(lambda: not session._connected.is_set())
        session.answer(session.keys_handed_on[0], pb.CONTINUE_OUTCOME_APPLIED)
        await session.wait_connected(5)
        new.tell(continue_of(1, continue_number=1))
        await until(lambda: new.results)
        assert new.results == [(KEY._replace(transaction_index=1), pb.CONTINUE_OUTCOME_APPLIED)]
        assert new.applied == [], "7 is no number of this stream"


async def test_what_waits_for_its_time_survives_the_stream_that_brought_it() -> None:
    old, new = FakeCall(), FakeCall()
    async with Session(old, new) as session:
        session.listen()
        await session.wait_connected(5)
        session.suspend(nap(1))
        sent_seconds = asyncio.get_running_loop().time()
        old.tell(continue_of(1, continue_number=7, wait_us=400_000))
        old.end()
        await until(lambda: not session._connected.is_set())
        await session.wait_connected(5)
        new.tell(continue_of(1, continue_number=1))  # by then it is due for the sidecar
        await until(lambda: session.handed_on)
        assert session.handed_on[0][0] >= sent_seconds + 0.4
        session.answer(session.keys_handed_on[0], pb.CONTINUE_OUTCOME_APPLIED)
        await until(lambda: new.applied)
        assert (new.applied, new.results, new.suspends) == ([1], [], [])
        assert len(session.handed_on) == 1


async def test_a_suspension_is_written_as_it_was_encoded(session: Session, call: FakeCall) -> None:
    suspension = nap(1, 2.0)
    suspension.state.head = b"INVITE sip:b@example.org SIP/2.0\r\n"
    session.suspend(suspension)
    session.suspend(nap(1, 9.0))  # its key is outstanding already
    await until(lambda: call.suspends)
    (sent,) = call.suspends
    assert 1.9 < seconds_of(sent.delay) <= 2.0 + 1e-6
    sent.delay.CopyFrom(suspension.delay)
    suspension.key.front_end_id = sent.key.front_end_id
    assert sent == suspension
    assert suspension.delay.seconds == 2, "the caller's own message stays as it is"
