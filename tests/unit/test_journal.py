"""One suite that every journal passes, and what only the SQLite one can suffer. Redis's own: `test_redis_journal`."""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sipnap.sidecar.core.engine import Engine
from sipnap.sidecar.core.suspension import Held, Limits, NapKey, Request, Work
from sipnap.sidecar.journal import batches, sqlite_rows
from sipnap.sidecar.journal.base import Durability, Entry, Journal, JournalError
from sipnap.sidecar.journal.memory import MemoryJournal
from sipnap.sidecar.journal.packing import pack_fields, pack_whole
from sipnap.sidecar.journal.redis import RedisJournal
from sipnap.sidecar.journal.redis_address import RedisAddress
from sipnap.sidecar.journal.sqlite import SCHEMA_VERSION, SqliteJournal
from sipnap.sidecar.recovery import claim, recover

SEED = random.randrange(2**32)
BIGGEST = NapKey(2**64 - 1, 2**32 - 1, 2**32 - 1, 2**32 - 1)


class Source:
    """Makes held suspensions."""

    def __init__(self) -> None:
        self.engine = Engine(time.monotonic, Limits(max_delay_seconds=1e6))
        self.front_end = self.engine.attach("kamailio", 7)
        self.number = 0

    def held(self, key: NapKey | None = None, payload: bytes = b"\0\xffpayload", delay_seconds: float = 50.0) -> Held:
        self.number += 1
        packed_key = (key or NapKey(7, self.number, 1, 1)).pack()
        due_seconds = time.monotonic() + delay_seconds
        return Held(self.front_end, packed_key, "RESUME", payload, self.number, due_seconds, 0.0)


@pytest.fixture
def source() -> Source:
    return Source()


async def kept(journal: Journal, source: Source | None = None) -> list[Entry]:
    """Open it, and read everything; from a shared one, what is the source's front end's."""
    entries = [entry async for batch in journal.recover() for entry in batch]
    if source is not None:
        entries += [entry async for batch in journal.claim(source.front_end) for entry in batch]
    return entries


def sqlite_at(path: Path) -> Callable[[], SqliteJournal]:
    return lambda: SqliteJournal(path / "state" / "journal.sqlite3")


@pytest.fixture(params=["memory", "sqlite", "redis"])
def open_journal(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Journal]:
    """Opens the same journal anew, as the next process would."""
    if request.param == "redis":
        address = RedisAddress.parse(request.getfixturevalue("redis").url)
        return lambda: RedisJournal(address)
    kinds: dict[str, Callable[[], Journal]] = {"memory": MemoryJournal, "sqlite": sqlite_at(tmp_path)}
    return kinds[request.param]


async def test_a_journal_begins_empty_and_takes_batches(open_journal: Callable[[], Journal], source: Source) -> None:
    journal = open_journal()
    assert await kept(journal, source) == []
    batch = [source.held() for _ in range(100)]
    await journal.commit(batch, [])
    await journal.commit([], batch[:50])
    await journal.commit([source.held()], batch[50:60])
    await journal.commit([], [])
    await journal.close()


async def test_what_was_committed_is_recovered_to_the_byte(open_journal: Callable[[], Journal], source: Source) -> None:
    journal = open_journal()
    await kept(journal, source)
    first, second, ended = source.held(BIGGEST), source.held(payload=b""), source.held()
    second.work = Work(["enum"], "lookups")
    before = time.time()
    await journal.commit([first, second, ended], [])
    await journal.commit([], [ended])
    await journal.close()
    again = open_journal()
    entries = await kept(again, source)
    offset_ns = again.offset_ns()
    await again.close()
    if journal.durability is Durability.MEMORY:
        assert entries == []
        return
    assert [entry.sequence for entry in entries] == [1, 2]
    one, two = entries
    assert (one.front_end_id, NapKey(*one[2:6]), one.route, one.payload) == (
        "kamailio", BIGGEST, "RESUME", b"\0\xffpayload",
    )  # fmt: skip
    assert (one.operation, one.group, two.operation, two.group) == ("", "", "enum", "lookups")
    assert before - 1 < one.accepted_ns / 1e9 < time.time() + 0.1
    assert one.due_ns - one.accepted_ns == pytest.approx(50e9, abs=1e9), "accepted when it is committed"
    slewed_seconds = 0.001  # the wall clock may be, meanwhile
    assert first.due_seconds - slewed_seconds <= (one.due_ns - offset_ns) / 1e9 < first.due_seconds + 0.1, "never early"


async def test_a_key_may_end_and_come_again(open_journal: Callable[[], Journal], source: Source) -> None:
    journal = open_journal()
    await kept(journal, source)
    key = NapKey(7, 1, 1, 1)
    first, second, both = source.held(key, b"first"), source.held(key, b"second"), source.held()
    await journal.commit([first], [])
    await journal.commit([second, both], [first, both])
    await journal.close()
    again = open_journal()
    payloads = [entry.payload for entry in await kept(again, source)]
    await again.close()
    assert payloads == ([] if journal.durability is Durability.MEMORY else [b"second"])


async def test_large_batches_are_kept_whole_and_in_order(open_journal: Callable[[], Journal], source: Source) -> None:
    journal = open_journal()
    await kept(journal, source)
    batch = [source.held(payload=b"x" * (number % 3000)) for number in range(12_000)]
    await journal.commit(batch, [])
    await journal.commit([], batch[::3])
    await journal.close()
    again = open_journal()
    entries = await kept(again, source)
    await again.close()
    if journal.durability is Durability.MEMORY:
        return
    expected = [held for number, held in enumerate(batch) if number % 3]
    assert [(e.sequence, len(e.payload)) for e in entries] == [(h.sequence, len(h.payload)) for h in expected]


async def test_recovery_puts_everything_back_in_its_place(open_journal: Callable[[], Journal], source: Source) -> None:
    journal = open_journal()
    if journal.durability is Durability.MEMORY:
        return
    await kept(journal, source)
    batch = [source.held(delay_seconds=0.1 * (200 - number)) for number in range(100)]
    batch += [source.held(NapKey(6, 1, 1, 1)), source.held(delay_seconds=5000)]
    await journal.commit(batch, [])
    await journal.close()

    later = 0.0
    engine = Engine(lambda: time.monotonic() + later, Limits())
    again = open_journal()
    restored = await recover(engine, again)
    if again.shared:
        restored += await claim(engine, again, engine.adopt("kamailio"))
    assert restored == 102
    front_end = engine.attach("kamailio", 7)
    assert len(front_end.held) == 101, "the one of an earlier epoch is gone"
    later = 60.0
    due = engine.pop_due(1000).continues
    assert [held.key.transaction_index for held in due] == [held.key.transaction_index for held in batch[99::-1]]
    new, _ = engine.reserve(front_end, Request(NapKey(7, 9, 9, 1), "R", 1.0, None, b""))
    assert new.sequence > 102, "sequences go on"
    await again.commit([new], due)
    await again.close()


# SQLite


async def test_a_second_sidecar_is_kept_out(tmp_path: Path, source: Source) -> None:
    first, second = sqlite_at(tmp_path)(), sqlite_at(tmp_path)()
    await kept(first)
    with pytest.raises(JournalError, match="another sidecar uses this file"):
        await kept(second)
    await second.close()
    await first.commit([source.held()], [])
    await first.close()


async def test_a_newer_journal_is_refused_and_not_touched(tmp_path: Path) -> None:
    journal = sqlite_at(tmp_path)()
    await kept(journal)
    await journal.close()
    with sqlite3.connect(journal.path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    again = sqlite_at(tmp_path)()
    with pytest.raises(JournalError, match="written by a newer sipnap"):
        await kept(again)
    await again.close()


async def test_a_journal_of_version_1_is_converted(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    connection = sqlite3.connect(path)
    connection.executescript(
        """
        CREATE TABLE suspension (
            sequence INTEGER PRIMARY KEY, front_end_id TEXT, boot_epoch INTEGER, transaction_index INTEGER,
            transaction_label INTEGER, nap_number INTEGER, route TEXT, accepted_ns INTEGER, due_ns INTEGER,
            deadline_ns INTEGER, operation TEXT, worker_group TEXT, payload BLOB
        ) STRICT;
        CREATE TABLE probe (checked_ns INTEGER NOT NULL) STRICT;
        INSERT INTO probe VALUES (0);
        INSERT INTO suspension VALUES (5, 'kamailio', -1, 2, 3, 4, 'R', 10, 20, 30, 'http', 'lookups', x'00ff');
        PRAGMA user_version = 1;
        PRAGMA application_id = 0x534E4150;
        """
    )
    connection.close()
    journal = SqliteJournal(path)
    assert await kept(journal) == [
        Entry(5, "kamailio", 2**64 - 1, 2, 3, 4, "R", 10, 20, 30, "http", "lookups", b"\0\xff")
    ]
    await journal.close()
    again = SqliteJournal(path)
    assert len(await kept(again)) == 1
    await again.close()


async def test_a_journal_of_version_2_is_converted(tmp_path: Path, source: Source) -> None:
    path = tmp_path / "journal.sqlite3"
    connection = sqlite3.connect(path)
    connection.executescript(
        """
        CREATE TABLE nap (sequence INTEGER PRIMARY KEY, packed BLOB NOT NULL) STRICT;
        CREATE TABLE probe (checked_ns INTEGER NOT NULL) STRICT;
        INSERT INTO probe VALUES (0);
        PRAGMA user_version = 2;
        PRAGMA application_id = 0x534E4150;
        """
    )
    entries = [Entry(7 * n, "kamailio", *BIGGEST, "R", n, n + 1, n + 2, "", "", b"x" * (n % 900)) for n in range(9000)]
    with connection:
        connection.executemany(
            "INSERT INTO nap VALUES (?, ?)",
            [
                (entry.sequence, pack_whole("kamailio", BIGGEST.pack(), pack_fields(entry.sequence, *entry[6:])))
                for entry in entries
            ],
        )
    connection.close()
    journal = SqliteJournal(path)
    assert await kept(journal) == entries
    source.number = 100_000
    new = source.held()
    ended = [source.held() for _ in range(2)]
    ended[0].sequence, ended[1].sequence = entries[0].sequence, entries[8000].sequence
    await journal.commit([new], ended)
    await journal.close()
    again = SqliteJournal(path)
    left = [entry.sequence for entry in await kept(again)]
    await again.close()
    assert left == [*(entry.sequence for entry in [*entries[1:8000], *entries[8001:]]), new.sequence]


@pytest.mark.parametrize("small_bytes", [0, 1000, batches._SMALL_BYTES])
async def test_what_has_ended_in_any_order_stays_so_over_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_bytes: int
) -> None:
    """With every restart the sequences go on after the highest that is alive, as the engine's do: some come twice."""
    monkeypatch.setattr(batches, "_SMALL_BYTES", small_bytes)
    dice = random.Random(SEED)
    source, held = Source(), dict[int, Held]()
    for turn in range(12):
        journal = sqlite_at(tmp_path)()
        assert len(await kept(journal)) == len(held), f"seed {SEED}, turn {turn}"
        source.number = max(held, default=0)
        for _ in range(30):
            new = [source.held(payload=dice.randbytes(8)) for _ in range(dice.randrange(6))]
            held.update((one.sequence, one) for one in new)
            ended = [one for one in held.values() if dice.random() < 0.2 and one.sequence % 20]
            for one in ended:
                del held[one.sequence]
            await journal.commit(new, ended)
        expected = [(sequence, one.payload) for sequence, one in sorted(held.items())]
        copy = tmp_path / str(turn) / "state"  # what a kill would leave
        shutil.copytree(journal.path.parent, copy)
        await journal.close()
        again = sqlite_at(copy.parent)()
        recovered = sorted((entry.sequence, entry.payload) for entry in await kept(again))
        await again.close()
        assert recovered == expected, f"seed {SEED}, turn {turn}"


def test_nothing_is_remembered_of_batches_that_are_over() -> None:
    book = batches.Batches()
    book.add(1, [1, 2], 10)
    book.add(2, [3], 10)
    book.end([1, 3])
    assert (book.oldest_number, [book.living(batch) for batch in book]) == (1, [{2}, set()])
    book.end([2])
    assert (book.oldest_number, list(book), book._ended) == (None, [], set())


async def test_a_long_nap_among_short_ones_does_not_keep_the_file_growing(tmp_path: Path, source: Source) -> None:
    journal = sqlite_at(tmp_path)()
    await kept(journal)
    long_ones = []
    for _ in range(200):
        batch = [source.held(payload=b"x" * 8000) for _ in range(50)]
        long_ones.append(batch[17])
        await journal.commit(batch, [])
        await journal.commit([], [held for held in batch if held is not batch[17]])
    size = journal.path.stat().st_size
    assert size < 40e6, f"{size / 1e6:.0f} MB for {len(long_ones)} naps of 8 kB after 80 MB"
    await journal.close()
    again = sqlite_at(tmp_path)()
    assert sorted(entry.sequence for entry in await kept(again)) == [held.sequence for held in long_ones]
    await again.commit([], long_ones)
    await again.close()
    once_more = sqlite_at(tmp_path)()
    assert await kept(once_more) == []
    await once_more.close()


async def test_a_commit_that_failed_is_taken_out_if_the_file_has_it(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = sqlite_at(tmp_path)()
    await kept(journal)
    before, doubtful, after = source.held(), source.held(), source.held()
    await journal.commit([before], [])
    with monkeypatch.context() as patch:

        def insert(*arguments: Any) -> None:
            written(*arguments)
            raise sqlite3.OperationalError("disk I/O error")

        written = sqlite_rows.insert
        patch.setattr(sqlite_rows, "insert", insert)
        with pytest.raises(JournalError, match="disk I/O error"):
            await journal.commit([doubtful], [])
    await journal.commit([], [])
    await journal.commit([after], [])
    await journal.close()
    again = sqlite_at(tmp_path)()
    assert [entry.sequence for entry in await kept(again)] == [before.sequence, after.sequence]
    await again.close()


@pytest.mark.parametrize("column", ["ended", "sequences", "sizes", "naps"])
async def test_a_damaged_row_is_told_so(tmp_path: Path, source: Source, column: str) -> None:
    journal = sqlite_at(tmp_path)()
    await kept(journal)
    await journal.commit([source.held(), source.held()], [])
    await journal.close()
    with sqlite3.connect(journal.path) as connection:
        connection.execute(f"UPDATE batch SET {column} = x'616263'")
    connection.close()
    again = sqlite_at(tmp_path)()
    with pytest.raises(JournalError, match="damaged"):
        await kept(again)
    await again.close()


async def test_somebody_elses_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "address-book"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE people (name)")
    connection.close()
    journal = SqliteJournal(path)
    with pytest.raises(JournalError, match="database of another program"):
        await kept(journal)
    await journal.close()


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to look like a file" * 100])
async def test_a_damaged_file_is_told_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.sqlite3"
    path.write_bytes(content)
    journal = SqliteJournal(path)
    with pytest.raises(JournalError, match="damaged"):
        await kept(journal)
    await journal.close()
    assert path.read_bytes() == content


async def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    journal = sqlite_at(tmp_path)()
    await kept(journal)
    assert journal.path.stat().st_mode & 0o777 == 0o600
    assert journal.path.parent.stat().st_mode & 0o777 == 0o700
    await journal.close()


async def test_a_log_cut_at_any_byte_reopens_with_every_commit_before_the_cut(tmp_path: Path, source: Source) -> None:
    """What a crash of the machine leaves: the log up to some byte."""
    journal = sqlite_at(tmp_path)()
    await kept(journal)
    wal = journal.path.with_name(journal.path.name + "-wal")
    kept_at: list[tuple[int, int]] = []  # size of the log, suspensions committed
    for count in range(1, 9):
        await journal.commit([source.held(payload=b"x" * 700)], [])
        kept_at.append((wal.stat().st_size, count))
    main, log = journal.path.read_bytes(), wal.read_bytes()
    await journal.close()
    first_size = kept_at[0][0]
    for cut in range(first_size, len(log) + 1, 307):
        copy = tmp_path / f"cut-{cut}" / "journal.sqlite3"
        copy.parent.mkdir()
        copy.write_bytes(main)
        copy.with_name("journal.sqlite3-wal").write_bytes(log[:cut])
        again = SqliteJournal(copy)
        entries = await kept(again)
        await again.close()
        promised = max(count for size, count in kept_at if size <= cut)
        assert len(entries) >= promised, f"cut at {cut}"
