"""Letters between the sidecars of one Redis: a list for each of them, ``sipnap:sidecar:INSTANCE:letters``."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sipnap.sidecar.journal.redis import RedisJournal

LETTER_SECONDS = 2.0
"""A letter that was not read within this time is never read: its sender has given up."""

_BLOCK_SECONDS = 1
_UNTIL = struct.Struct(">q")


class RedisMailbox:
    """See `sipnap.sidecar.journal.base.Mailbox`."""

    def __init__(self, journal: RedisJournal) -> None:
        self._journal = journal

    async def owner_of(self, front_end_id: str) -> str:
        """Ask Redis."""
        owner: bytes | None = await self._ask("HGET", f"sipnap:{{{front_end_id}}}:owner", "instance")
        return owner.decode() if owner else ""

    async def post(self, instance_id: str, letter: bytes) -> None:
        """Append it to the list; a list that nobody reads goes by itself."""
        until_ns = self._journal.clock.now_ns() + int(LETTER_SECONDS * 1e9)
        key = _key(instance_id)
        await self._ask("RPUSH", key, _UNTIL.pack(until_ns) + letter)
        await self._ask("PEXPIRE", key, int(LETTER_SECONDS * 1000))

    async def collect(self) -> list[bytes]:
        """Take the first of the list, if one comes soon."""
        found: Any = await self._ask("BLPOP", _key(self._journal.instance_id), _BLOCK_SECONDS)
        if not found:
            return []
        (until_ns,) = _UNTIL.unpack_from(found[1])
        return [found[1][_UNTIL.size :]] if self._journal.clock.now_ns() < until_ns else []

    async def _ask(self, *words: str | bytes | int) -> Any:
        return await self._journal.ask(self._journal.opened().execute_command(*words))


def _key(instance_id: str) -> str:
    return f"sipnap:sidecar:{instance_id}:letters"
