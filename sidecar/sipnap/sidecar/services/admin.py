"""`AdminService`: what operators ask."""

from __future__ import annotations

import asyncio

from sipnap.sidecar.core.suspension import Outcome
from sipnap.sidecar.dispatcher import Dispatcher
from sipnap.sidecar.services.translate import DURABILITY_TO_WIRE, Context, wall_time
from sipnap.v1 import admin_service_pb2 as admin
from sipnap.v1.admin_service_pb2_grpc import AdminServiceServicer


class AdminServicer(AdminServiceServicer):
    """See `protos/sipnap/v1/admin_service.proto`."""

    def __init__(self, dispatcher: Dispatcher, instance_id: str, version: str) -> None:
        self._dispatcher = dispatcher
        self._instance_id = instance_id
        self._version = version
        self._started_seconds = asyncio.get_running_loop().time()

    async def GetStatus(self, request: admin.GetStatusRequest, context: Context) -> admin.GetStatusResponse:
        """The sidecar's state in figures."""
        engine, journal = self._dispatcher.engine, self._dispatcher.journal
        counters = engine.counters
        return admin.GetStatusResponse(
            version=self._version,
            instance_id=self._instance_id,
            start_time=wall_time(self._started_seconds, asyncio.get_running_loop().time()),
            draining=engine.draining,
            journal=admin.JournalStatus(kind=journal.kind, durability=DURABILITY_TO_WIRE[journal.durability]),
            pending=engine.pending_count,
            continuing=engine.continuing_count,
            sleeping=engine.sleepers,
            max_pending=engine.limits.max_pending,
            counters=admin.Counters(
                accepted=counters.accepted,
                refused=sum(counters.refused.values()),
                cancelled=counters.cancelled,
                applied=counters.outcomes[Outcome.APPLIED],
                gone=counters.outcomes[Outcome.GONE],
                rejected=counters.outcomes[Outcome.REJECTED],
                lost=counters.lost,
                slept=counters.slept,
                dropped=counters.dropped,
            ),
            front_ends=[
                admin.FrontEndStatus(
                    front_end_id=front_end.front_end_id,
                    boot_epoch=front_end.boot_epoch,
                    connected=front_end.connected,
                    pending=front_end.pending,
                    continuing=len(front_end.continuing),
                )
                for front_end in engine.front_ends.values()
            ],
            worker_groups=[
                admin.WorkerGroupStatus(
                    name=group.name, workers=group.workers, busy=len(group.running), queued=group.queued
                )
                for group in engine.groups.values()
            ],
        )
