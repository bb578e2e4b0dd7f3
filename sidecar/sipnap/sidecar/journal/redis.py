"""The Redis journal: shared by several sidecars, each front end owned by the one that its session has reached.

Keys of one front end, in one slot of a cluster: ``sipnap:{ID}:owner``, a hash that says who may write, and
``sipnap:{ID}:naps``, a hash from packed key to packed entry. Everything that writes is one of the scripts beside this
module, which look at the owner first; a write carries the owner's token, and a number that grows with each. So

- a sidecar that was taken for dead and comes back is refused (`Fenced`),
- a write that was given up and arrives late, after the next one, is refused too,
- a Redis that comes back with older data, or with none, is noticed at the next write: all is written again.

Times in entries are on Redis's clock: sidecars of one Redis need not agree on the time of day.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Collection, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from sipnap.sidecar.core.front_ends import FrontEnd
from sipnap.sidecar.core.suspension import Held, Phase
from sipnap.sidecar.journal.base import Durability, Entry, Fenced, Journal, JournalError, Mailbox
from sipnap.sidecar.journal.packing import unpack
from sipnap.sidecar.journal.redis_address import RedisAddress
from sipnap.sidecar.journal.redis_client import FAILURES, Client, explain, is_disconnection, open_client
from sipnap.sidecar.journal.redis_clock import RedisClock
from sipnap.sidecar.journal.redis_mailbox import RedisMailbox
from sipnap.sidecar.journal.redis_plan import Grip, Plan, keys_of, script
from sipnap.sidecar.journal.redis_tasks import RedisTasks
from sipnap.sidecar.journal.tasks import TaskStore

SCHEMA_VERSION = 1
"""Layout of the keys that this module writes; a front end with a newer one is not claimed."""

TIMEOUT_SECONDS = 2.0
"""A Redis that does not answer for so long has failed."""

CHECK_SECONDS = 1.0
"""How often, without anything to write, it is found out whether writing is possible, and whose the front ends are."""

_OWNER_KEPT_MS = 7 * 24 * 3600 * 1000
_ENTRIES_PER_BATCH = 5000
_PROGRESS_SECONDS = 2.0
_AT_ONCE_SECONDS = 0.3  # a connection lost so soon was lost before: worth a second try
_PROBE_KEY = "sipnap:probe"

_Result = TypeVar("_Result")
log = logging.getLogger("sipnap.sidecar")


class RedisJournal(Journal):
    """See `sipnap.sidecar.journal.base.Journal`."""

    kind = "redis"
    durability = Durability.PROCESS  # Redis answers before it syncs, and before its replicas have it
    shared = True

    def __init__(self, address: RedisAddress) -> None:
        """Prepare; `recover` connects."""
        self.name = address.name
        self.owned: dict[str, Grip] = {}
        self._address = address
        self.clock = RedisClock()
        self.mailbox: Mailbox = RedisMailbox(self)
        self.tasks: TaskStore = RedisTasks(self)
        self._writing = asyncio.Lock()
        self._is_failing = False
        self._failures = 0
        self._failure = ""
        self._lost: dict[FrontEnd, str] = {}  # and not told yet
        self._checked_seconds = 0.0
        self.instance_id, self._own_name = secrets.token_hex(8), "?"
        self._commit_script, self._claim_script, self._probe_script = map(script, ("commit", "claim", "probe"))
        self.client: Client | None = None

    def introduce(self, instance_id: str, address: str) -> None:
        """Have other sidecars show this address for what is owned here."""
        self.instance_id, self._own_name = instance_id, address

    async def recover(self) -> AsyncIterator[Sequence[Entry]]:
        """Find out whether Redis answers; what it keeps comes with `claim`."""
        try:
            self.client = open_client(self._address, TIMEOUT_SECONDS)
        except ValueError as error:
            raise JournalError(f"journal {self.name}: {error}") from error
        await self._probe(writes=False)
        nothing: tuple[Sequence[Entry], ...] = ()
        for batch in nothing:
            yield batch

    async def claim(self, front_end: FrontEnd) -> AsyncIterator[Sequence[Entry]]:
        """Take the front end over; whoever had it is fenced from this moment."""
        word, token, count, owner, instance = await self._take(front_end.front_end_id)
        if word == "NEWER":
            raise JournalError(
                f"journal {self.name}: what it keeps of front end {front_end.front_end_id!r} was written by a newer "
                f"sipnap (schema {token}, this one knows up to {SCHEMA_VERSION}); run that version"
            )
        if instance and instance != self.instance_id:
            log.info("taking a front end over front_end=%s from=%s naps=%d", front_end.front_end_id, owner, count)
            with suppress(JournalError):  # it finds out by itself, only later
                await self.mailbox.post(instance, b"moved")
        grip = self.owned[front_end.front_end_id] = Grip(front_end, token)
        try:
            entries = await self._read(grip, count)
            for start in range(0, len(entries), _ENTRIES_PER_BATCH):
                yield entries[start : start + _ENTRIES_PER_BATCH]
        except BaseException:
            if self.owned.get(front_end.front_end_id) is grip:
                del self.owned[front_end.front_end_id]
            raise
        grip.is_loading = False

    async def holds(self, front_end: FrontEnd) -> bool:
        """Ask Redis."""
        grip = self._grip_of(front_end)
        if grip is None:
            return False
        failures = self._failures
        try:
            async with self._writing:
                if self._failures != failures:
                    raise JournalError(self._failure)  # it failed while we waited: no need to wait as long again
                await self._write([Plan(grip, probes=True)])
        except Fenced:
            return False
        return True

    async def commit(self, added: Sequence[Held], ended: Sequence[Held]) -> None:
        """One script call for each front end, all in one go."""
        async with self._writing:
            plans: dict[Grip, Plan] = {}
            lost: dict[FrontEnd, str] = {}
            is_checking = (
                self._is_failing
                or not (added or ended)
                or time.monotonic() - self._checked_seconds > CHECK_SECONDS
            )  # fmt: skip
            if is_checking:
                self._checked_seconds = time.monotonic()
                plans = {grip: Plan(grip, probes=True) for grip in self.owned.values() if not grip.is_loading}
            for held in ended:
                grip = self._grip_of(held.front_end)
                if grip is None:
                    continue  # it is another's: forgetting it is the other's business
                if grip.is_loading:
                    grip.doubtful.add(held.packed_key)
                else:
                    plans.setdefault(grip, Plan(grip)).ends.append(held.packed_key)
            over = set(ended)
            offset_ns = self.clock.highest_offset_ns  # never early: see RedisClock
            for held in added:
                grip = self._grip_of(held.front_end)
                if grip is None or grip.is_loading:
                    lost[held.front_end] = "unknown"
                elif held not in over:
                    plans.setdefault(grip, Plan(grip)).add(held, offset_ns)
            try:
                if plans:
                    await self._write(list(plans.values()))
                elif is_checking:
                    await self._probe(writes=True)
            except Fenced as fenced:
                lost |= fenced.owners
            except BaseException as error:
                self._is_failing = True
                self._failures += 1
                self._failure = str(error)
                raise
            self._is_failing = False
            lost |= self._lost
            self._lost = {}
            if lost:
                raise Fenced(lost)

    def offset_ns(self) -> int:
        """Redis's clock against ours."""
        return self.clock.lowest_offset_ns

    async def close(self) -> None:
        """Close the connections; what is owned stays ours until another sidecar claims it."""
        client, self.client = self.client, None
        if client is not None:
            await client.aclose()

    async def ask(self, answer: Awaitable[_Result]) -> _Result:
        """Wait for Redis's answer, for a bounded time.

        Raises:
            JournalError: It cannot be had, or is an error.
        """
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await answer
        except FAILURES as error:
            raise JournalError(explain(self.name, error)) from error

    def opened(self) -> Client:
        """The client.

        Raises:
            JournalError: There is none, before `recover` or after `close`.
        """
        if self.client is None:
            raise JournalError(f"journal {self.name}: is closed")
        return self.client

    # Within

    def _grip_of(self, front_end: FrontEnd) -> Grip | None:
        grip = self.owned.get(front_end.front_end_id)
        return grip if grip is not None and grip.front_end is front_end else None

    async def _take(self, front_end_id: str, *, only_if_free: bool = False) -> tuple[str, str, int, str, str]:
        sent_ns = time.monotonic_ns()
        answer: list[Any] = await self.ask(
            self.opened().execute_command(
                "EVAL", self._claim_script, 2, *keys_of(front_end_id), secrets.token_hex(6), self.instance_id,
                self._own_name, SCHEMA_VERSION, _OWNER_KEPT_MS, "1" if only_if_free else "0",
            )
        )  # fmt: skip
        self.clock.observe(sent_ns, answer[1], answer[2], time.monotonic_ns())
        return answer[0].decode(), answer[3].decode(), int(answer[4]), answer[5].decode(), answer[6].decode()

    async def _read(self, grip: Grip, count: int) -> list[Entry]:
        """Everything of a front end; nobody but us can change it meanwhile."""
        front_end_id = grip.front_end.front_end_id
        entries: dict[bytes, Entry] = {}  # a scan may give a field twice
        started = reported = time.monotonic()
        cursor = 0
        while True:
            answer: Any = await self.ask(self.opened().hscan(grip.keys[1], cursor, count=_ENTRIES_PER_BATCH))
            cursor, page = answer
            for packed_key, packed in page.items():
                entries[packed_key] = unpack(front_end_id, packed_key, packed)
            if not cursor:
                break
            if time.monotonic() - reported > _PROGRESS_SECONDS:
                reported = time.monotonic()
                log.info(
                    "reading journal=redis front_end=%s naps=%d of=%d seconds=%.1f",
                    front_end_id, len(entries), count, reported - started,
                )  # fmt: skip
        return sorted(entries.values(), key=lambda entry: (entry.accepted_ns, entry.sequence))

    async def _probe(self, *, writes: bool) -> None:
        """Owning nothing: find out whether Redis is there, and would take something."""
        sent_ns = time.monotonic_ns()
        seconds, microseconds = await self.ask(
            self.opened().execute_command("EVAL", self._probe_script, 1, _PROBE_KEY, int(writes))
        )
        self.clock.observe(sent_ns, seconds, microseconds, time.monotonic_ns())

    async def _write(self, plans: Collection[Plan]) -> None:
        """Carry the plans out; write everything again where Redis has forgotten something.

        Raises:
            Fenced: Some of the front ends are owned by others; the other plans are carried out.
            JournalError: Some plan could not be carried out; all additions are doubtful now.
        """
        lost: dict[FrontEnd, str] = {}
        try:
            forgotten = await self._execute(plans, lost)
            for plan, word in forgotten:
                await self._write_again(plan.grip, word, lost)
            if forgotten and await self._execute([plan for plan, _ in forgotten if self._is_owned(plan.grip)], lost):
                raise JournalError(f"journal {self.name}: forgets what it has just confirmed; look at its replication")
        except BaseException:
            for plan in plans:
                plan.grip.doubtful.update(packed_key for packed_key, _ in plan.additions)
            self._lost |= lost
            raise
        if lost:
            raise Fenced(lost)

    async def _execute(self, plans: Collection[Plan], lost: dict[FrontEnd, str]) -> list[tuple[Plan, str]]:
        """Send all scripts at once and read what became of them.

        Returns:
            The plans that were not carried out because Redis has lost data.
        """
        for plan in plans:
            if plan.grip.doubtful:
                plan.ends += plan.grip.doubtful
        started = time.monotonic()
        try:
            answers = await self._send(plans)
        except JournalError as error:
            if not is_disconnection(error.__cause__) or time.monotonic() - started > _AT_ONCE_SECONDS:
                raise
            # Redis may have been restarted since: a new connection, new numbers. The probe, being short, hears what is
            # wrong where Redis just hangs up on a long command.
            await self._probe(writes=False)
            answers = await self._send(plans)
        problem: Exception | None = None
        forgotten = []
        for plan, results in answers:
            grip = plan.grip
            word = "DONE"
            for result in results:
                if isinstance(result, Exception):
                    problem, word = problem or result, "FAILED"
                elif word == "DONE":
                    word = result[0].decode()
                    if word == "FENCED":
                        lost[grip.front_end] = result[3].decode()
            if word == "DONE":
                grip.confirmed = grip.write
                grip.doubtful.clear()
            elif word == "FENCED":
                if self._is_owned(grip):
                    del self.owned[grip.front_end.front_end_id]
            elif word in ("NOBODY", "BEHIND"):
                forgotten.append((plan, word))
            elif word == "OVERTAKEN":
                problem = problem or RuntimeError("a later write of this sidecar has overtaken this one")
        if problem is not None:
            raise JournalError(explain(self.name, problem)) from problem
        return forgotten

    async def _send(self, plans: Collection[Plan]) -> list[tuple[Plan, list[Any]]]:
        pipeline: Any = self.opened().pipeline(transaction=False)
        counts = []
        for plan in plans:
            grip = plan.grip
            count = 0
            for chunk in plan.chunks():
                grip.write += 1
                count += 1
                pipeline.execute_command(
                    "EVAL", self._commit_script, 2, *grip.keys, grip.token, grip.write, grip.confirmed, _OWNER_KEPT_MS,
                    plan.keep_until_ms, *chunk,
                )  # fmt: skip
            counts.append(count)
        sent_ns = time.monotonic_ns()
        results = iter(await self.ask(pipeline.execute(raise_on_error=False)))
        received_ns = time.monotonic_ns()
        answers = [(plan, list(itertools.islice(results, count))) for plan, count in zip(plans, counts, strict=True)]
        for _, of_plan in answers:
            for result in of_plan:
                if not isinstance(result, Exception):
                    self.clock.observe(sent_ns, result[1], result[2], received_ns)
        return answers

    def _is_owned(self, grip: Grip) -> bool:
        return self.owned.get(grip.front_end.front_end_id) is grip

    async def _write_again(self, grip: Grip, word: str, lost: dict[FrontEnd, str]) -> None:
        """Redis lost data that it had confirmed: have it keep what we hold, and nothing else."""
        front_end = grip.front_end
        if word == "NOBODY":
            taken, token, _, owner, _ = await self._take(front_end.front_end_id, only_if_free=True)
            if taken != "DONE":
                lost[front_end] = owner
                del self.owned[front_end.front_end_id]
                return
            grip.token, grip.write = token, 0
        grip.confirmed = 0
        present = set(await self.ask(self.opened().execute_command("HKEYS", grip.keys[1])))
        held = [held for held in front_end.held.values() if held.phase in (Phase.PENDING, Phase.CONTINUING)]
        plan = Plan(grip, ends=list(present - {one.packed_key for one in held}), probes=True)
        offset_ns = self.clock.highest_offset_ns
        for start in range(0, len(held) + 1, _ENTRIES_PER_BATCH):
            for one in held[start : start + _ENTRIES_PER_BATCH]:
                if one.phase is not Phase.ENDED:  # since
                    plan.add(one, offset_ns)
            if await self._execute([plan], lost) or not self._is_owned(grip):
                return  # lost again, or lost to another: found out by the next write
            plan = Plan(grip, probes=True)
        log.error(
            "redis had lost what it had confirmed (%s); everything held was written again front_end=%s held=%d",
            "no owner there: flushed, or restarted without its data" if word == "NOBODY"
            else "older data: restarted, or failed over to a replica that lagged",
            front_end.front_end_id, len(held),
        )  # fmt: skip
