"""Calls that reached a sidecar which does not own their front end, carried out by the one that does.

They travel as letters through the journal that both share. A letter may be lost, or its answer may: the caller hears
UNAVAILABLE then, after a bounded time, and may call again: a suspension's key makes a repetition harmless.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from sipnap.sidecar.journal.base import JournalError, Mailbox

ANSWER_SECONDS = 2.0
"""How long the owner is waited for."""

_MOST_IN_HAND = 1000
_RETRY_SECONDS = 1.0

log = logging.getLogger("sipnap.sidecar")


class OwnerRefused(Exception):
    """The owner of the front end does not do it."""

    def __init__(self, status: bytes) -> None:
        super().__init__("the owner of the front end refused")
        self.status = status
        """Why: an encoded google.rpc.Status."""


class OwnerSilent(Exception):
    """The owner of the front end did not answer in time. Whether it has done it is not known."""


class HandOver:
    """One sidecar's letters to and from the others."""

    def __init__(
        self,
        mailbox: Mailbox,
        instance_id: str,
        carry_out: Callable[[str, bytes], Awaitable[bytes]],
        look_after: Callable[[], None],
    ) -> None:
        """Prepare.

        Args:
            mailbox: Where letters go and come from.
            instance_id: This sidecar.
            carry_out: Does what another sidecar was asked: name of the call and encoded request to encoded response.
                May raise `OwnerRefused`.
            look_after: Called when a front end may have gone to another sidecar.
        """
        self._mailbox = mailbox
        self._instance_id = instance_id
        self._carry_out = carry_out
        self._look_after = look_after
        self._numbers = itertools.count(1)
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self.calls: dict[str, Callable[[bytes], Awaitable[bytes]]] = {}
        """Further calls that others may ask for, by name; they are carried out by these."""
        self.subjects: dict[bytes, Callable[[bytes], None]] = {}
        """What others may tell, by name, and who is to hear it."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, front_end_id: str, call: str, request: bytes) -> bytes | None:
        """Have the owner of a front end carry a call out.

        Returns:
            The encoded response; None: no other sidecar owns it.

        Raises:
            OwnerRefused: It refuses.
            OwnerSilent: It does not answer.
            JournalError: It cannot be found out who it is.
        """
        owner = await self._mailbox.owner_of(front_end_id)
        if owner in ("", self._instance_id):
            return None
        number = b"%d" % next(self._numbers)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            head = b" ".join((b"ask", number, self._instance_id.encode(), call.encode()))
            await self._mailbox.post(owner, head + b"\n" + request)
            async with asyncio.timeout(ANSWER_SECONDS):
                return await future
        except TimeoutError:
            raise OwnerSilent(f"the sidecar that owns front end {front_end_id!r} does not answer") from None
        finally:
            del self._waiting[number]

    async def tell(self, instance_id: str, subject: bytes, news: bytes) -> None:
        """Have a sidecar hear something. Nobody knows whether it does.

        Raises:
            JournalError: It cannot be sent.
        """
        await self._mailbox.post(instance_id, b"tell " + subject + b"\n" + news)

    async def serve_forever(self) -> None:
        """Read letters until cancelled."""
        try:
            while True:
                try:
                    for letter in await self._mailbox.collect():
                        self._open(letter)
                except JournalError:  # the dispatcher finds it out too, and says so
                    await asyncio.sleep(_RETRY_SECONDS)
        finally:
            for task in self._tasks:
                task.cancel()

    def _open(self, letter: bytes) -> None:
        head, _, body = letter.partition(b"\n")
        match head.split(b" "):
            case [b"ask", number, sender, call] if len(self._tasks) < _MOST_IN_HAND:
                task = asyncio.create_task(self._reply(number, sender.decode(), call.decode(), body))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case [b"answer", number] if number in self._waiting and not self._waiting[number].done():
                self._waiting[number].set_result(body)
            case [b"refusal", number] if number in self._waiting and not self._waiting[number].done():
                self._waiting[number].set_exception(OwnerRefused(body))
            case [b"tell", subject] if subject in self.subjects:
                self.subjects[subject](body)
            case [b"moved"]:
                self._look_after()
            case _:
                log.debug("a letter came too late or says nothing head=%r", head[:80])

    async def _reply(self, number: bytes, sender: str, call: str, request: bytes) -> None:
        try:
            further = self.calls.get(call)
            answer = await (further(request) if further is not None else self._carry_out(call, request))
            answer = b"answer " + number + b"\n" + answer
        except OwnerRefused as refused:
            answer = b"refusal " + number + b"\n" + refused.status
        with suppress(JournalError):  # the sender gives up by itself
            await self._mailbox.post(sender, answer)
