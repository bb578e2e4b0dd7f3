"""`sipnap workers list`: the worker groups in figures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence

from sipnap.client.commands import target
from sipnap.client.commands.json_form import json_form, short_name
from sipnap.client.distribution import mean_seconds, quantile_text, time_text
from sipnap.client.table import shown, table
from sipnap.v1 import admin_service_pb2 as admin

SUMMARY = "list the worker groups: workers, busy ones, queue, how long jobs wait and run"
EPILOG = """\
examples:
  sipnap workers list
  sipnap workers list --json | jq -r 'select(.queued > 100).name'

--json prints one object for each group, with the members of WorkerGroupStatus (protos/sipnap/v1/admin_service.proto).
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object for each group (default: text for people)"
    )
    target.configure(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask, print, 0."""
    with target.connect(arguments) as client:
        groups = client.status().worker_groups
    if arguments.json:
        for group in groups:
            print(json.dumps(json_form(group)))
    else:
        print("\n".join(group_lines(groups)))
    return 0


def group_lines(groups: Sequence[admin.WorkerGroupStatus]) -> Iterator[str]:
    """The groups as an operator reads them: what is now, what has been since the start, how long it took."""
    yield from table(
        (
            "WORKER GROUP", "KIND", "WORKERS", "BUSY", "QUEUED", "OK", "FAILED", "TIMED OUT", "ABANDONED", "REFUSED",
            "RETRIED", "WAIT MEAN/P99", "RUN MEAN/P99",
        ),
        [
            (
                shown(group.name),
                short_name(admin.WorkerKind.DESCRIPTOR, group.kind),
                str(group.workers),
                str(group.busy),
                f"{group.queued}/{group.max_queued}",
                *map(str, (
                    group.succeeded, group.failed, group.timed_out, group.abandoned, group.refused, group.retried
                )),
                times_text(group.wait),
                times_text(group.run),
            )
            for group in groups
        ],
    )  # fmt: skip


def times_text(distribution: admin.Distribution) -> str:
    """Mean and 99th percentile; a dash where there is nothing yet."""
    mean = mean_seconds(distribution)
    return "-" if mean is None else f"{time_text(mean)} / {quantile_text(distribution, 0.99)}"
