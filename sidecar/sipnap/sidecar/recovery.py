"""What a journal kept, back into the engine: all of it at the start, or a front end's when its session comes here."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Sequence

from sipnap.sidecar.core.engine import Engine
from sipnap.sidecar.core.front_ends import FrontEnd
from sipnap.sidecar.core.suspension import LatePolicy, NapKey
from sipnap.sidecar.journal.base import Entry, Journal
from sipnap.sidecar.workers.base import operations_of
from sipnap.v1 import suspension_pb2 as pb

_PROGRESS_SECONDS = 2.0
_MANY = 1000

_LATE_POLICIES: dict[pb.LatePolicy, LatePolicy] = {
    getattr(pb, f"LATE_POLICY_{policy.name}"): policy for policy in LatePolicy
}

log = logging.getLogger("sipnap.sidecar")


async def recover(engine: Engine, journal: Journal) -> int:
    """Restore everything; what fell due meanwhile is due now.

    Returns:
        How many suspensions were restored.

    Raises:
        JournalError: The journal cannot be read.
    """
    return await _restore_all(engine, journal, journal.recover(), "all")


async def claim(engine: Engine, journal: Journal, front_end: FrontEnd) -> int:
    """Take a front end over from whoever held it, and restore what is its.

    Returns:
        How many suspensions were restored.

    Raises:
        JournalError: It cannot be had; some of it may be in the engine.
    """
    restored = await _restore_all(engine, journal, journal.claim(front_end), front_end.front_end_id)
    if restored > _MANY:
        gc.freeze()  # a full collection over them would stop the loop
    return restored


async def _restore_all(engine: Engine, journal: Journal, batches: AsyncIterator[Sequence[Entry]], whose: str) -> int:
    started = reported = time.monotonic()
    restored = 0
    gc.disable()  # nothing of this becomes garbage; looking for it would take longer than the rest
    try:
        async for batch in batches:
            offset_ns = journal.offset_ns()
            for entry in batch:
                _restore(engine, entry, offset_ns, keep_sequence=not journal.shared)
            restored += len(batch)
            if time.monotonic() - reported > _PROGRESS_SECONDS:
                reported = time.monotonic()
                log.info(
                    "recovering journal=%s front_end=%s restored=%d seconds=%.1f",
                    journal.kind, whose, restored, reported - started,
                )  # fmt: skip
            await asyncio.sleep(0)
    finally:
        gc.enable()
    if restored:
        log.info(
            "recovered journal=%s front_end=%s restored=%d seconds=%.1f",
            journal.kind, whose, restored, time.monotonic() - started,
        )  # fmt: skip
    return restored


def _restore(engine: Engine, entry: Entry, offset_ns: int, *, keep_sequence: bool) -> None:
    engine.restore(
        entry.front_end_id,
        NapKey(entry.boot_epoch, entry.transaction_index, entry.transaction_label, entry.nap_number),
        entry.route,
        entry.payload,
        # Several sidecars count each for itself: a number from another one may be taken here.
        sequence=entry.sequence if keep_sequence else None,
        accepted_seconds=(entry.accepted_ns - offset_ns) * 1e-9,
        due_seconds=(entry.due_ns - offset_ns) * 1e-9,
        deadline_seconds=(entry.deadline_ns - offset_ns) * 1e-9,
        operations=operations_of(pb.Suspension.FromString(entry.payload)) if entry.operation else (),
        late_policy=lambda: _late_policy_of(entry.payload),
    )


def _late_policy_of(payload: bytes) -> LatePolicy:
    return _LATE_POLICIES.get(pb.Suspension.FromString(payload).late_policy, LatePolicy.FIRE)
