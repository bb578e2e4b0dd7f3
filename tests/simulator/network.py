"""The network between the parts: gRPC streams, and the datagrams between the shim and its proxy.

Inside one stream nothing is lost, doubled or reordered: HTTP/2 over TCP keeps order. What a stream can do is end: a
reset loses what is on its way, on one side or on both; either side learns of it at its own time, and meanwhile a new
stream may be open already. Datagrams are lost, doubled and overtaken.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context
from random import Random
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

import grpc
import grpc.aio

from sipnap.client.frames import SessionFrame
from sipnap.client.outstanding import seconds_of
from sipnap.v1 import front_end_service_pb2 as wire
from sipnap.v1 import suspension_pb2 as pb
from tests.simulator.loop import Process, VirtualLoop

if TYPE_CHECKING:
    from tests.simulator.sidecar import SimulatedSidecar

Key = tuple[int, int, int, int]
"""What names a nap inside the one front end: boot epoch, index, label, nap number."""

WORLD = Context()
"""The context of what belongs to no process."""


def key_of(message: Any) -> Key:
    """The key that a SuspensionKey message names, without its front end."""
    return (message.boot_epoch, message.transaction_index, message.transaction_label, message.nap_number)


def with_what_is_left(request: wire.SessionRequest) -> Iterator[tuple[pb.Suspension, float]]:
    """Suspensions of a message, each with what is left of its delay, as the message says it."""
    for index, suspension in enumerate(request.suspends):
        yield suspension, request.left_us[index] * 1e-6 if request.left_us else seconds_of(suspension.delay)


class Observer(Protocol):
    """Is told what is said on the streams, at the moment when it is."""

    def step(self, step: str) -> None:
        """One of `tests.simulator.faults.STEPS` was taken."""

    def submitted(self, client: Process, suspension: pb.Suspension, left_seconds: float) -> None:
        """A session has written a suspension, and that so much is left of its delay."""

    def taken(self, call: Call, suspension: pb.Suspension, left_seconds: float) -> None:
        """A sidecar has read a suspension."""

    def acknowledged(self, call: Call, keys: list[Key]) -> None:
        """A sidecar has accepted suspensions."""

    def numbered(self, call: Call, number: int, key: Key) -> None:
        """A sidecar has given a suspension a number."""

    def cancelled(self, call: Call, key: Key) -> None:
        """A sidecar has said that a suspension is cancelled."""

    def continued(self, call: Call, key: Key, order: pb.Continue) -> None:
        """A sidecar has written a continue."""

    def over(self, call: Call, key: Key) -> None:
        """A sidecar has written a suspension's number, to say that it is over just as it was asked for."""

    def told(self, client: Process, key: Key) -> None:
        """A session has read that a suspension is over, in one way or the other."""

    def applied(self, client: Process, key: Key) -> None:
        """A session has written that a transaction was resumed."""

    def misused(self, text: str) -> None:
        """Somebody has broken the rules of the stream itself."""


class _Direction:
    """One way of a stream."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._last_arrival_seconds = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self.arrived: deque[bytes] = deque()
        self.unread = 0
        """Messages that were sent, and not taken yet."""
        self.is_cut = False
        """What has not arrived by now never will."""

    def send(self, arrive: Callable[[], None]) -> None:
        loop = self._network.loop
        when = max(self._last_arrival_seconds, loop.time() + self._network.delay_seconds())
        self._last_arrival_seconds = when
        loop.call_at(when, self._deliver, arrive, context=WORLD)

    def send_bytes(self, data: bytes) -> None:
        self.unread += 1
        self.send(lambda: self.arrived.append(data))

    def take(self) -> bytes:
        """The next message that has arrived."""
        self.unread -= 1
        return self.arrived.popleft()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        self._waiter = self._network.loop.create_future()
        await self._waiter

    def _deliver(self, arrive: Callable[[], None]) -> None:
        if not self.is_cut:
            arrive()
            self.wake()


class Call:
    """A stream as its client sees it, in the manner of `grpc.aio.StreamStreamCall`; and the connection below it."""

    def __init__(self, network: Network, target: str, client: Process) -> None:
        self._network = network
        self.target = target
        self.client = client
        self.sidecar: SimulatedSidecar | None = None
        self.up, self.down = _Direction(network), _Direction(network)
        self.handler: asyncio.Task[object] | None = None
        """What serves it, at the other end."""
        self.frames: dict[int, list[Key]] = {}
        """The keys of each frame of suspends that the sidecar has read."""
        self.ahead_seconds = 0.0
        """How long before its time the session takes that a suspension is over, as it has said."""
        self.numbers: dict[int, Key] = {}
        """The suspensions that the sidecar has numbered in this stream."""
        self.over: set[int] = set()
        """Those of them that it has said are over, and that are not answered for by their numbers."""
        self.continued: set[Key] = set()
        """What it has said is over, in one way or the other."""
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._trailing: tuple[tuple[str, Any], ...] = ()
        self._is_cancelled = False
        self.is_answered = False
        """Whether the client has heard anything."""

    @property
    def is_over(self) -> bool:
        """Whether both ends know that it has ended."""
        return self._code is not None and (self.handler is None or self.handler.done())

    # What the session calls

    async def write(self, frame: SessionFrame) -> None:
        if self._code is not None:
            raise asyncio.InvalidStateError("RPC already finished.")
        data = frame.SerializeToString()
        request = wire.SessionRequest.FromString(data)
        if request.HasField("hello"):
            self.ahead_seconds = seconds_of(request.hello.ahead)
        self._network.trace("%s → %s: %s", self.client.name, self.target, request)
        self._watch(request)
        self.up.send_bytes(data)
        await self._network.pause()
        while not self.down.is_cut and self.up.unread > self._network.window:
            await asyncio.sleep(0.05)

    async def read(self) -> wire.SessionResponse | object:
        while not self.down.arrived:
            if self._is_cancelled:
                raise asyncio.CancelledError
            if self._code is not None:
                return self._end()
            await self.down.wait()
        self.is_answered = True
        response = wire.SessionResponse.FromString(self.down.take())
        for order in response.continues:
            self._network.observer.told(self.client, key_of(order.key))
        for number in response.due:
            if number in self.numbers:
                self._network.observer.told(self.client, self.numbers[number])
        return response

    def _watch(self, request: wire.SessionRequest) -> None:
        observer = self._network.observer
        if len(request.left_us) not in (0, len(request.suspends)):
            observer.misused(f"left_us has {len(request.left_us)} entries for {len(request.suspends)} suspends")
        else:
            for suspension, left_seconds in with_what_is_left(request):
                observer.submitted(self.client, suspension, left_seconds)
        for number in request.applied:
            if number in self.over:
                self.over.discard(number)
                observer.applied(self.client, self.numbers[number])
            else:
                observer.misused(f"{self.client.name} has resumed {number}, which is not due in this stream")
        for result in request.results:
            if result.outcome == pb.CONTINUE_OUTCOME_APPLIED:
                observer.applied(self.client, key_of(result.key))

    def cancel(self) -> bool:
        if self._code is not None:
            return False
        self._is_cancelled = True
        self.down.arrived.clear()
        self.fail(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")
        self._network.reset_by_client(self)
        return True

    def cancelled(self) -> bool:
        return self._is_cancelled

    async def code(self) -> grpc.StatusCode:
        assert self._code is not None, "only asked for after the end"
        return self._code

    async def details(self) -> str:
        return self._details

    # What the network does to it

    def fail(self, code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, Any], ...] = ()) -> None:
        """The client learns that, and how, the stream has ended."""
        if self._code is None:
            self._code, self._details, self._trailing = code, details, trailing
            self.down.is_cut = True
            self.down.wake()

    def end_at_server(self) -> None:
        """The sidecar learns that the stream has ended."""
        self.up.is_cut = True
        if self.handler is not None:
            self.handler.cancel()

    def _end(self) -> object:
        if self._code is grpc.StatusCode.OK:
            return grpc.aio.EOF
        assert self._code is not None
        raise grpc.aio.AioRpcError(
            self._code, grpc.aio.Metadata(), grpc.aio.Metadata(*self._trailing), details=self._details
        )


class Aborted(Exception):
    """A servicer has ended its RPC with a status."""


class ServerContext:
    """A stream as its servicer sees it, in the manner of `grpc.aio.ServicerContext`; the requests are in it too."""

    def __init__(self, network: Network, call: Call, process: Process) -> None:
        self._network = network
        self._call = call
        self._process = process
        self.status: tuple[grpc.StatusCode, str, tuple[tuple[str, Any], ...]] = (grpc.StatusCode.OK, "", ())

    def peer(self) -> str:
        return self._call.client.name

    async def write(self, response: wire.SessionResponse) -> None:
        if self._process.is_alive:
            self._watch(response)
            self._network.trace("%s → %s: %s", self._process.name, self._call.client.name, response)
            self._call.down.send_bytes(response.SerializeToString())
            if response.continues or response.due:
                self._network.observer.step("continue")
            if response.frame_results:
                self._network.observer.step("acknowledge")
        await self._network.pause()
        while self._call.down.unread > self._network.window:
            await asyncio.sleep(0.05)

    def _watch(self, response: wire.SessionResponse) -> None:
        call, observer = self._call, self._network.observer
        for result in response.frame_results:
            refused = {key_of(refusal.key) for refusal in result.refusals}
            keys = call.frames[result.frame_number]
            observer.acknowledged(call, [key for key in keys if key not in refused])
            if len(result.numbers) not in (0, len(keys)):
                observer.misused(f"{len(result.numbers)} numbers for {len(keys)} suspends")
            for key, number in zip(keys, result.numbers, strict=False):
                if number and key in refused:
                    observer.misused(f"{key} was refused, and has the number {number}")
                elif number:
                    call.numbers[number] = key
                    observer.numbered(call, number, key)
        for cancelled in response.cancel_results:
            if cancelled.outcome == pb.CANCEL_OUTCOME_CANCELLED:
                observer.cancelled(call, key_of(cancelled.key))
        for continued in response.continues:
            observer.continued(call, key_of(continued.key), continued)
        for number in response.due:
            if number in call.numbers:
                call.over.add(number)
                observer.over(call, call.numbers[number])
            else:
                observer.misused(f"{number} is due, and nothing has that number in this stream")

    async def abort_with_status(self, status: Any) -> NoReturn:
        self.status = (status.code, status.details, status.trailing_metadata)
        raise Aborted

    def __aiter__(self) -> ServerContext:
        return self

    async def __anext__(self) -> SessionFrame:
        while not self._call.up.arrived:
            await self._call.up.wait()
        data = self._call.up.take()
        request = wire.SessionRequest.FromString(data)
        if request.suspends:
            self._call.frames[request.frame_number] = [key_of(suspension.key) for suspension in request.suspends]
            for suspension, left_seconds in with_what_is_left(request):
                self._network.observer.taken(self._call, suspension, left_seconds)
        if request.results or request.applied:
            self._network.observer.step("result")
        return SessionFrame.FromString(data)


class Network:
    """Streams to sidecars by name, and one pair of datagram sockets between the shim and the proxy."""

    def __init__(
        self,
        loop: VirtualLoop,
        random: Random,
        trace: Callable[..., None],
        observer: Observer,
    ) -> None:
        self.loop = loop
        self.trace = trace
        self.observer = observer
        self.sidecars: dict[str, SimulatedSidecar] = {}
        self.refused: dict[str, int] = {}
        """Targets that nobody can connect to at present, and how many reasons there are."""
        self.calls: list[Call] = []
        self.datagram_loss = random.choice([0.0, 0.0, 0.03, 0.1])
        self.datagram_doubled = random.choice([0.0, 0.05])
        self.datagram_late = random.choice([0.0, 0.05])
        self.window = random.choice([1, 8, 1000])
        """Messages of a stream that may be unread before their writer has to wait (HTTP/2's flow control)."""
        self.is_blacked_out = False
        """Whether datagrams are lost, all of them."""
        self._random = random
        self._slowest_seconds = random.choice([0.0002, 0.001, 0.005, 0.03])

    def delay_seconds(self) -> float:
        """How long the next message takes."""
        seconds = self._random.uniform(0.00005, self._slowest_seconds)
        return seconds * 20 if self._random.random() < 0.02 else seconds

    async def pause(self) -> None:
        """What a write takes."""
        await asyncio.sleep(self._random.uniform(0.0, 0.002) if self._random.random() < 0.1 else 0)

    # Streams

    def connect(self, target: str, client: Process) -> Call:
        """Open a stream; what is written to it before it has reached the sidecar waits."""
        self.calls = [call for call in self.calls if not call.is_over]
        call = Call(self, target, client)
        self.calls.append(call)
        call.up.send(lambda: self._reach(call))
        return call

    def _reach(self, call: Call) -> None:
        sidecar = self.sidecars[call.target]
        if self.refused.get(call.target) or not sidecar.accept(call):
            self.loop.call_later(
                self.delay_seconds(), call.fail, grpc.StatusCode.UNAVAILABLE, "connection refused", context=WORLD
            )

    async def serve(self, call: Call, process: Process, servicer: Any) -> None:
        """Run a servicer on a stream: a task of the sidecar."""
        context = ServerContext(self, call, process)
        with suppress(Aborted):
            await servicer.Session(context, context)
        if process.is_alive:
            call.down.send(lambda: call.fail(*context.status))

    def reset_by_client(self, call: Call) -> None:
        """The client has cancelled: the sidecar learns of it after what was sent before."""
        call.up.send(call.end_at_server)

    def cut(self, call: Call, client_after_seconds: float, server_after_seconds: float, *, lose_all: bool) -> None:
        """Break a stream; each side learns of it at its own time. Until then what was sent arrives, or nothing does."""
        self.trace(
            "cut of %s → %s: told in %.3f s and %.3f s, %s",
            call.client.name, call.target, client_after_seconds, server_after_seconds,
            "all on its way lost" if lose_all else "tails lost",
        )  # fmt: skip
        if lose_all:
            call.up.is_cut = call.down.is_cut = True
        self.loop.call_later(
            client_after_seconds, call.fail, grpc.StatusCode.UNAVAILABLE, "connection reset", context=WORLD
        )
        self.loop.call_later(server_after_seconds, call.end_at_server, context=WORLD)

    def vanish(self, process: Process, sidecar: SimulatedSidecar | None) -> None:
        """A process was killed: its kernel ends its connections, or its machine is gone and nobody says so."""
        lose_all = self._random.random() < 0.5
        for call in self.calls:
            if call.client is process:
                self.cut(call, 0.0, self._random.choice([0.001, 0.001, 12.0]), lose_all=lose_all)
            elif sidecar is not None and call.sidecar is sidecar:
                self.cut(call, self._random.choice([0.001, 0.05]), 0.0, lose_all=lose_all)

    # Datagrams

    def send_datagram(self, data: bytes, receive: Callable[[bytes], None], *, may_double: bool) -> bool:
        """Put a datagram on its way; False: nothing of it will arrive."""
        random = self._random
        if self.is_blacked_out or random.random() < self.datagram_loss:
            self.trace("datagram lost: %s", data)
            return False
        for _ in range(2 if may_double and random.random() < self.datagram_doubled else 1):
            seconds = random.uniform(0.00002, 0.0005)
            if random.random() < self.datagram_late:
                seconds += random.uniform(0.0, 0.6)
            self.loop.call_later(seconds, receive, data, context=WORLD)
        return True


def as_call(call: Call) -> Any:
    """The same, for code that wants gRPC's own class."""
    return cast("Any", call)
