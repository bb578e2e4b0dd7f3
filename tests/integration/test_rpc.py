"""The unary RPCs of a real sidecar process, with the asyncio and the blocking client."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2

from sipnap.client import FrontEndSession, SuspensionKey, aio, errors, key_of, sync
from sipnap.v1 import suspension_pb2 as pb
from tests.support.processes import Sidecar, free_port

EPOCH = 1_000


def key(number: int, *, front_end: str = "bench") -> SuspensionKey:
    return SuspensionKey(front_end, 0, number, 2**32 - 1, 1)


def test_sleep_returns_after_its_time_and_not_before(sidecar: Sidecar) -> None:
    with sync.Client(sidecar.target) as client:
        started = time.monotonic()
        slept = client.sleep(0.25)
        assert 0.25 <= slept <= time.monotonic() - started
        for seconds in (0.0, 100.5):
            with pytest.raises(errors.DelayOutOfRange, match="--max-seconds"):
                client.sleep(seconds)
        assert client.status().counters.slept == 1


async def test_a_thousand_sleepers_at_once(sidecar: Sidecar) -> None:
    async with aio.Client(sidecar.target) as client:
        naps = [0.2 + number / 2000 for number in range(1000)]
        slept = await asyncio.gather(*(client.sleep(nap) for nap in naps))
        assert all(asked <= was for asked, was in zip(naps, slept, strict=True))


async def test_a_sleeper_that_leaves_is_forgotten(sidecar: Sidecar) -> None:
    async with aio.Client(sidecar.target) as client:
        task = asyncio.create_task(client.sleep(60))
        async with asyncio.timeout(5):
            while (await client.status()).sleeping != 1:
                await asyncio.sleep(0.01)
            task.cancel()
            while (await client.status()).sleeping:
                await asyncio.sleep(0.01)


async def test_suspend_route_continues_at_the_front_end_that_it_names(sidecar: Sidecar) -> None:
    hostile = bytes(range(256))
    async with (
        aio.Client(sidecar.target) as client,
        FrontEndSession([sidecar.target], front_end_id="bench", boot_epoch=EPOCH) as session,
    ):
        await session.wait_connected(10)
        state = pb.TransactionState(call_id=hostile, method=b"INVITE", cseq=1)
        accepted = await client.suspend_route(key(1), "RESUME", 0.2, state=state, avps={"who": hostile, "count": -5})
        assert accepted.key.boot_epoch == EPOCH, "0 means the present one"
        assert accepted.durability == pb.DURABILITY_MEMORY
        again = await client.suspend_route(key(1), "OTHER", 5.0)
        assert (accepted.already_held, again.already_held) == (False, True)
        info = await client.get(key(1))
        assert info.suspension.state.call_id == hostile
        assert [(avp.name, avp.text, avp.integer) for avp in info.suspension.state.avps] == [
            ("who", hostile, 0),
            ("count", b"", -5),
        ]
        assert info.phase == pb.SUSPENSION_PHASE_PENDING
        async with asyncio.timeout(5):
            batch = await anext(aiter(session.batches()))
        assert [(c.resume_route, c.attempt, c.status) for c in batch] == [("RESUME", 1, pb.CONTINUE_STATUS_OK)]
        assert (await client.get(key(1))).phase == pb.SUSPENSION_PHASE_CONTINUING
        assert await client.cancel(key(1)) == pb.CANCEL_OUTCOME_CONTINUING
        session.answer(key_of(accepted.key), pb.CONTINUE_OUTCOME_REJECTED)
        async with asyncio.timeout(5):
            while not (await client.status()).counters.rejected:
                await asyncio.sleep(0.01)
        with pytest.raises(errors.NotFound):
            await client.get(key(1))
        assert await client.cancel(key(1)) == pb.CANCEL_OUTCOME_GONE


async def test_bad_requests_are_told_why(sidecar: Sidecar) -> None:
    async with (
        aio.Client(sidecar.target) as client,
        FrontEndSession([sidecar.target], front_end_id="bench", boot_epoch=EPOCH) as session,
    ):
        await session.wait_connected(10)
        big = pb.TransactionState(raw_request=b"x" * 70_000)
        for error, call in [
            (errors.FrontEndUnknown, client.suspend_route(key(1, front_end="other"), "R", 1)),
            (errors.FrontEndUnknown, client.suspend_route(key(1, front_end="../../etc"), "R", 1)),
            (errors.Invalid, client.suspend_route(key(1)._replace(nap_number=0), "R", 1)),
            (errors.Invalid, client.suspend_route(key(1), "no such route name", 1)),
            (errors.StaleEpoch, client.suspend_route(key(1)._replace(boot_epoch=EPOCH - 1), "R", 1)),
            (errors.DelayOutOfRange, client.suspend_route(key(1), "R", 101)),
            (errors.DelayOutOfRange, client.suspend_route(key(1), "R", 5, deadline_seconds=4)),
            (errors.TooLarge, client.suspend_route(key(1), "R", 1, state=big)),
            (errors.OperationUnknown, client.suspend_route(key(1), "R", 1, operations=[pb.Operation(name="x")])),
        ]:
            with pytest.raises(error) as caught:
                await call
            assert len(str(caught.value)) > 15, "says why"
        status = await client.status()
        assert status.counters.refused == 9
        assert (status.pending, status.continuing) == (0, 0)


async def test_listing_pages_through_everything(sidecar: Sidecar) -> None:
    async with (
        aio.Client(sidecar.target) as client,
        FrontEndSession([sidecar.target], front_end_id="bench", boot_epoch=EPOCH) as session,
    ):
        await session.wait_connected(10)
        for number in range(2500):
            suspension = pb.Suspension(key=key(number)._replace(boot_epoch=EPOCH).to_message(), resume_route="R")
            suspension.delay.seconds = 90
            session.suspend(suspension)
        async with asyncio.timeout(10):
            while (await client.status()).pending < 2500:
                await asyncio.sleep(0.01)
        listed = [info.suspension.key.transaction_index async for info in client.list()]
        assert listed == list(range(2500))
        assert [info async for info in client.list("somebody-else")] == []
        assert await client.cancel(key(7)) == pb.CANCEL_OUTCOME_CANCELLED


def test_nobody_there() -> None:
    target = f"127.0.0.1:{free_port()}"
    with sync.Client(target) as client, pytest.raises(errors.Unavailable, match=target):
        client.status()


def test_health_and_reflection_answer(sidecar: Sidecar) -> None:
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with grpc.insecure_channel(sidecar.target) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        health = check(health_pb2.HealthCheckRequest(), timeout=5)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"sipnap.v1.NapService", "sipnap.v1.FrontEndService", "sipnap.v1.AdminService"} <= set(services)
