"""`sipnap workers set`: gives a worker group another number of workers."""

from __future__ import annotations

import argparse

from sipnap.client.commands import target
from sipnap.client.table import shown

SUMMARY = "give a worker group another number of workers while it runs"
EPILOG = """\
examples:
  sipnap workers set lookups 32

More workers start at once; of too many, each finishes what it has: nothing is dropped, nothing runs twice. It lasts
until the sidecar ends or reads its settings again (SIGHUP): put the number into the settings file, too.
exit code 1: no such group; or its workers are remote, which come and go by themselves.
"""

_MOST_WORKERS = 10_000  # the contract's bound


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("group", metavar="NAME", help="name of the group, as 'sipnap workers list' shows it")
    parser.add_argument("workers", metavar="N", type=_workers, help="how many workers it shall have, 1 to 10000")
    target.configure(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask for it, say what was and what is."""
    with target.connect(arguments) as client:
        answer = client.set_workers(arguments.group, arguments.workers)
    group = answer.group
    print(
        f"{shown(group.name)}: {group.workers} workers, before {answer.previous_workers}; "
        f"{group.busy} busy, {group.queued} queued"
    )
    return 0


def _workers(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _MOST_WORKERS):
        raise argparse.ArgumentTypeError(f"not a whole number from 1 to {_MOST_WORKERS}")
    return int(text)
