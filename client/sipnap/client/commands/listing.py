"""`sipnap list`: the suspensions that a sidecar holds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice

from sipnap.client.commands import target
from sipnap.client.commands.json_form import json_form, short_name
from sipnap.client.keys import key_of
from sipnap.client.settings import count
from sipnap.client.table import Columns, duration_text, shown
from sipnap.v1 import suspension_pb2 as pb

SUMMARY = "list the suspensions that a sidecar holds, oldest first"
EPILOG = """\
examples:
  sipnap list
  sipnap list --front-end kamailio --limit 20
  sipnap list --json | jq -r 'select(.phase == "pending") | .key'

--json prints one object a line: the members of SuspensionInfo (protos/sipnap/v1/suspension.proto), and "key", the
printed form that `sipnap cancel` takes. Times are UTC, durations seconds. What SIP sent is text in it, with \\udc80 to
\\udcff for bytes that are not UTF-8. In the table, whatever is not printable is shown as backslash escapes.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--json", action="store_true", help="print one JSON object a line (default: a table)")
    parser.add_argument("--front-end", default="", metavar="NAME", help="only this front end's (default: everybody's)")
    parser.add_argument("--limit", type=count, metavar="N", help="stop after so many, from 1 (default: all)")
    target.configure(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask page by page, print row by row, 0."""
    with target.connect(arguments) as client:
        suspensions = islice(client.list(arguments.front_end), arguments.limit)
        lines = map(json_line, suspensions) if arguments.json else table_lines(suspensions)
        for line in lines:
            print(line)
    return 0


def json_line(info: pb.SuspensionInfo) -> str:
    """One suspension as a JSON object."""
    return json.dumps({"key": str(key_of(info.suspension.key)), **json_form(info)})


def table_lines(suspensions: Iterator[pb.SuspensionInfo]) -> Iterator[str]:
    """The suspensions as an operator reads them; printed while the next page is fetched."""
    columns = Columns(("KEY", "ROUTE", "PHASE", "DUE IN", "METHOD", "CALL-ID"), (36, 16, 10, 10, 8, 0))
    number = -1
    for number, info in enumerate(suspensions):
        if number == 0:  # not before the sidecar has answered
            yield columns.heading()
        yield columns.row(_cells(info, datetime.now(UTC)))
    if number < 0:
        yield "nothing is suspended"


def _cells(info: pb.SuspensionInfo, now: datetime) -> tuple[str, ...]:
    suspension = info.suspension
    due_seconds = (info.due_time.ToDatetime(UTC) - now).total_seconds()
    return (
        shown(str(key_of(suspension.key))),
        shown(suspension.resume_route),
        short_name(pb.SuspensionPhase.DESCRIPTOR, info.phase),
        duration_text(due_seconds) if due_seconds >= 0 else f"-{duration_text(-due_seconds)}",
        shown(suspension.state.method) or "-",
        shown(suspension.state.call_id) or "-",
    )
