"""``sipnap serve``: run the sidecar."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from sipnap.client.channel import DEFAULT_TARGET
from sipnap.client.settings import count, seconds
from sipnap.sidecar.core.suspension import Limits
from sipnap.sidecar.group_settings import FORM, GroupSettings, group_flag, with_default
from sipnap.sidecar.journal.base import Journal, JournalError
from sipnap.sidecar.journal.memory import MemoryJournal
from sipnap.sidecar.journal.redis_address import FORMS, RedisAddress
from sipnap.sidecar.journal.sqlite import SqliteJournal
from sipnap.sidecar.listener import Address, ListenError
from sipnap.sidecar.lookups import offers
from sipnap.sidecar.workers.remote import LEASE_SECONDS

log = logging.getLogger("sipnap.sidecar")

SUMMARY = "run the sidecar: timers, worker groups, journal"

EPILOG = """\
examples:
  sipnap serve                                          on 127.0.0.1:5600, for front ends of this machine
  sipnap serve --listen unix:/run/sipnap/sidecar.sock   on a Unix socket that only this user can open
  sipnap serve --metrics 127.0.0.1:9600                 with Prometheus metrics
  sipnap serve --group name=lookups,workers=32          with a second worker group
  sipnap serve --journal redis://127.0.0.1:6379/0       with naps that another sidecar can take over
  sipnap serve --listen 10.0.0.5:5600 --tls-cert server.pem --tls-key server.key --tls-ca clients.pem

signals: the first SIGTERM or SIGINT drains (nothing new is accepted, what is held is continued), the second ends at
once. SIGHUP reads the settings again: groups get the workers that these say, other changes need a restart.
exit codes: 0 after a drain, 1 when it cannot start, 2 for a bad setting.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    limits = Limits()
    parser.add_argument(
        "--listen", metavar="HOST:PORT|unix:PATH", type=_address, default=Address.parse(DEFAULT_TARGET),
        help=f"where to serve gRPC (default {DEFAULT_TARGET}; port 0: any free one)",
    )  # fmt: skip
    parser.add_argument(
        "--journal", metavar="memory|sqlite|sqlite:PATH|redis://…", type=_journal, default="sqlite",
        help="where acceptances are kept: sqlite (a file in the state directory), sqlite:PATH, memory (they end with "
        f"the process), or a Redis or Valkey that several sidecars share: {FORMS}; default sqlite",
    )  # fmt: skip
    parser.add_argument(
        "--journal-sync", choices=["full", "normal"], default="full",
        help="full: an acceptance survives the machine's death; normal: the process's only, for fewer syncs "
        "(default full)",
    )  # fmt: skip
    parser.add_argument(
        "--group", metavar="name=NAME,workers=N,…", action="append", type=group_flag, default=[],
        help=f"a worker group, {FORM}: how many operations it runs at once, in coroutines (async, the default), in "
        "processes, or in remote workers that connect by themselves; queue: how many may wait (default --max-queued); "
        "may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--workers", metavar="N", type=count, default=16,
        help="operations that run at once in the group 'default', unless a --group has that name (default 16); plain "
        "naps need none",
    )  # fmt: skip
    parser.add_argument(
        "--max-queued", metavar="N", type=count, default=10_000,
        help="operations that may wait for a worker of a group (default 10000)",
    )  # fmt: skip
    parser.add_argument(
        "--operations", metavar="MODULE", action="append", default=[],
        help="a Python module with a dictionary OPERATIONS of operations to offer; may be repeated",
    )  # fmt: skip
    offers.configure(parser)
    parser.add_argument(
        "--lease-seconds", metavar="SECONDS", type=seconds, default=LEASE_SECONDS,
        help="how long a job is left to a worker of another process that gives no sign of life (default 10)",
    )  # fmt: skip
    parser.add_argument(
        "--metrics", metavar="HOST:PORT", type=_address, default=None,
        help="where to serve Prometheus metrics over HTTP (default: nowhere)",
    )  # fmt: skip
    parser.add_argument(
        "--max-seconds", metavar="SECONDS", type=seconds, default=limits.max_delay_seconds,
        help="longest nap accepted (default 100)",
    )  # fmt: skip
    parser.add_argument(
        "--linger-seconds", metavar="SECONDS", type=seconds, default=limits.linger_seconds,
        help="how long a continue is kept for a front end that does not answer (default 60)",
    )  # fmt: skip
    parser.add_argument(
        "--max-pending", metavar="N", type=count, default=limits.max_pending,
        help="most suspensions held for one front end (default 1000000)",
    )  # fmt: skip
    parser.add_argument(
        "--max-entry-bytes", metavar="BYTES", type=count, default=limits.max_entry_bytes,
        help="largest suspension accepted, and result of an operation, encoded (default 65536)",
    )  # fmt: skip
    parser.add_argument(
        "--drain-seconds", metavar="SECONDS", type=seconds, default=60.0,
        help="how long a drain waits for what is held to end (default 60)",
    )  # fmt: skip
    parser.add_argument("--tls-cert", metavar="FILE", type=Path, help="certificate chain of this server (PEM)")
    parser.add_argument("--tls-key", metavar="FILE", type=Path, help="private key that belongs to it (PEM)")
    parser.add_argument(
        "--tls-ca", metavar="FILE", type=Path, help="demand client certificates issued by these (PEM): mutual TLS"
    )
    parser.add_argument(
        "--insecure", action="store_true", help="allow plain text on an address that other machines can reach"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run until a signal."""
    from sipnap.client.operations import load_operations
    from sipnap.sidecar.server import Settings, serve

    try:
        groups = with_default(arguments.group, arguments.workers)  # first: a slip in them is the one line that is told
        lookups, close_lookups = offers.operations_from(arguments)
        settings = Settings(
            listen=arguments.listen,
            journal=_open_journal(arguments.journal, sync_each_commit=arguments.journal_sync == "full"),
            limits=Limits(
                max_delay_seconds=arguments.max_seconds,
                linger_seconds=arguments.linger_seconds,
                max_pending=arguments.max_pending,
                max_entry_bytes=arguments.max_entry_bytes,
            ),
            groups=groups,
            max_queued=arguments.max_queued,
            operations=lookups | load_operations(arguments.operations),
            close_operations=close_lookups,
            operation_modules=arguments.operations,
            lease_seconds=arguments.lease_seconds,
            log_format=arguments.log_format,
            metrics=arguments.metrics,
            tls_certificate=arguments.tls_cert,
            tls_private_key=arguments.tls_key,
            tls_ca=arguments.tls_ca,
            insecure=arguments.insecure,
            drain_seconds=arguments.drain_seconds,
            reread_groups=lambda: _reread_groups(arguments),
        )
        asyncio.run(serve(settings, lambda address: print(f"sipnap serve: ready on {address}", flush=True)))
    except (JournalError, ListenError, ValueError) as error:
        print(f"sipnap serve: {error}", file=sys.stderr)
        return 1
    return 0


def _reread_groups(arguments: argparse.Namespace) -> tuple[GroupSettings, ...]:
    again = arguments.reread()
    groups = with_default(again.group, again.workers)
    for name, value in sorted(vars(again).items()):
        if name not in ("group", "workers") and value != getattr(arguments, name, value):
            log.warning("settings changed, needs a restart setting=%s", name)
    return groups


def _journal(text: str) -> str:
    if text.startswith("redis"):
        try:
            RedisAddress.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"the address of the Redis: {error}") from None
    elif text not in ("memory", "sqlite") and (not text.startswith("sqlite:") or text == "sqlite:"):
        raise argparse.ArgumentTypeError(f"{text!r} is not memory, sqlite, sqlite:PATH or redis://…")
    return text


def _open_journal(text: str, *, sync_each_commit: bool) -> Journal:
    if text == "memory":
        return MemoryJournal()
    if text.startswith("redis"):
        try:
            from sipnap.sidecar.journal.redis import RedisJournal
        except ImportError as error:
            raise JournalError(
                f"--journal redis… needs one package more: pip install 'sipnap[redis]' ({error})"
            ) from error
        return RedisJournal(RedisAddress.parse(text))
    path = text.removeprefix("sqlite").removeprefix(":")
    return SqliteJournal(
        Path(path) if path else _state_directory() / "journal.sqlite3", sync_each_commit=sync_each_commit
    )


def _state_directory() -> Path:
    """Where systemd says (``StateDirectory=``), or where the platform keeps a user's state."""
    import platformdirs

    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(given) if given else platformdirs.user_state_path("sipnap")


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
