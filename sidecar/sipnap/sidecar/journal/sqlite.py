"""The SQLite journal: one file, write-ahead log, one writer thread, one transaction and one row for each commit.

The standard library's sqlite3 does it: the file format is documented and kept stable, and the commit is the fsync that
the promise needs. The file is locked for one sidecar.

A row has what a commit added, and the sequences of what it ended, in whatever row that was added. Rows are deleted from
the oldest on, once all in them has ended (`sipnap.sidecar.journal.batches`). A row for each nap would cost this thread
twice as much, and the event loop more waits for the interpreter's lock, which each statement gives up.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from sipnap.sidecar.core.suspension import Held
from sipnap.sidecar.journal import sqlite_rows as rows
from sipnap.sidecar.journal.base import Durability, Entry, Journal, JournalError, wall_offset_ns
from sipnap.sidecar.journal.batches import Batch, Batches
from sipnap.sidecar.journal.packing import pack_all, unpack_whole

SCHEMA_VERSION = rows.SCHEMA_VERSION
"""What this module writes (``PRAGMA user_version``); an older file is brought up to it, a newer one is refused."""

_APPLICATION_ID = 0x534E4150  # "SNAP": says what the file is to whoever finds it (`file`, SQLite's magic list)
_PAGE_BYTES = 16384  # of a new file: under load a commit is some 100 KB, and each page costs two writes
_LOG_BYTES = 16 * 1024 * 1024  # when the write-ahead log is folded into the file
_NAPS_PER_READ = 5000
_NUMBERS_PER_DELETE = 8
_MOST_REWRITTEN_PER_COMMIT = 4

_Result = TypeVar("_Result")


class SqliteJournal(Journal):
    """See `sipnap.sidecar.journal.base.Journal`."""

    kind = "sqlite"

    def __init__(self, path: Path, *, sync_each_commit: bool = True) -> None:
        """Prepare; the file is opened by `recover`.

        Args:
            path: The file; made, with its directory, if it is not there.
            sync_each_commit: True: a commit is on stable storage before it returns (``synchronous=FULL``). False: it
                is with the operating system, and survives the process but not the machine (``NORMAL``).
        """
        self.path = path
        self.durability = Durability.DISK if sync_each_commit else Durability.PROCESS
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sipnap journal")
        # Of the open file, for the thread:
        self._batches = Batches()
        self._first_number = 1  # none in the file is lower
        self._next_number = 1
        self._doubtful: list[int] = []  # what a failed commit added, if it did

    async def recover(self) -> AsyncIterator[Sequence[Entry]]:
        """Open the file, and read what it keeps."""
        await self._run(self._open)
        groups = _groups(list(self._batches))
        reading = asyncio.create_task(self._run(partial(self._read, next(groups))))
        while packed := await reading:
            reading = asyncio.create_task(self._run(partial(self._read, next(groups, ()))))  # while these are restored
            yield [unpack_whole(one) for one in packed]

    async def commit(self, added: Sequence[Held], ended: Sequence[Held]) -> None:
        """Write one transaction and sync it."""
        offset_ns = wall_offset_ns()
        accepted_ns = time.monotonic_ns() + offset_ns
        naps = rows.Naps([held.sequence for held in added], *pack_all(added, offset_ns, accepted_ns))
        sequences = [held.sequence for held in ended]
        await self._run(lambda: self._write(naps, sequences))

    async def close(self) -> None:
        """Close the file; the write-ahead log is folded into it."""
        with suppress(JournalError):
            await self._run(self._close)
        self._thread.shutdown()

    async def _run(self, function: Callable[[], _Result]) -> _Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function)
        except (sqlite3.Error, OSError) as error:
            raise JournalError(self._explain(error)) from error

    # In the thread

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.path.exists():
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))  # it holds who calls whom
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=1.0)
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")  # of no effect once there are pages
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if self.durability is Durability.DISK else 'NORMAL'}")
            (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
            connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_BYTES // page_bytes}")
            self._migrate(connection)
            self._load(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")  # takes the lock that keeps a second sidecar out
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if application not in (0, _APPLICATION_ID) or (version == 0 and _has_tables(connection)):
            raise JournalError(f"journal {self.path}: is a database of another program; give another path")
        if version > SCHEMA_VERSION:
            raise JournalError(
                f"journal {self.path}: was written by a newer sipnap (schema {version}, this one knows up to "
                f"{SCHEMA_VERSION}); run that version, or give another path"
            )
        if version < SCHEMA_VERSION:
            rows.create(connection, version)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute("COMMIT")

    def _load(self, connection: sqlite3.Connection) -> None:
        self._batches = Batches()
        self._first_number = self._next_number = 1
        for summary in rows.summaries(connection):
            self._next_number = max(self._next_number, summary.number + 1)
            self._first_number = summary.number
            self._batches.load(*summary)
        self._batches.end(())

    def _read(self, group: Sequence[Batch]) -> list[bytes]:
        connection = self._opened()
        naps = [rows.read(connection, batch.number, set(batch.sequences)) for batch in group]
        return [packed for some in naps for packed in some.each()]

    def _write(self, naps: rows.Naps, ended: list[int]) -> None:
        connection = self._opened()
        try:
            ended += self._doubtful
            if naps.sequences or ended:
                self._append(connection, naps, ended)
            else:
                rows.probe(connection)
            self._doubtful = []
        except BaseException:
            # After a failed write nobody knows what the file has got of it: it is read again.
            self._close()
            self._doubtful += naps.sequences
            raise

    def _append(self, connection: sqlite3.Connection, naps: rows.Naps, ended: list[int]) -> None:
        batches = self._batches
        batches.end(ended)
        rewritten: list[rows.Naps] = []
        while len(rewritten) < _MOST_REWRITTEN_PER_COMMIT and (oldest := batches.take_oldest()) is not None:
            rewritten.append(rows.read(connection, *oldest))
        parts = [part for some in (rows.Naps.joined(rewritten), naps) for part in some.parts()]
        first_kept = batches.oldest_number or self._next_number
        deletes = bool(rewritten) or first_kept - self._first_number >= _NUMBERS_PER_DELETE
        is_one_statement = len(parts) <= 1 and not deletes
        if not is_one_statement:
            connection.execute("BEGIN IMMEDIATE")
        for part in parts[:-1]:
            self._add(connection, part, ())
        self._add(connection, parts[-1] if parts else rows.NO_NAPS, ended)
        if deletes:
            rows.delete(connection, first_kept)
            self._first_number = first_kept
        if not is_one_statement:
            connection.execute("COMMIT")

    def _add(self, connection: sqlite3.Connection, naps: rows.Naps, ended: Sequence[int]) -> None:
        number = self._next_number
        self._next_number += 1
        rows.insert(connection, number, naps, ended)
        if naps.sequences:
            self._batches.add(number, naps.sequences, len(naps.packed))

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._open()
        assert self._connection is not None
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            connection.close()

    def _explain(self, error: sqlite3.Error | OSError) -> str:
        name = getattr(error, "sqlite_errorname", "") or getattr(error, "strerror", "") or type(error).__name__
        hint = next((text for prefix, text in _HINTS.items() if name.startswith(prefix)), "")
        return f"journal {self.path}: {error} ({name}){hint}"


_HINTS = {
    "SQLITE_BUSY": ": another sidecar uses this file; give each its own --journal sqlite:PATH",
    "SQLITE_FULL": ": the disk is full; free some space",
    "SQLITE_READONLY": ": the file or its directory is read-only for this user",
    "SQLITE_CORRUPT": ": the file is damaged; move it away (what it held is lost) or restore it",
    "SQLITE_NOTADB": ": the file is damaged or no journal; move it away or give another path",
    "SQLITE_CANTOPEN": ": check that the directory exists and this user may write there",
}


def _has_tables(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None


def _groups(batches: Sequence[Batch]) -> Iterator[Sequence[Batch]]:
    """As many at a time as are to be restored at once; the last group may be empty."""
    group: list[Batch] = []
    naps = 0
    for batch in batches:
        group.append(batch)
        naps += len(batch.sequences)
        if naps >= _NAPS_PER_READ:
            yield group
            group, naps = [], 0
    yield group
