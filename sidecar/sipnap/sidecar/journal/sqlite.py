"""The SQLite journal: one file, write-ahead log, one writer thread, one transaction for each batch.

The standard library's sqlite3 does it: the file format is documented and kept stable, and the commit is the fsync that
the promise needs. The file is locked for one sidecar.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from sipnap.sidecar.core.suspension import Held, NapKey
from sipnap.sidecar.journal.base import Durability, Entry, Journal, JournalError, wall_offset_ns
from sipnap.sidecar.journal.packing import pack, pack_fields, pack_whole, unpack_whole

SCHEMA_VERSION = 2
"""What this module writes (``PRAGMA user_version``); an older file is brought up to it, a newer one is refused."""

_APPLICATION_ID = 0x534E4150  # "SNAP": says what the file is to whoever finds it (`file`, SQLite's magic list)
_ENTRIES_PER_BATCH = 5000
_CREATE = (
    "CREATE TABLE nap (sequence INTEGER PRIMARY KEY, packed BLOB NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS probe (checked_ns INTEGER NOT NULL) STRICT",
    "INSERT INTO probe SELECT 0 WHERE NOT EXISTS (SELECT * FROM probe)",
)
_INSERT = "INSERT INTO nap VALUES (?, ?)"
# Many rows to a statement: the interpreter's lock is given up for each statement, and to get it back from a busy loop
# can take longer than all the rest. These sizes, so that few different statements have to be prepared.
_ROWS_PER_INSERT = (64, 16, 4, 1)
_DELETE = "DELETE FROM nap WHERE sequence IN (SELECT value FROM json_each(?))"
_PROBE = "UPDATE probe SET checked_ns = checked_ns + 1"
_SELECT = "SELECT sequence, packed FROM nap WHERE sequence > ? ORDER BY sequence LIMIT ?"

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

    async def recover(self) -> AsyncIterator[Sequence[Entry]]:
        """Open the file, and read what it keeps."""
        await self._run(self._open)
        reading = asyncio.create_task(self._run(lambda: self._read(0)))
        while batch := await reading:
            last_sequence = batch[-1][0]
            reading = asyncio.create_task(self._run(partial(self._read, last_sequence)))  # while this batch is restored
            yield [unpack_whole(packed) for _, packed in batch]

    async def commit(self, added: Sequence[Held], ended: Sequence[Held]) -> None:
        """Write one transaction and sync it."""
        offset_ns = wall_offset_ns()
        accepted_ns = time.monotonic_ns() + offset_ns
        rows = [
            (
                held.sequence,
                pack_whole(held.front_end.front_end_id, held.packed_key, pack(held, offset_ns, accepted_ns)),
            )
            for held in added
        ]
        sequences = [held.sequence for held in ended]
        await self._run(lambda: self._write(rows, sequences))

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
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if self.durability is Durability.DISK else 'NORMAL'}")
            connection.execute("PRAGMA wal_autocheckpoint = 4000")  # pages; fewer, larger folds of the log
            self._migrate(connection)
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
            for statement in _CREATE:
                connection.execute(statement)
            if version == 1:
                _convert_from_1(connection)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute("COMMIT")

    def _read(self, last_sequence: int) -> list[tuple[int, bytes]]:
        return self._opened().execute(_SELECT, (last_sequence, _ENTRIES_PER_BATCH)).fetchall()

    def _write(self, rows: list[tuple[int, bytes]], sequences: list[int]) -> None:
        connection = self._opened()
        try:
            connection.execute("BEGIN IMMEDIATE")
            if rows:
                _insert(connection, rows)
            if sequences:
                connection.execute(_DELETE, (str(sequences),))
            if not rows and not sequences:
                connection.execute(_PROBE)
            connection.execute("COMMIT")
        except sqlite3.Error:
            # After a failed write nobody knows what state the connection is in: roll back by closing it.
            self._close()
            raise

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


def _convert_from_1(connection: sqlite3.Connection) -> None:
    """Version 1 had a column for each field of an entry; its boot epochs were signed."""
    for sequence, front_end_id, *key, route, accepted, due, deadline, operation, group, payload in connection.execute(
        "SELECT * FROM suspension"
    ).fetchall():
        packed = pack_fields(sequence, route, accepted, due, deadline, operation, group, payload)
        nap_key = NapKey(key[0] % 2**64, *key[1:])
        connection.execute(_INSERT, (sequence, pack_whole(front_end_id, nap_key.pack(), packed)))
    connection.execute("DROP TABLE suspension")


def _insert(connection: sqlite3.Connection, rows: list[tuple[int, bytes]]) -> None:
    start = 0
    for size in _ROWS_PER_INSERT:
        while len(rows) - start >= size:
            values = itertools.chain.from_iterable(rows[start : start + size])
            connection.execute(_INSERT + ", (?, ?)" * (size - 1), tuple(values))
            start += size
