"""`sipnap cancel`: ends one suspension before its time."""

from __future__ import annotations

import argparse

from sipnap.client.commands import target
from sipnap.client.keys import SuspensionKey
from sipnap.client.table import shown
from sipnap.v1 import suspension_pb2 as pb

SUMMARY = "cancel one suspension before its time; its transaction stays with its front end"
EPILOG = """\
examples:
  sipnap cancel kamailio/1764000000/4711/815/1      a key as `sipnap list` shows it

exit code 0: cancelled, or it had ended before.
exit code 1: too late, its continue is on the way; or the sidecar cannot be reached.
A cancelled suspension is never continued: the transaction ends through the front end's own timer (Kamailio: the
backstop's failure route), or with the caller's CANCEL.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("key", type=_key, metavar="KEY", help="front_end_id/boot_epoch/index/label/nap_number")
    target.configure(parser)


def run(arguments: argparse.Namespace) -> int:
    """Cancel, say what became of it."""
    with target.connect(arguments) as client:
        outcome = client.cancel(arguments.key)
    key = shown(str(arguments.key))
    match outcome:
        case pb.CANCEL_OUTCOME_CANCELLED:
            print(f"{key}: cancelled")
        case pb.CANCEL_OUTCOME_GONE:
            print(f"{key}: gone; it ended before, or never was")
        case _:
            print(f"{key}: too late; its continue is on the way to the front end")
            return 1
    return 0


def _key(text: str) -> SuspensionKey:
    try:
        return SuspensionKey.parse(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None
