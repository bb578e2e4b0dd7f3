"""What only the Redis journal can suffer: other owners, a Redis that refuses, forgets, or answers late."""

from __future__ import annotations

import dataclasses
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from sipnap.sidecar.core.suspension import Held, NapKey, Phase
from sipnap.sidecar.journal import redis_mailbox
from sipnap.sidecar.journal.base import Entry, Fenced, JournalError
from sipnap.sidecar.journal.packing import (
    PACKING_VERSION,
    pack_fields,
    pack_whole,
    unpack,
    unpack_whole,
)
from sipnap.sidecar.journal.redis import SCHEMA_VERSION, RedisJournal
from sipnap.sidecar.journal.redis_address import RedisAddress
from sipnap.sidecar.journal.redis_clock import RedisClock
from tests.support.processes import free_port
from tests.support.redis_server import RedisServer
from tests.unit.test_journal import BIGGEST, Source, kept

OWNER, NAPS = "sipnap:{kamailio}:owner", "sipnap:{kamailio}:naps"


@pytest.fixture
def source() -> Source:
    return Source()


@asynccontextmanager
async def opened(redis: RedisServer, source: Source | None = None) -> AsyncIterator[RedisJournal]:
    """A journal; it owns the source's front end."""
    journal = RedisJournal(RedisAddress.parse(redis.url))
    journal.introduce(f"instance-{id(journal)}", f"sidecar-{id(journal)}:5600")
    try:
        await kept(journal, source)
        yield journal
    finally:
        await journal.close()


def naps_in(redis: RedisServer) -> int:
    return int(redis.command("HLEN", NAPS).strip(b":\r\n"))


@contextmanager
def setting(redis: RedisServer, name: str, value: str, normal: str) -> Iterator[None]:
    redis.command("CONFIG", "SET", name, value)
    try:
        yield
    finally:
        redis.command("CONFIG", "SET", name, normal)


def accepted(source: Source, held: Held) -> Held:
    """As the engine has it once its commit has succeeded."""
    held.phase = Phase.PENDING
    source.front_end.held[held.packed_key] = held
    return held


# Owners


async def test_a_claim_fences_whoever_had_it(redis: RedisServer) -> None:
    first, second = Source(), Source()
    async with opened(redis, first) as mine, opened(redis) as other:
        kept_here = first.held()
        await mine.commit([kept_here], [])
        entries = [entry async for batch in other.claim(second.front_end) for entry in batch]
        assert [NapKey(*entry[2:6]) for entry in entries] == [kept_here.key]
        with pytest.raises(Fenced, match="another sidecar owns this front end now: 'kamailio': sidecar-") as caught:
            await mine.commit([first.held()], [kept_here])
        assert list(caught.value.owners) == [first.front_end]
        assert naps_in(redis) == 1, "neither added nor forgotten"
        await mine.commit([], [kept_here])
        assert naps_in(redis) == 1, "it is no business of ours any more"
        assert (await mine.holds(first.front_end), await other.holds(second.front_end)) == (False, True)
        await other.commit([second.held(NapKey(7, 99, 1, 1))], [])
        assert naps_in(redis) == 2


async def test_who_writes_nothing_learns_of_it_too(redis: RedisServer) -> None:
    first, second = Source(), Source()
    async with opened(redis, first) as mine, opened(redis, second):
        with pytest.raises(Fenced):
            await mine.commit([], [])
        await mine.commit([], [])


async def test_one_lost_front_end_does_not_cost_the_others(redis: RedisServer) -> None:
    lost, ours = Source(), Source()
    ours.front_end = ours.engine.attach("opensips", 7)
    async with opened(redis, lost) as mine, opened(redis, Source()):
        assert [batch async for batch in mine.claim(ours.front_end)] == []
        with pytest.raises(Fenced) as caught:
            await mine.commit([lost.held(), ours.held(), ours.held()], [])
        assert list(caught.value.owners) == [lost.front_end]
        assert redis.command("HLEN", "sipnap:{opensips}:naps") == b":2\r\n"
        assert naps_in(redis) == 0


async def test_a_batch_for_a_former_life_of_the_front_end_is_refused(redis: RedisServer) -> None:
    """Reserved before the front end was lost, committed after it came back."""
    before, after = Source(), Source()
    async with opened(redis, before) as mine:
        late = before.held()
        assert [batch async for batch in mine.claim(after.front_end)] == []
        with pytest.raises(Fenced):
            await mine.commit([late], [])
        assert naps_in(redis) == 0


async def test_a_write_that_arrives_late_changes_nothing(redis: RedisServer, source: Source) -> None:
    async with opened(redis, source) as journal, opened(redis) as late:
        grip = journal.owned["kamailio"]
        late.owned["kamailio"] = dataclasses.replace(grip, doubtful=set())
        first = source.held()
        await journal.commit([first], [])
        with pytest.raises(JournalError, match="overtaken"):
            await late.commit([source.held()], [first])
        assert naps_in(redis) == 1


async def test_a_newer_layout_is_refused_and_not_touched(redis: RedisServer, source: Source) -> None:
    async with opened(redis, source):
        redis.command("HSET", OWNER, "schema", str(SCHEMA_VERSION + 1))
        before = redis.command("HGETALL", OWNER)
        with pytest.raises(JournalError, match=r"front end 'kamailio' was written by a newer sipnap \(schema 2"):
            async with opened(redis, source):
                pass
        assert redis.command("HGETALL", OWNER) == before


async def test_a_newer_nap_is_refused(redis: RedisServer, source: Source) -> None:
    redis.command("HSET", NAPS, BIGGEST.pack(), bytes([PACKING_VERSION + 1]) + b"what will be")
    async with opened(redis) as journal:
        with pytest.raises(JournalError, match="a newer sipnap"):
            assert [batch async for batch in journal.claim(source.front_end)]
        assert not await journal.holds(source.front_end)
    with pytest.raises(JournalError, match="damaged"):
        unpack("kamailio", b"short", bytes([PACKING_VERSION]))


# A Redis that refuses


@pytest.mark.parametrize(
    ("name", "value", "normal", "why"),
    [
        ("maxmemory", "1000kb", "0", "is out of memory: raise its maxmemory"),
        ("min-replicas-to-write", "1", "0", "has too few replicas to write"),
        ("requirepass", "secret", "", "asks for a password"),
    ],
)
async def test_a_refusal_names_the_cure_and_ends_by_itself(
    redis: RedisServer, source: Source, name: str, value: str, normal: str, why: str
) -> None:
    async with opened(redis, source) as journal:
        held = source.held()
        await journal.commit([held], [])
        with setting(redis, name, value, normal) if name != "requirepass" else locked(redis):
            if name == "requirepass":
                assert isinstance(journal.client, Redis)
                await journal.client.connection_pool.disconnect()  # connections that are open stay trusted
            for batch in ([source.held()], []):
                with pytest.raises(JournalError, match=why):
                    await journal.commit(batch, [])
        await journal.commit([], [])
        assert naps_in(redis) == 1


@contextmanager
def locked(redis: RedisServer) -> Iterator[None]:
    redis.command("CONFIG", "SET", "requirepass", "secret")
    try:
        yield
    finally:
        with socket.create_connection(("127.0.0.1", redis.port), timeout=5) as connection:
            connection.sendall(b'AUTH secret\r\nCONFIG SET requirepass ""\r\n')
            while connection.recv(100).count(b"+OK") < 2:
                pass


async def test_a_replica_is_told_from_a_primary(redis: RedisServer, source: Source) -> None:
    async with opened(redis, source) as journal:
        redis.command("REPLICAOF", "127.0.0.1", str(free_port()))
        try:
            with pytest.raises(JournalError, match="is a read-only replica: name the primary"):
                await journal.commit([source.held()], [])
        finally:
            redis.command("REPLICAOF", "NO", "ONE")
        await journal.commit([source.held()], [])


async def test_a_user_with_the_documented_rights_can_do_everything(redis: RedisServer) -> None:
    """What docs/journal.md says to grant is enough."""
    text = (Path(__file__).parents[2] / "docs" / "journal.md").read_text()
    rights = re.search(r"needs `(~[^`]+)` and\n`([^`]+)`[^`]+`([^`]+)`", text)
    assert rights
    redis.command("ACL", "SETUSER", "nap", "on", ">word", *" ".join(rights.groups()).split())
    first, second = Source(), Source()
    address = RedisAddress.parse(redis.url.replace("//", "//nap:word@"))
    one, two = RedisJournal(address), RedisJournal(address)
    try:
        await kept(one, first)
        await kept(two)
        assert await one.mailbox.owner_of("kamailio") == one.instance_id
        held = accepted(first, first.held())
        await one.commit([held], [])
        redis.command("FLUSHALL")
        await one.commit([first.held()], [held])
        await two.commit([], [])
        await one.mailbox.post(two.instance_id, b"a letter")
        assert await two.mailbox.collect() == [b"a letter"]
        assert len([batch async for batch in two.claim(second.front_end)]) == 1
        assert await one.mailbox.collect() == [b"moved"]
    finally:
        await one.close()
        await two.close()
        redis.command("ACL", "DELUSER", "nap")


async def test_a_letter_that_nobody_reads_is_gone(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(redis) as one, opened(redis) as two:
        monkeypatch.setattr(redis_mailbox, "LETTER_SECONDS", 0.01)
        await one.mailbox.post(two.instance_id, b"too late")
        deadline = time.monotonic() + 5
        while redis.command("KEYS", "*letters") != b"*0\r\n":
            assert time.monotonic() < deadline


async def test_memory_can_be_freed_when_there_is_none(redis: RedisServer) -> None:
    source, next_source = Source(), Source()
    async with opened(redis, source) as journal:
        batch = [source.held() for _ in range(10)]
        await journal.commit(batch, [])
        with setting(redis, "maxmemory", "1000kb", "0"):
            with pytest.raises(JournalError, match="out of memory"):
                await journal.commit([source.held()], batch[:5])
            assert naps_in(redis) == 10, "all or nothing"
            with pytest.raises(JournalError, match="out of memory"):
                await journal.commit([], batch[:5])
            assert naps_in(redis) == 5, "forgetting goes on"
            async with opened(redis, next_source):
                assert redis.command("HGET", OWNER, "number") == b"$1\r\n2\r\n", "and so does taking over"


async def test_nothing_is_reached_where_nothing_is() -> None:
    journal = RedisJournal(RedisAddress.parse(f"redis://user:secret@127.0.0.1:{free_port()}/3"))
    with pytest.raises(JournalError, match=r"journal redis://127.0.0.1:\d+: cannot be reached") as caught:
        await kept(journal)
    assert "secret" not in str(caught.value)
    await journal.close()


# A Redis that forgets, or does not say what it did


@pytest.mark.parametrize("loss", ["flushed", "older"])
async def test_what_redis_forgot_is_written_again(
    redis: RedisServer, source: Source, caplog: pytest.LogCaptureFixture, loss: str
) -> None:
    async with opened(redis, source) as journal:
        held = [accepted(source, source.held()) for _ in range(6000)]
        ended = source.held()
        await journal.commit([*held[:10], ended], [])
        snapshot = redis.command("DUMP", NAPS).partition(b"\r\n")[2][:-2]
        write = redis.command("HGET", OWNER, "write").split(b"\r\n")[1]
        await journal.commit(held[10:], [ended])
        if loss == "flushed":
            redis.command("FLUSHALL")
        else:
            redis.command("RESTORE", NAPS, "0", snapshot, "REPLACE")
            redis.command("HSET", OWNER, "write", write)
        await journal.commit([], [])
        assert naps_in(redis) == 6000
        assert "redis had lost what it had confirmed" in caplog.text
        await journal.commit([], held)
        assert naps_in(redis) == 0


async def test_redis_forgot_and_another_sidecar_was_faster(redis: RedisServer, source: Source) -> None:
    async with opened(redis, source) as journal:
        await journal.commit([accepted(source, source.held())], [])
        redis.command("FLUSHALL")
        async with opened(redis, Source()):
            with pytest.raises(Fenced):
                await journal.commit([], [])
        assert naps_in(redis) == 0


async def test_an_acceptance_in_doubt_is_taken_back(
    redis: RedisServer, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write was done, its answer was lost: it was refused, so it must not come to light at the next owner."""
    async with opened(redis, source) as journal:
        ask = journal.ask

        async def lose_the_answer(answer: Awaitable[Any]) -> Any:
            await ask(answer)
            raise JournalError("no answer")

        refused = source.held()
        with monkeypatch.context() as patch:
            patch.setattr(journal, "ask", lose_the_answer)
            with pytest.raises(JournalError, match="no answer"):
                await journal.commit([refused], [])
        assert naps_in(redis) == 1
        await journal.commit([], [])
        assert naps_in(redis) == 0
        await journal.commit([source.held(refused.key)], [])
        assert naps_in(redis) == 1, "and may be accepted at a second try"


async def test_a_restarted_redis_costs_no_acceptance(tmp_path: Path, source: Source) -> None:
    with RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as redis:
        async with opened(redis, source) as journal:
            await journal.commit([source.held()], [])
            redis.kill()
            with RedisServer(tmp_path, "--appendonly", "yes", port=redis.port) as again:
                await journal.commit([source.held()], [])
                assert naps_in(again) == 2


async def test_what_is_kept_goes_by_itself_when_nobody_wants_it(redis: RedisServer, source: Source) -> None:
    async with opened(redis, source) as journal:
        await journal.commit([source.held(delay_seconds=50), source.held(delay_seconds=10)], [])
        assert 3600 < int(redis.command("PTTL", NAPS).strip(b":\r\n")) / 1000 < 3660
        assert int(redis.command("PTTL", OWNER).strip(b":\r\n")) > 86_400_000


# A cluster


async def test_a_cluster(tmp_path: Path) -> None:
    """One node that has all slots: the same client, the same scripts, the same slots of the keys."""
    source, other = Source(), Source()
    other.front_end = other.engine.attach("opensips", 7)
    flags = ["--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1", "--cluster-port", str(free_port())]
    with RedisServer(tmp_path, *flags) as redis:
        redis.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        deadline = time.monotonic() + 10
        while b"cluster_state:ok" not in redis.command("CLUSTER", "INFO"):
            assert time.monotonic() < deadline
        address = RedisAddress.parse(f"redis+cluster://127.0.0.1:{redis.port},localhost:{redis.port}")
        journal, again = RedisJournal(address), RedisJournal(address)
        await kept(journal, source)
        assert [batch async for batch in journal.claim(other.front_end)] == []
        held, ended = source.held(), source.held()
        await journal.commit([held, other.held(), ended], [])
        await journal.commit([], [ended])
        assert [NapKey(*entry[2:6]) for entry in await kept(again, source)] == [held.key]
        with pytest.raises(Fenced):
            await journal.commit([other.held()], [held])
        assert naps_in(redis) == 1
        assert redis.command("HLEN", "sipnap:{opensips}:naps") == b":2\r\n"
        await journal.close()
        await again.close()


# Addresses, clocks, bytes


@pytest.mark.parametrize(
    ("text", "kind", "hosts", "name"),
    [
        ("redis://localhost", "", (("localhost", 6379),), "redis://localhost:6379"),
        ("redis://:secret@10.0.0.9:7000/3", "", (("10.0.0.9", 7000),), "redis://10.0.0.9:7000"),
        ("rediss://u:p@[::1]:6380/0?ssl_ca_certs=/ca.pem", "", (("::1", 6380),), "redis://[::1]:6380"),
        ("redis+sentinel://a,b:1/calls/2", "sentinel", (("a", 26379), ("b", 1)), "redis+sentinel://a:26379,b:1/calls"),
        ("rediss+cluster://a:1,b:2", "cluster", (("a", 1), ("b", 2)), "redis+cluster://a:1,b:2"),
    ],
)
def test_addresses(text: str, kind: str, hosts: tuple[tuple[str, int], ...], name: str) -> None:
    address = RedisAddress.parse(text)
    assert (address.kind, address.hosts, address.name) == (kind, hosts, name)


@pytest.mark.parametrize(
    "text",
    ["redis:", "redis://", "redis://a,b", "redis://a:99999", "redis://a/x", "redis+sentinel://a", "redis+cluster://a/1",
     "redis+mesh://a", "redis://a/0/1", "http://a"],
)  # fmt: skip
def test_malformed_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"redis\+|database|HOST:PORT"):
        RedisAddress.parse(text)


def test_no_nap_gets_shorter_between_two_clocks() -> None:
    writer, reader = RedisClock(), RedisClock()
    # The true offsets are 1000 s and 500 s; Redis looked at its clock late in the one case and early in the other.
    writer.observe(5_000_000_000, b"1005", b"3000", 5_004_000_000)
    reader.observe(7_000_000_000, 507, 1000, 7_009_000_000)
    due_ns = 20_000_000_000
    written = due_ns + writer.highest_offset_ns
    true_ns = due_ns + 1_000_000_000_000
    assert true_ns <= written <= true_ns + 4_000_000
    read = written - reader.lowest_offset_ns
    assert read >= true_ns - 500_000_000_000
    assert read < true_ns - 500_000_000_000 + 15_000_000
    width = writer.highest_offset_ns - writer.lowest_offset_ns
    writer.observe(6_000_000_000, 1006, 0, 6_500_000_000)
    assert writer.highest_offset_ns - writer.lowest_offset_ns == width, "a slow answer teaches nothing"


def test_what_is_packed_comes_out_again() -> None:
    entry = Entry(2**62, "kamailio", *BIGGEST, "R", 1, 2, 2**62, "http", "gruppe-ä", b"\0\xff")
    packed = pack_fields(entry.sequence, *entry[6:])
    assert unpack("kamailio", BIGGEST.pack(), packed) == entry
    assert unpack_whole(pack_whole("kamailio", BIGGEST.pack(), packed)) == entry
