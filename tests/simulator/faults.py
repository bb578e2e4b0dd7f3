"""What goes wrong in a run, and when: drawn from the seed.

Some faults come at a random time, others at a random step: as a commit begins, when it is on disk but not known to be,
when an acknowledgement, a continue or an answer is on its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random

from tests.simulator.loop import Process, VirtualLoop
from tests.simulator.network import WORLD, Network
from tests.simulator.proxy import Proxy
from tests.simulator.shim import SimulatedShim
from tests.simulator.sidecar import SimulatedSidecar

STEPS = ("commit", "durable", "acknowledge", "continue", "result")
"""Where a fault may strike, besides at a time."""

_AFTERMATH_SECONDS = 3.0
_KEEPALIVE_SECONDS = 15.0
_DEAD_SECONDS = 9.0  # a session notices silence after 6 s and a heartbeat or two


@dataclass(slots=True)
class Trouble:
    """A fault, and how long it explained that things went wrong or slowly."""

    kind: str
    began_seconds: float
    ended_seconds: float = float("inf")


@dataclass
class Faults:
    """Strikes the parts of one run."""

    loop: VirtualLoop
    random: Random
    network: Network
    proxy: Proxy
    shim: SimulatedShim
    sidecars: list[SimulatedSidecar]
    until_seconds: float
    """Nothing strikes after this."""
    troubles: list[Trouble] = field(default_factory=list)
    _running: list[asyncio.Task[None]] = field(default_factory=list)
    _armed: dict[str, list[int]] = field(default_factory=dict)
    _kinds: list[str] = field(default_factory=list)

    def plan(self) -> None:
        """Draw what is to happen."""
        random = self.random
        kinds = {
            "reset": self._reset, "silence": self._silence, "sidecar killed": self._kill_sidecar,
            "sidecar stopped": self._stop_sidecar, "shim killed": self._kill_shim, "shim stopped": self._stop_shim,
            "both killed": self._kill_both, "proxy killed": self._kill_proxy, "disk full": self._fill_disk,
            "refused": self._refuse, "drain": self._drain, "blackout": self._black_out, "shim ended": self._end_shim,
        }  # fmt: skip
        self._strikes: dict[str, Callable[[], Awaitable[float | None]]] = dict(kinds)
        # Few kinds in a run and many strikes of each, rather than a little of everything: swarm testing.
        self._kinds = random.sample(sorted(kinds), random.randint(1, 5))
        if random.random() < 0.1:
            return
        now = self.loop.time()
        for _ in range(random.choice([0, 1, 3, 6])):
            self.loop.call_at(random.uniform(now, self.until_seconds), self._strike)
        for _ in range(random.choice([0, 1, 2, 4, 10])):
            self._armed.setdefault(random.choice(STEPS), []).append(random.choice([1, 2, 3, random.randint(1, 15)]))

    def on_step(self, step: str) -> None:
        """One of `STEPS` has been taken."""
        armed = self._armed.get(step)
        if armed and self.loop.time() < self.until_seconds:
            left = [count - 1 for count in armed]
            self._armed[step] = [count for count in left if count]
            for _ in range(len(left) - len(self._armed[step])):
                seconds = self.random.choice([0.0, self.random.uniform(0.0, 0.003), self.random.uniform(0.0, 0.05)])
                self.loop.call_later(seconds, self._strike, context=WORLD)

    @property
    def are_over(self) -> bool:
        """Whether everything has been repaired."""
        return self.loop.time() >= self.until_seconds and all(task.done() for task in self._running)

    def explain(self, from_seconds: float, to_seconds: float, *kinds: str) -> bool:
        """Whether a trouble, of these kinds if any are given, touched that time."""
        return any(
            trouble.began_seconds <= to_seconds
            and from_seconds <= trouble.ended_seconds + _AFTERMATH_SECONDS
            and (not kinds or trouble.kind in kinds)
            for trouble in self.troubles
        )

    def explain_until(self, seconds: float) -> float:
        """Until when troubles that began before that time explain that something is late."""
        ends = [trouble.ended_seconds for trouble in self.troubles if trouble.began_seconds <= seconds]
        return max(ends, default=float("-inf")) + _AFTERMATH_SECONDS

    def _strike(self) -> None:
        # Two at once find what none finds alone: a commit that fails while its stream is reset.
        for kind in self.random.choices(self._kinds, k=2 if self.random.random() < 0.3 else 1):
            trouble = Trouble(kind, self.loop.time())
            self.troubles.append(trouble)
            self.network.trace("fault: %s", kind)
            self._running.append(self.loop.create_task(self._last(trouble)))

    async def _last(self, trouble: Trouble) -> None:
        longer_seconds = await self._strikes[trouble.kind]()
        trouble.ended_seconds = self.loop.time() + (longer_seconds or 0.0)

    async def _pass(self, *most_seconds: float) -> None:
        await asyncio.sleep(self.random.uniform(0.0, self.random.choice(most_seconds)))

    # The faults. Each is over when it returns, or by what it returns later.

    async def _reset(self) -> float | None:
        random = self.random
        for call in [call for call in self.network.calls if not call.is_over]:
            client, server = (random.choice([0.0, 0.001, random.uniform(0.0, 0.5)]) for _ in range(2))
            self.network.cut(call, client, server, lose_all=random.random() < 0.5)
        return 0.5

    async def _silence(self) -> float | None:
        for call in [call for call in self.network.calls if not call.is_over]:
            # A session notices by itself once it is welcomed; before that gRPC's keepalive has to.
            seconds = self.random.uniform(15.0, 40.0) if call.is_answered else _KEEPALIVE_SECONDS
            self.network.cut(call, seconds, self.random.uniform(0.5, 15.0), lose_all=True)
        return _KEEPALIVE_SECONDS if any(not call.is_answered for call in self.network.calls) else _DEAD_SECONDS

    async def _kill_sidecar(self) -> float | None:
        sidecar = self.random.choice(self.sidecars)
        sidecar.kill()
        await self._pass(0.01, 0.5, 4.0)
        sidecar.start()
        return None

    async def _stop_sidecar(self) -> float | None:
        process = self.random.choice(self.sidecars).process
        await self._stop(process)
        return None

    async def _stop_shim(self) -> float | None:
        await self._stop(self.shim.process)
        return None

    async def _stop(self, process: Process | None) -> None:
        if process is not None and not process.is_stopped:
            self.network.trace("%s is stopped", process.name)
            process.stop()
            await self._pass(0.05, 2.0, 9.0)
            process.go_on()
            self.network.trace("%s goes on", process.name)

    async def _kill_shim(self) -> float | None:
        self.shim.kill()
        await self._pass(0.01, 0.5, 4.0)
        self.shim.start()
        return None

    async def _end_shim(self) -> float | None:
        await self.shim.end()
        await self._pass(0.01, 0.5)
        self.shim.start()
        return None

    async def _kill_both(self) -> float | None:
        sidecar = self.random.choice(self.sidecars)
        parts: list[SimulatedShim | SimulatedSidecar] = [self.shim, sidecar]
        for part in self.random.sample(parts, 2):
            part.kill()
            if self.random.random() < 0.3:
                await self._pass(0.001, 0.1)
        for part in self.random.sample(parts, 2):
            await self._pass(0.01, 0.5, 2.0)
            part.start()
        return None

    async def _kill_proxy(self) -> float | None:
        if self.proxy.is_up:
            self.proxy.die()
            await self._pass(0.01, 1.0)
            self.proxy.restart()
        return None

    async def _fill_disk(self) -> float | None:
        disk = self.random.choice(self.sidecars).disk
        if not disk.is_away:
            self.network.trace("disk is full")
            disk.is_away = True
            await self._pass(0.05, 3.0)
            disk.is_away = False
            self.network.trace("disk has space again")
        return 1.5

    async def _refuse(self) -> float | None:
        refused, sidecar = self.network.refused, self.random.choice(self.sidecars)
        refused[sidecar.name] = refused.get(sidecar.name, 0) + 1
        if self.random.random() < 0.7:
            await self._reset()
        await self._pass(0.1, 3.0)
        refused[sidecar.name] -= 1
        return 0.5

    async def _drain(self) -> float | None:
        sidecar = self.random.choice(self.sidecars)
        await sidecar.drain()
        await self._pass(0.05, 1.0)
        sidecar.start()
        return None

    async def _black_out(self) -> float | None:
        if not self.network.is_blacked_out:
            self.network.is_blacked_out = True
            await self._pass(0.3, 3.0)
            self.network.is_blacked_out = False
        return 2.0
