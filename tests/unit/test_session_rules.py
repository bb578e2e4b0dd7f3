"""What a session does with what it is told, on a stream that the test speaks at the other end of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from sipnap.client.keys import SuspensionKey
from sipnap.client.session import FrontEndSession
from sipnap.v1 import front_end_service_pb2 as wire
from sipnap.v1 import suspension_pb2 as pb

if TYPE_CHECKING:
    from sipnap.client.session import _Call

KEY = SuspensionKey("proxy", 1, 1, 5, 1)


class FakeCall:
    """A stream: what the session writes, and what it is to read."""

    def __init__(self) -> None:
        self.written: list[wire.SessionRequest] = []
        self.to_read: asyncio.Queue[wire.SessionResponse] = asyncio.Queue()
        self.to_read.put_nowait(wire.SessionResponse(welcome=wire.Welcome(protocol_version=1)))

    async def write(self, request: wire.SessionRequest) -> None:
        self.written.append(request)

    async def read(self) -> wire.SessionResponse:
        return await self.to_read.get()

    def cancelled(self) -> bool:
        return False


class Session(FrontEndSession):
    def __init__(self, call: FakeCall) -> None:
        super().__init__(["nowhere"], front_end_id="proxy", boot_epoch=1)
        self._fake: Any = call

    def _open_call(self, target: str) -> tuple[_Call, Callable[[], Awaitable[None]]]:
        async def close() -> None:
            pass

        return self._fake, close


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
