"""`AdminService`: what operators ask."""

from __future__ import annotations

import asyncio
import logging

import grpc

from sipnap.client.outstanding import set_duration
from sipnap.sidecar.core.groups import MOST_WORKERS, WorkerGroup, WorkerKind
from sipnap.sidecar.core.histogram import Histogram
from sipnap.sidecar.core.suspension import Outcome
from sipnap.sidecar.dispatcher import Dispatcher
from sipnap.sidecar.services.translate import DURABILITY_TO_WIRE, Context, abort, wall_time
from sipnap.v1 import admin_service_pb2 as admin
from sipnap.v1.admin_service_pb2_grpc import AdminServiceServicer

_KIND_TO_WIRE: dict[WorkerKind, admin.WorkerKind] = {
    kind: getattr(admin, f"WORKER_KIND_{kind.name}") for kind in WorkerKind
}

log = logging.getLogger("sipnap.sidecar")


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
            worker_groups=[_group_status(group) for group in engine.jobs.groups.values()],
            lateness=_distribution(self._dispatcher.lateness),
        )

    async def SetWorkers(self, request: admin.SetWorkersRequest, context: Context) -> admin.SetWorkersResponse:
        """Resize a group while it runs."""
        groups = self._dispatcher.engine.jobs.groups
        group = groups.get(request.group)
        if group is None:
            await abort(
                context, grpc.StatusCode.NOT_FOUND, "NOT_FOUND",
                f"no worker group {request.group[:80]!r}; there are: {', '.join(groups)}",
            )  # fmt: skip
        if group.kind is WorkerKind.REMOTE:
            await abort(
                context, grpc.StatusCode.FAILED_PRECONDITION, "REMOTE",
                f"the workers of group {group.name!r} are remote: start or stop them where they run ('sipnap worker')",
            )  # fmt: skip
        if not 1 <= request.workers <= MOST_WORKERS:
            await abort(
                context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID",
                f"{request.workers} workers, expected 1 to {MOST_WORKERS}",
            )  # fmt: skip
        previous_workers = group.workers
        self._dispatcher.resize(group, request.workers)
        log.info(
            "workers set group=%s workers=%d before=%d busy=%d queued=%d peer=%s",
            group.name, group.workers, previous_workers, len(group.running), group.queued, context.peer(),
        )  # fmt: skip
        return admin.SetWorkersResponse(previous_workers=previous_workers, group=_group_status(group))


def _group_status(group: WorkerGroup) -> admin.WorkerGroupStatus:
    return admin.WorkerGroupStatus(
        name=group.name,
        workers=group.workers,
        busy=len(group.running),
        queued=group.queued,
        kind=_KIND_TO_WIRE[group.kind],
        max_queued=group.max_queued,
        succeeded=group.succeeded,
        failed=group.failed,
        timed_out=group.timed_out,
        abandoned=group.abandoned,
        refused=group.refused,
        retried=group.retried,
        wait=_distribution(group.wait),
        run=_distribution(group.run),
    )


def _distribution(histogram: Histogram) -> admin.Distribution:
    distribution = admin.Distribution()
    for bound_seconds, count in zip((*histogram.bounds_seconds, None), histogram.counts, strict=True):
        bucket = distribution.buckets.add(count=count)
        if bound_seconds is not None:
            bucket.upper_bound.FromNanoseconds(round(bound_seconds * 1e9))
    set_duration(distribution.total, histogram.sum_seconds)
    return distribution
