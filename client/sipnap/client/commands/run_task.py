"""`sipnap run-task`: has a front end run a route without a transaction."""

from __future__ import annotations

import argparse

from sipnap.client.commands import target
from sipnap.client.settings import seconds

SUMMARY = "have a front end run one of its routes, without a SIP transaction"
EPILOG = """\
examples:
  sipnap run-task --front-end kamailio RELOAD_PEERS
  sipnap run-task --front-end kamailio CALL_ENDED --data sip:alice@example.org --seconds 30

It prints the task's key, as `sipnap list` shows it and `sipnap cancel` takes it, once the sidecar has accepted it: the
route runs at least once, unless the front end is restarted first.
The data is in $avp(sipnap_data) of a Kamailio script, in task.data of the Python front end.
exit code 0: accepted.
exit code 1: refused (the message says why), or the sidecar cannot be reached.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("route", metavar="ROUTE", help="route to run: 1 to 64 of [A-Za-z0-9_.:-]")
    parser.add_argument("--front-end", required=True, metavar="NAME", help="the front end that runs it")
    parser.add_argument("--data", default="", metavar="TEXT", help="what the route is given (default: nothing)")
    parser.add_argument(
        "--seconds", type=seconds, metavar="SECONDS", help="not before that much has passed (default: at once)"
    )
    target.configure(parser)


def run(arguments: argparse.Namespace) -> int:
    """Have it accepted, print its key, 0."""
    data = arguments.data.encode("utf-8", "surrogateescape")  # as the shell gave it
    with target.connect(arguments) as client:
        key = client.run_task(arguments.front_end, arguments.route, data, arguments.seconds or 0.0)
    print(key)
    return 0
