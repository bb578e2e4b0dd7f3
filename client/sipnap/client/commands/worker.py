"""`sipnap worker`: run operations for a sidecar, in a process and on a machine of its own."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import logging
import os
import signal
import sys
from types import FrameType

from sipnap.client.commands import target
from sipnap.client.errors import NapError
from sipnap.client.keys import is_front_end_id
from sipnap.client.operations import load_operations
from sipnap.client.settings import SettingError, count
from sipnap.client.worker import MOST_CONCURRENCY, Worker, WorkerStuck

SUMMARY = "run operations for a sidecar, as a worker of one of its groups"
EPILOG = """\
examples:
  sipnap worker --group lookups --operations my_lookups                        for a sidecar on this machine
  sipnap worker --group lookups --operations my_lookups --sidecar 10.0.0.5:5600 --tls-ca ca.pem
  sipnap worker --group lookups --operations my_lookups --sidecar a:5600 --sidecar b:5600 --concurrency 64

The group has to be of kind remote: sipnap serve --group name=lookups,kind=remote. A module of operations has a
dictionary OPERATIONS of name to async function; docs/workers.md shows one.

signals: the first SIGTERM or SIGINT drains (nothing new is taken, what has begun is finished, the rest is given back),
the second ends at once.
exit codes: 0 after a drain, 1 when the sidecar cannot use this worker or an operation blocks for ever, 2 for a bad
setting.
"""

_PR_SET_PDEATHSIG = 1  # prctl(2)

log = logging.getLogger("sipnap.worker")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--group", metavar="NAME", required=True, help="the worker group, of kind remote")
    parser.add_argument(
        "--operations", metavar="MODULE", action="append", default=[],
        help="a Python module with a dictionary OPERATIONS of operations to run; may be repeated (default: those of "
        "installed packages alone)",
    )  # fmt: skip
    parser.add_argument(
        "--concurrency", metavar="N", type=_concurrency, default=16,
        help="how many operations to run at once (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--worker-id", metavar="NAME", type=_worker_id, default=None,
        help="its name in the sidecar's log (default: host name and process id)",
    )  # fmt: skip
    parser.add_argument(
        "--with-parent", metavar="PID", type=count, default=None,
        help="end at once when the process that started this one, PID, ends; the sidecar's own worker processes run so "
        "(default: go on)",
    )  # fmt: skip
    target.configure(parser, several=True)


def run(arguments: argparse.Namespace) -> int:
    """Work until a signal."""
    if arguments.with_parent is not None:
        _end_with(arguments.with_parent)
    try:
        operations = load_operations(arguments.operations)
    except ValueError as problem:
        raise SettingError(str(problem)) from None
    targets = target.targets_of(arguments)
    worker = Worker(
        targets,
        group=arguments.group,
        operations=operations,
        concurrency=arguments.concurrency,
        worker_id=arguments.worker_id,
        credentials=target.credentials_of(arguments),
        # Whoever starts workers as its children sees them join.
        on_connected=_Announcement(arguments.group, arguments.concurrency) if arguments.with_parent is None else None,
    )
    try:
        asyncio.run(_serve(worker))
    except WorkerStuck as stuck:
        log.error("%s; this process ends", stuck)
        _end_at_once(1)
    except NapError as problem:
        raise NapError(f"{problem}; is --sidecar right?") from None
    return 0


class _Announcement:
    """Says once that the worker is ready."""

    def __init__(self, group: str, concurrency: int) -> None:
        self._line: str | None = f"group {group}, {concurrency} at once"

    def __call__(self, connected_target: str) -> None:
        if self._line is not None:
            print(f"sipnap worker: ready on {connected_target}, {self._line}", flush=True)
            self._line = None


async def _serve(worker: Worker) -> None:
    loop = asyncio.get_running_loop()
    is_draining = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal is_draining
        if is_draining:
            _end_at_once(1)
        is_draining = True
        loop.call_soon_threadsafe(worker.drain)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    await worker.run()


def _end_at_once(exit_code: int) -> None:
    # Not sys.exit: a handler may block its thread for ever.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _end_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends (prctl(2): PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise NapError(f"--with-parent {parent_pid}: the parent is gone, or is another process")


def _concurrency(text: str) -> int:
    number = count(text)
    if number > MOST_CONCURRENCY:
        raise argparse.ArgumentTypeError(f"more than {MOST_CONCURRENCY}")
    return number


def _worker_id(text: str) -> str:
    if not is_front_end_id(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 to 128 of [A-Za-z0-9._:-]")
    return text
