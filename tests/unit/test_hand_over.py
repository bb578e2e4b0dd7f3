"""Letters between sidecars, through mailboxes in memory."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sipnap.sidecar import hand_over
from sipnap.sidecar.hand_over import HandOver, OwnerRefused, OwnerSilent
from sipnap.sidecar.journal.base import JournalError


class Post:
    """What carries the letters."""

    def __init__(self) -> None:
        self.boxes: dict[str, asyncio.Queue[bytes]] = defaultdict(asyncio.Queue)
        self.owners: dict[str, str] = {}
        self.is_down = False


class MemoryMailbox:
    """See `sipnap.sidecar.journal.base.Mailbox`."""

    def __init__(self, post: Post, instance_id: str) -> None:
        self._post = post
        self._instance_id = instance_id

    async def owner_of(self, front_end_id: str) -> str:
        if self._post.is_down:
            raise JournalError("down")
        return self._post.owners.get(front_end_id, "")

    async def post(self, instance_id: str, letter: bytes) -> None:
        self._post.boxes[instance_id].put_nowait(letter)

    async def collect(self) -> list[bytes]:
        return [await self._post.boxes[self._instance_id].get()]


class Sidecar:
    """One end: carries out by shouting, and refuses what is empty."""

    def __init__(self, post: Post, instance_id: str) -> None:
        self.looked_after = 0
        self.letters = HandOver(MemoryMailbox(post, instance_id), instance_id, self.carry_out, self.look_after)

    async def carry_out(self, call: str, request: bytes) -> bytes:
        if not request:
            raise OwnerRefused(b"nothing\nto do")
        if request == b"wait":
            await asyncio.Event().wait()
        return call.encode() + b" " + request.upper()

    def look_after(self) -> None:
        self.looked_after += 1


@asynccontextmanager
async def serving(*sidecars: Sidecar) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(sidecar.letters.serve_forever()) for sidecar in sidecars]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_owner_answers_or_refuses() -> None:
    post = Post()
    post.owners = {"kamailio": "b"}
    a, b = Sidecar(post, "a"), Sidecar(post, "b")
    async with serving(a, b):
        answers = await asyncio.gather(*(a.letters.ask("kamailio", "Get", b"n\nap %d" % n) for n in range(20)))
        assert answers == [b"Get N\nAP %d" % number for number in range(20)]
        with pytest.raises(OwnerRefused) as caught:
            await a.letters.ask("kamailio", "Get", b"")
        assert caught.value.status == b"nothing\nto do"
        assert await b.letters.ask("kamailio", "Get", b"mine") is None
        assert await a.letters.ask("nobody", "Get", b"whose?") is None
        post.is_down = True
        with pytest.raises(JournalError):
            await a.letters.ask("kamailio", "Get", b"nap")


async def test_a_silent_owner_is_waited_for_so_long_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_over, "ANSWER_SECONDS", 0.01)
    post = Post()
    post.owners = {"kamailio": "b"}
    a, b = Sidecar(post, "a"), Sidecar(post, "b")
    async with serving(a, b):
        with pytest.raises(OwnerSilent, match="'kamailio' does not answer"):
            await a.letters.ask("kamailio", "Get", b"wait")
        for letter in (b"answer 1\nlate", b"answer 99\nnever asked", b"", b"answer", b"\xff \0\n", b"moved"):
            post.boxes["a"].put_nowait(letter)
        async with asyncio.timeout(5):
            while not a.looked_after:
                await asyncio.sleep(0)
        monkeypatch.setattr(hand_over, "ANSWER_SECONDS", 5.0)
        assert await a.letters.ask("kamailio", "Get", b"nap") == b"Get NAP"


async def test_further_calls_and_news() -> None:
    """What is added to the calls is carried out there; what is told is heard, and what nobody listens for is not."""
    post = Post()
    post.owners = {"kamailio": "b"}
    a, b = Sidecar(post, "a"), Sidecar(post, "b")
    heard: list[bytes] = []
    b.letters.subjects[b"weather"] = heard.append

    async def reverse(request: bytes) -> bytes:
        return request[::-1]

    b.letters.calls["Reverse"] = reverse
    async with serving(a, b):
        await a.letters.tell("b", b"politics", b"none")
        await a.letters.tell("b", b"weather", b"rain\nand wind")
        assert await a.letters.ask("kamailio", "Reverse", b"nap") == b"pan"
        assert await a.letters.ask("kamailio", "Get", b"nap") == b"Get NAP"
    assert heard == [b"rain\nand wind"]
