"""The shim of the simulation: the product's bridge and session, in a process that can die, on simulated sockets."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, copy_context
from random import Random
from typing import TYPE_CHECKING, Any

from sipnap.client import keys
from sipnap.client.outstanding import Suspended
from sipnap.client.session import FrontEndSession
from sipnap.shim.kamailio.bridge import Bridge
from sipnap.shim.kamailio.inbox import Address, Inbox
from sipnap.v1 import suspension_pb2 as pb
from tests.simulator.loop import PROCESS, Process, VirtualLoop
from tests.simulator.network import Key, Network, as_call, key_of
from tests.simulator.proxy import EARLY_TOLERANCE_SECONDS, Nap, Proxy, State
from tests.simulator.work import Workload

if TYPE_CHECKING:
    from sipnap.client.session import _Call

FRONT_END_ID = "proxy"
"""What it is called at the sidecar."""

_END_SECONDS = 25.0  # it may be stopped meanwhile
_WALL_AHEAD_SECONDS = 1_700_000_000.0
_NOWHERE = Address("127.0.0.1", 9)


def wall_ns(seconds: float) -> int:
    """The wall clock of the shim's machine, which the kernel stamps datagrams with."""
    return int((seconds + _WALL_AHEAD_SECONDS) * 1e9)


class SimulatedSocket:
    """A connected datagram socket, as much of it as the bridge uses."""

    def __init__(self, shim: SimulatedShim, process: Process) -> None:
        self._shim = shim
        self._process = process
        self._arrived: deque[tuple[bytes, float]] = deque()
        self._reader: Callable[[], object] | None = None
        self._context: Context | None = None
        self._wake_up: asyncio.Handle | None = None
        self._is_closed = False

    def fileno(self) -> int:
        return -1 if self._is_closed else 3

    def send(self, data: bytes) -> int:
        if self._process.is_alive:
            self._shim.send(data)
        return len(data)

    def recvmsg(self, most: int, _ancillary_most: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        if not self._arrived:
            raise BlockingIOError
        data, arrived_seconds = self._arrived.popleft()
        if data[4:6] in (b"S ", b"O "):
            epoch, index, label, nap = map(int, data.split(b" ", 6)[2:6])
            self._shim.arrived[epoch, index, label, nap] = arrived_seconds
        stamp = divmod(wall_ns(arrived_seconds), 1_000_000_000)
        return data[:most], [(socket.SOL_SOCKET, 35, struct.pack("@qq", *stamp))], 0, None

    def close(self) -> None:
        self.watch(None)
        self._is_closed = True

    def arrive(self, data: bytes) -> None:
        """A datagram is there."""
        if self._process.is_alive:
            self._arrived.append((data, self._shim.loop.time()))
            self._notice()

    def watch(self, reader: Callable[[], object] | None) -> None:
        """What `add_reader` and `remove_reader` do."""
        if self._wake_up is not None:
            self._wake_up.cancel()
            self._wake_up = None
        self._reader, self._context = reader, copy_context()
        self._notice()

    def _notice(self) -> None:
        """As long as something is there to be read, the reader is called, once in each turn of the loop."""
        if self._arrived and self._reader is not None and self._wake_up is None:
            self._wake_up = self._shim.loop.call_soon(self._read, context=self._context)

    def _read(self) -> None:
        self._wake_up = None
        if self._reader is not None:
            self._reader()
        self._notice()


class SimulatedSession(FrontEndSession):
    """The session, on the simulated network; it checks what the bridge is told."""

    def __init__(self, shim: SimulatedShim, process: Process, targets: list[str]) -> None:
        super().__init__(targets, front_end_id=FRONT_END_ID)
        self._shim = shim
        self._process = process
        self._cancelled_seconds: dict[Key, float] = {}
        self._answered: set[Key] = set()

    def _open_call(self, target: str) -> tuple[_Call, Callable[[], Awaitable[None]]]:
        call = self._shim.network.connect(target, self._process)

        async def close() -> None:
            call.cancel()

        return as_call(call), close

    @property
    def target(self) -> str:
        """Where it is connected to; empty: nowhere."""
        call: Any = self._call
        return call.target if self._connected.is_set() and call is not None else ""

    def submit(self, suspended: Suspended, *, is_urgent: bool = False) -> bool:
        nap = self._shim.proxy.naps[suspended.key[1:]]
        if self._process.is_alive:
            nap.taken_by, nap.taken_seconds = self._process.name, self._shim.arrived[nap.key]
        # The bridge gives neither; here some naps have them. One message after the other is the same as both in one.
        assert suspended.deadline_seconds is None
        suspended.encoded += pb.Suspension(operations=nap.operations).SerializeToString()
        suspended.deadline_seconds = nap.deadline_seconds
        return super().submit(suspended, is_urgent=is_urgent or bool(nap.operations))

    def cancel(self, key: keys.Key) -> None:
        self._cancelled_seconds[key[1:]] = self._loop.time()
        super().cancel(key)

    def answer(self, key: keys.Key, outcome: pb.ContinueOutcome) -> None:
        nap = self._shim.proxy.naps[key[1:]]
        if outcome == pb.CONTINUE_OUTCOME_GONE and nap.state is State.WAITING and self._process.is_alive:
            nap.is_given_up = True
        self._check_answered(nap)
        super().answer(key, outcome)

    def on_continues(self, callback: Callable[[Sequence[tuple[keys.Key, pb.Continue]]], None]) -> None:
        def check_and_hand_on(continues: Sequence[tuple[keys.Key, pb.Continue]]) -> None:
            if self._process.is_alive:
                for key, received in continues:
                    self._check(key[1:], received)
            callback(continues)

        super().on_continues(check_and_hand_on)

    def on_due(self, callback: Callable[[Sequence[Suspended]], None]) -> None:
        def check_and_hand_on(suspendeds: Sequence[Suspended]) -> None:
            if self._process.is_alive:
                for suspended in suspendeds:
                    self._check_due(suspended)
            callback(suspendeds)

        super().on_due(check_and_hand_on)

    def _check(self, key: Key, received: pb.Continue) -> None:
        if key_of(received.key) != key:
            self._shim.violate(f"{received} was handed to the shim under the key {key}")
        nap = self._shim.proxy.naps[key]
        self._shim.network.trace("%s hands on %s", self._process.name, received)
        self._shim.workload.check(str(nap), nap.operations, received)
        is_ok = received.status == pb.CONTINUE_STATUS_OK
        self._check_handed_on(
            nap, is_own=received.attempt == 0, due_seconds=nap.due_seconds if is_ok and not nap.operations else 0.0
        )

    def _check_due(self, suspended: Suspended) -> None:
        nap = self._shim.proxy.naps[suspended.key[1:]]
        self._shim.network.trace("%s hands on that %s is over", self._process.name, nap)
        if nap.operations:
            self._shim.violate(f"{nap} was handed to the shim without what its operations have found")
        if suspended.outcome is not None:
            self._shim.violate(f"{nap} was handed to the shim, though it is over")
        # Its time is counted from when its datagram came, however long that lay there.
        self._check_handed_on(nap, is_own=False, due_seconds=nap.taken_seconds + nap.delay_seconds)

    def _check_handed_on(self, nap: Nap, *, is_own: bool, due_seconds: float) -> None:
        """`is_own`: the session says so by itself."""
        now, violate, name = self._loop.time(), self._shim.violate, (self._process.name, nap.key)
        if not is_own and name not in self._shim.told:
            violate(f"{nap} was handed to the shim, and no sidecar had said that it is over")
        if name in self._shim.delivered:
            violate(f"{nap} was handed to the shim twice")
        self._shim.delivered.add(name)
        if self._cancelled_seconds.get(nap.key, now) < now:
            violate(f"{nap} was handed to the shim after its cancel")
        if now < due_seconds - EARLY_TOLERANCE_SECONDS:
            violate(f"{nap} was handed to the shim {due_seconds - now:.6f} s early")

    def applied(self, suspendeds: Sequence[Suspended]) -> None:
        for suspended in suspendeds:
            nap = self._shim.proxy.naps[suspended.key[1:]]
            if nap.state is not State.RESUMED:
                self._shim.violate(f"the shim says that {nap} was resumed, and it is {nap.state.value}")
            self._check_answered(nap)
        super().applied(suspendeds)

    def _check_answered(self, nap: Nap) -> None:
        if nap.key in self._answered and self._process.is_alive:
            self._shim.violate(f"the shim answers for {nap} once more")
        self._answered.add(nap.key)

    def left_over(self) -> str:
        """What it still keeps of suspensions, for the check that it is nothing; empty: nothing."""
        table = self._table
        left = {
            "outstanding": len(table),
            "deadlines": len(table._by_deadline),
            "delivered": len(table._unknown_delivered),
            "to submit": len(self._outbox.suspends),
            "waiting for their time": len(self._early),
        }
        return ", ".join(f"{count} {what}" for what, count in left.items() if count)

    @property
    def numbers_left(self) -> int:
        """Numbers that it knows. Those of naps that it has ended stay for a while: a sidecar may use them still."""
        return len(self._table._by_number)


class SimulatedShim:
    """The shim over all its lives."""

    def __init__(
        self,
        loop: VirtualLoop,
        random: Random,
        network: Network,
        proxy: Proxy,
        workload: Workload,
        targets: list[str],
        violate: Callable[[str], None],
    ) -> None:
        self.loop = loop
        self._random = random
        self.network = network
        self.proxy = proxy
        self.workload = workload
        self.violate = violate
        self.process: Process | None = None
        """Of its present life; None while it is away."""
        self.session: SimulatedSession | None = None
        self.arrived: dict[Key, float] = {}
        """When the datagram of each nap came that was read last."""
        self.delivered: set[tuple[str, Key]] = set()
        """Which life of it has been handed which continue."""
        self.told: set[tuple[str, Key]] = set()
        """Which life of it a sidecar has told of which nap that it is over."""
        self._bridge: Bridge | None = None
        self._main: asyncio.Task[object] | None = None
        self._socket: SimulatedSocket | None = None
        self._targets = targets
        self._lives = 0

    @property
    def is_up(self) -> bool:
        """Whether it has been started and not been killed since."""
        return self.process is not None

    def start(self) -> None:
        """Begin a life, if it has none."""
        if self.process is None:
            self._lives += 1
            self.process = Process(self.loop, f"shim{self._lives}")
            self.network.trace("%s starts", self.process.name)
            self._main = self.process.start(self._serve(self.process), "shim")

    def kill(self) -> None:
        """``kill -9``."""
        process, self.process = self.process, None
        if process is not None:
            self.network.trace("%s is killed", process.name)
            self.session = self._bridge = self._socket = None
            process.kill()
            self.network.vanish(process, None)

    async def end(self) -> None:
        """SIGTERM: it says goodbye in its own way."""
        process, main = self.process, self._main
        if process is not None and main is not None and not process.is_stopped:
            self.network.trace("%s is told to end", process.name)
            main.cancel()
            await asyncio.wait([main], timeout=_END_SECONDS)
            if not main.done():
                self.violate(f"{process.name} does not end")
            if process is self.process:
                self.kill()

    def receive(self, datagram: bytes) -> None:
        """A datagram from the proxy; with nobody there it is lost."""
        if self._socket is not None:
            self._socket.arrive(datagram)
        else:
            self.network.trace("datagram for nobody: %s", datagram)

    def send(self, datagram: bytes) -> None:
        """A datagram to the proxy."""
        self.network.send_datagram(datagram, self.proxy.receive, may_double=True)

    def open_socket(self, _listen: Address, _proxy: Address) -> SimulatedSocket:
        """What the bridge's socket is made with."""
        process = PROCESS.get()
        assert process is not None
        self._socket = SimulatedSocket(self, process)
        return self._socket

    def open_inbox(self, opened: socket.socket) -> Inbox:
        """What the bridge reads its socket with."""
        return Inbox(opened, clock=self.loop.time, wall_clock_ns=lambda: wall_ns(self.loop.time()))

    async def _serve(self, process: Process) -> None:
        targets = self._random.sample(self._targets, len(self._targets))
        self.session = session = SimulatedSession(self, process, targets)
        self._bridge = bridge = Bridge(session, front_end_id=FRONT_END_ID, listen=_NOWHERE, proxy=_NOWHERE)
        async with session:
            await bridge.run()

    def left_over(self) -> str:
        """What it still keeps of naps; empty: nothing."""
        session, bridge = self.session, self._bridge
        if session is None or bridge is None:
            return "it did not come back"
        left = {
            "to cancel": len(bridge._by_call_id),
            "not from the session": len(bridge._strangers),
            "sent": len(bridge._awaiting),
            "unanswered": bridge.unanswered,
        }
        texts = [f"{count} {what}" for what, count in left.items() if count]
        return ", ".join(filter(None, [session.left_over(), *texts]))
