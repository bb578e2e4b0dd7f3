"""The tables of the SQLite journal: what is in a row, and how older files become new ones."""

from __future__ import annotations

import itertools
import sqlite3
import sys
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from sipnap.sidecar.core.suspension import NapKey
from sipnap.sidecar.journal.base import JournalError
from sipnap.sidecar.journal.packing import pack_fields, pack_whole

SCHEMA_VERSION = 3
"""Of these tables."""

_NAPS_PER_ROW = 4096  # with the largest naps far from the 1 GB that a row may have
# `ended`, `sequences`: eight bytes for each nap; `sizes`: four for each of `sequences`; `naps`: so many bytes of each.
_CREATE = (
    """CREATE TABLE batch (number INTEGER PRIMARY KEY, ended BLOB NOT NULL,
        sequences BLOB NOT NULL, sizes BLOB NOT NULL, naps BLOB NOT NULL) STRICT""",
    "CREATE TABLE IF NOT EXISTS probe (checked_ns INTEGER NOT NULL) STRICT",
    "INSERT INTO probe SELECT 0 WHERE NOT EXISTS (SELECT * FROM probe)",
)
_INSERT = "INSERT INTO batch VALUES (?, ?, ?, ?, ?)"
_DELETE = "DELETE FROM batch WHERE number < ?"
_PROBE = "UPDATE probe SET checked_ns = checked_ns + 1"
_SUMMARIES = "SELECT number, ended, sequences, length(naps) FROM batch ORDER BY number DESC"
_SELECT = "SELECT sequences, sizes, naps FROM batch WHERE number = ?"


class Naps(NamedTuple):
    """Naps as a row has them."""

    sequences: Sequence[int]
    """One for each."""
    sizes: Sequence[int]
    """How many bytes of `packed` each has."""
    packed: bytes
    """From `pack_whole`, one after the other."""

    def each(self) -> list[bytes]:
        """`packed`, taken apart."""
        ends = list(itertools.accumulate(self.sizes, initial=0))
        return [self.packed[start:end] for start, end in itertools.pairwise(ends)]

    def parts(self) -> Iterator[Naps]:
        """The same in rows of bounded size; none: no rows."""
        start_byte = 0
        for start in range(0, len(self.sequences), _NAPS_PER_ROW):
            sizes = self.sizes[start : start + _NAPS_PER_ROW]
            end_byte = start_byte + sum(sizes)
            yield Naps(self.sequences[start : start + _NAPS_PER_ROW], sizes, self.packed[start_byte:end_byte])
            start_byte = end_byte

    @staticmethod
    def joined(several: Sequence[Naps]) -> Naps:
        """All of them."""
        return Naps(
            [sequence for naps in several for sequence in naps.sequences],
            [size for naps in several for size in naps.sizes],
            b"".join([naps.packed for naps in several]),
        )


NO_NAPS = Naps((), (), b"")


class Summary(NamedTuple):
    """A row without its naps."""

    number: int
    """Its number."""
    sequences: Sequence[int]
    """Of its naps."""
    bytes: int
    """Size of its naps."""
    ended: AbstractSet[int]
    """What this row and newer ones say has ended."""


def create(connection: sqlite3.Connection, version: int) -> None:
    """The tables, in a new file (version 0), or with what an older one keeps."""
    for statement in _CREATE:
        connection.execute(statement)
    if version == 1:
        _convert(connection, "suspension", _from_1)
    elif version == 2:
        _convert(connection, "nap", tuple)


def insert(connection: sqlite3.Connection, number: int, naps: Naps, ended: Collection[int]) -> None:
    """Write a row."""
    sequences, sizes = array("Q", naps.sequences), array("I", naps.sizes)
    row = (number, _bytes_of(array("Q", ended)), _bytes_of(sequences), _bytes_of(sizes), naps.packed)
    connection.execute(_INSERT, row)


def read(connection: sqlite3.Connection, number: int, living: Collection[int]) -> Naps:
    """Of a row, the naps that are named.

    Raises:
        JournalError: The row is damaged.
    """
    sequences, sizes, packed = connection.execute(_SELECT, (number,)).fetchone()
    naps = Naps(_numbers("Q", sequences), _numbers("I", sizes), packed)
    if len(naps.sizes) != len(naps.sequences) or sum(naps.sizes) != len(packed):
        raise JournalError(f"batch {number} is damaged: its parts do not fit")
    chosen = [nap for nap in zip(naps.sequences, naps.sizes, naps.each(), strict=True) if nap[0] in living]
    return Naps([nap[0] for nap in chosen], [nap[1] for nap in chosen], b"".join([nap[2] for nap in chosen]))


def delete(connection: sqlite3.Connection, first_kept: int) -> None:
    """Take out all rows of lower numbers."""
    connection.execute(_DELETE, (first_kept,))


def probe(connection: sqlite3.Connection) -> None:
    """Write what changes nothing."""
    connection.execute(_PROBE)


def summaries(connection: sqlite3.Connection) -> Iterator[Summary]:
    """Of all rows, the newest first."""
    said: set[int] = set()
    for number, ended, sequences, size in connection.execute(_SUMMARIES):
        said.update(_numbers("Q", ended))
        yield Summary(number, _numbers("Q", sequences), size, said)


def _convert(connection: sqlite3.Connection, table: str, to_2: Callable[[Any], tuple[int, bytes]]) -> None:
    """Up to version 2 there was a row for each nap."""
    old = connection.execute(f"SELECT * FROM {table} ORDER BY sequence")
    for number in itertools.count(1):
        chunk = [to_2(row) for row in old.fetchmany(_NAPS_PER_ROW)]
        if not chunk:
            break
        sequences, packed = zip(*chunk, strict=True)
        insert(connection, number, Naps(sequences, list(map(len, packed)), b"".join(packed)), ())
    connection.execute(f"DROP TABLE {table}")


def _from_1(row: Any) -> tuple[int, bytes]:
    """Version 1 had a column for each field of an entry; its boot epochs were signed."""
    sequence, front_end_id, epoch, index, label, nap_number, *fields = row
    packed_key = NapKey(epoch % 2**64, index, label, nap_number).pack()
    return sequence, pack_whole(front_end_id, packed_key, pack_fields(sequence, *fields))


def _bytes_of(numbers: array[int]) -> bytes:
    """Little endian on every machine: the file may be moved."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _numbers(typecode: str, packed: bytes) -> array[int]:
    numbers: array[int] = array(typecode)
    try:
        numbers.frombytes(packed)
    except ValueError as error:
        raise JournalError(f"a batch is damaged: {error}") from error
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
