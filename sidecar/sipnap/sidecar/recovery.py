"""What a journal kept, back into the engine: before the sidecar serves anybody."""

from __future__ import annotations

import gc
import logging
import time

from sipnap.sidecar.core.engine import Engine
from sipnap.sidecar.core.suspension import NapKey
from sipnap.sidecar.journal.base import Entry, Journal, wall_offset_ns

_PROGRESS_SECONDS = 2.0

log = logging.getLogger("sipnap.sidecar")


async def recover(engine: Engine, journal: Journal) -> int:
    """Restore everything; what fell due meanwhile is due now.

    Returns:
        How many suspensions were restored.

    Raises:
        JournalError: The journal cannot be read.
    """
    started = reported = time.monotonic()
    restored = 0
    offset_ns = wall_offset_ns()
    gc.disable()  # nothing of this becomes garbage; looking for it would take longer than the rest
    try:
        async for batch in journal.recover():
            for entry in batch:
                _restore(engine, entry, offset_ns)
            restored += len(batch)
            if time.monotonic() - reported > _PROGRESS_SECONDS:
                reported = time.monotonic()
                log.info("recovering journal=%s restored=%d seconds=%.1f", journal.kind, restored, reported - started)
    finally:
        gc.enable()
    if restored:
        log.info("recovered journal=%s restored=%d seconds=%.1f", journal.kind, restored, time.monotonic() - started)
    return restored


def _restore(engine: Engine, entry: Entry, offset_ns: int) -> None:
    engine.restore(
        entry.front_end_id,
        NapKey(entry.boot_epoch, entry.transaction_index, entry.transaction_label, entry.nap_number),
        entry.route,
        entry.payload,
        sequence=entry.sequence,
        accepted_seconds=(entry.accepted_ns - offset_ns) * 1e-9,
        due_seconds=(entry.due_ns - offset_ns) * 1e-9,
        deadline_seconds=(entry.deadline_ns - offset_ns) * 1e-9,
        operation=(entry.operation, entry.group) if entry.operation else None,
    )
