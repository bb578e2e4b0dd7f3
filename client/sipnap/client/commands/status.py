"""`sipnap status`: the sidecar's state in figures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from datetime import UTC, datetime

from sipnap.client.commands import target
from sipnap.client.commands.json_form import json_form, short_name
from sipnap.client.table import duration_text, shown, table
from sipnap.v1 import admin_service_pb2 as admin
from sipnap.v1 import suspension_pb2 as pb

SUMMARY = "show the state of a running sidecar; fails when it cannot be reached"
EPILOG = """\
examples:
  sipnap status
  sipnap status --sidecar sidecar.example.net:5600 --tls-ca ca.pem
  sipnap status --json | jq .counters

--json prints one object with the members of GetStatusResponse (protos/sipnap/v1/admin_service.proto).
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--json", action="store_true", help="print one JSON object (default: text for people)")
    target.configure(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask, print, 0."""
    with target.connect(arguments) as client:
        status = client.status()
    if arguments.json:
        print(json.dumps(json_form(status)))
    else:
        print("\n".join(status_lines(status, arguments.sidecar, datetime.now(UTC))))
    return 0


def status_lines(status: admin.GetStatusResponse, sidecar: str, now: datetime) -> Iterator[str]:
    """The status as an operator reads it."""
    start = status.start_time.ToDatetime(UTC)
    up_seconds = max(0.0, (now - start).total_seconds())
    state = "draining: accepts nothing new" if status.draining else "serving"
    durability = short_name(pb.Durability.DESCRIPTOR, status.journal.durability)
    counters = status.counters
    yield f"sidecar     {shown(sidecar)}, sipnap {shown(status.version)}, instance {shown(status.instance_id)}"
    yield f"state       {state}, up {duration_text(up_seconds)}, since {start:%Y-%m-%d %H:%M:%S} UTC"
    yield f"journal     {shown(status.journal.kind)}: what it accepted {_SURVIVES.get(durability, durability)}"
    yield (
        f"now         {status.pending} pending of at most {status.max_pending}, {status.continuing} continuing,"
        f" {status.sleeping} sleeping"
    )
    yield (
        f"since start {counters.accepted} accepted, {counters.refused} refused, {counters.cancelled} cancelled,"
        f" {counters.applied} applied, {counters.gone} gone,"
    )
    yield f"            {counters.rejected} rejected, {counters.lost} lost, {counters.slept} slept"
    yield ""
    if status.front_ends:
        yield from table(
            ("FRONT END", "SESSION", "BOOT EPOCH", "PENDING", "CONTINUING"),
            [
                (
                    shown(front_end.front_end_id),
                    "open" if front_end.connected else "none",
                    str(front_end.boot_epoch),
                    str(front_end.pending),
                    str(front_end.continuing),
                )
                for front_end in status.front_ends
            ],
        )
    else:
        yield "no front end has had a session yet"
    if status.worker_groups:
        yield ""
        yield from table(
            ("WORKER GROUP", "KIND", "WORKERS", "BUSY", "QUEUED", "OK", "FAILED", "TIMED OUT", "REFUSED"),
            [
                (
                    shown(group.name),
                    short_name(admin.WorkerKind.DESCRIPTOR, group.kind),
                    str(group.workers),
                    str(group.busy),
                    str(group.queued),
                    str(group.succeeded),
                    str(group.failed),
                    str(group.timed_out),
                    str(group.refused),
                )
                for group in status.worker_groups
            ],
        )


_SURVIVES = {
    "memory": "ends with the process",
    "process": "survives the end of the process",
    "disk": "survives the end of the machine",
}
