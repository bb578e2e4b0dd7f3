"""One front end process: start up, main loop, drain."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from sipnap.client import collector
from sipnap.client.keys import Key
from sipnap.client.session import FrontEndSession
from sipnap.shim.sip.app import App
from sipnap.shim.sip.front_end import DEFAULT_MARGIN_SECONDS, DEFAULT_MAX_SECONDS, FrontEnd
from sipnap.shim.sip.repeated import RepeatedLog
from sipnap.shim.sip.trace import Trace
from sipnap.shim.sip.transactions import DEFAULT_MAX_TRANSACTIONS, TransactionLayer

_CONNECT_SECONDS = 2.0  # how long the start waits for a sidecar; without one it serves, with the door shut
log = logging.getLogger("sipnap.sip")


class StartError(Exception):
    """The front end cannot start; the message names the fix."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a front end needs to know."""

    app: App
    """The routes."""
    sidecars: Sequence[str]
    """Sidecars to nap at, each ``HOST:PORT`` or ``unix:PATH``; the first that answers is used."""
    host: str
    """Address to serve SIP on, without brackets."""
    port: int
    """UDP port to serve SIP on; 0: any free one."""
    front_end_id: str = "sip"
    """Its name at the sidecar: 1 to 128 characters of ``[A-Za-z0-9._:-]``."""
    credentials: grpc.ChannelCredentials | None = None
    """For TLS to the sidecar; None: plain text."""
    max_seconds: float = DEFAULT_MAX_SECONDS
    """Longest nap."""
    margin_seconds: float = DEFAULT_MARGIN_SECONDS
    """How long after its time a nap counts as lost."""
    max_transactions: int = DEFAULT_MAX_TRANSACTIONS
    """Transactions held at once."""
    drain_seconds: float = 5.0
    """How long a drain waits for calls to end."""
    trace: Path | None = None
    """File to write each call's steps to; None: none."""


async def serve(settings: Settings, on_ready: Callable[[str], None]) -> None:
    """Run a front end until SIGTERM or SIGINT; `on_ready` is told ``HOST:PORT`` when it serves.

    Raises:
        StartError: It cannot start.
    """
    await _Server(settings, on_ready).serve()


class _Server:
    def __init__(self, settings: Settings, on_ready: Callable[[str], None]) -> None:
        self._settings = settings
        self._on_ready = on_ready
        self._stop = asyncio.Event()
        self._gate_open = asyncio.Event()
        self._gate_log = RepeatedLog(log)

    async def serve(self) -> None:
        settings = self._settings
        trace = _open_trace(settings.trace) if settings.trace is not None else None
        boot_epoch = time.time_ns() // 1_000_000  # grows with each start, unless the clock is set back

        def shipped(keys: Sequence[Key]) -> None:
            front_end.shipped(keys)

        try:
            session = FrontEndSession(
                settings.sidecars,
                front_end_id=settings.front_end_id,
                boot_epoch=boot_epoch,
                credentials=settings.credentials,
                on_shipped=shipped if trace is not None else None,
            )
        except ValueError as error:
            raise StartError(f"--front-end-id: {error}") from error
        front_end = FrontEnd(
            settings.app,
            session,
            front_end_id=settings.front_end_id,
            boot_epoch=boot_epoch,
            max_seconds=settings.max_seconds,
            margin_seconds=settings.margin_seconds,
            trace=trace,
        )
        layer = _bind(front_end, settings)
        try:
            session.on_gate(self._note_gate)
            async with session:
                await self._await_sidecar()
                continues = asyncio.create_task(_apply_continues(session, front_end), name="sipnap continues")
                collector.restrain()
                tidier = asyncio.create_task(collector.collect_when_idle(lambda: session.outstanding), name="tidier")
                self._on_ready(_shown(layer.address))
                await self._wait_for_stop(continues)
                await front_end.drain(settings.drain_seconds)
                continues.cancel()
                tidier.cancel()
            counted = layer.counters
            log.info(
                "front end ended datagrams=%d requests=%d malformed=%d ignored=%d refused=%d unsent=%d",
                counted.datagrams, counted.requests, counted.malformed, counted.ignored, counted.refused, layer.unsent,
            )  # fmt: skip
        finally:
            layer.close()
            if trace is not None:
                trace.close()

    async def _await_sidecar(self) -> None:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._gate_open.wait()
        except TimeoutError:
            log.warning(
                "no sidecar yet, naps are refused until it is there; is 'sipnap serve' running, and --sidecar right? "
                "sidecar=%s",
                " ".join(self._settings.sidecars),
            )

    def _note_gate(self, is_open: bool) -> None:
        if is_open:
            self._gate_open.set()
            self._gate_log.write(
                "open", logging.INFO, "naps are accepted sidecar=%s", " ".join(self._settings.sidecars)
            )
        else:
            self._gate_log.write(
                "shut", logging.WARNING, "naps are refused at the door sidecar=%s", " ".join(self._settings.sidecars)
            )

    async def _wait_for_stop(self, continues: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({stopped, continues}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if continues.done():
            continues.result()  # it never returns: this raises what ended it

    def _signalled(self) -> None:
        if self._stop.is_set():
            log.warning("second signal: ending at once")
            os._exit(1)
        self._stop.set()


async def _apply_continues(session: FrontEndSession, front_end: FrontEnd) -> None:
    async for batch in session.batches():
        front_end.continue_all(batch)


def _bind(front_end: FrontEnd, settings: Settings) -> TransactionLayer:
    try:
        return TransactionLayer(
            front_end.receive, host=settings.host, port=settings.port, max_transactions=settings.max_transactions
        )
    except OSError as error:
        where = _shown((settings.host, settings.port))
        if error.errno == errno.EADDRINUSE:
            hint = "; another program has that UDP port: end it, or choose another port"
        elif error.errno == errno.EADDRNOTAVAIL:
            hint = "; this machine has no such address"
        else:
            hint = ""
        raise StartError(f"--bind {where}: {error.strerror or error}{hint}") from error


def _open_trace(path: Path) -> Trace:
    try:
        return Trace(path)
    except OSError as error:
        raise StartError(f"--trace {path}: {error.strerror}") from error


def _shown(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
