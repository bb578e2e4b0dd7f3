"""One sidecar process: start up, main loop, drain."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from sipnap.client import collector
from sipnap.client.channel import MAX_MESSAGE_BYTES
from sipnap.client.operations import Operation
from sipnap.sidecar import listener
from sipnap.sidecar.core.engine import Engine
from sipnap.sidecar.core.groups import DEFAULT_GROUP, WorkerKind
from sipnap.sidecar.core.suspension import Limits
from sipnap.sidecar.dispatcher import Dispatcher
from sipnap.sidecar.group_settings import GroupSettings, make_groups, reload_groups
from sipnap.sidecar.hand_over import HandOver
from sipnap.sidecar.journal.base import Durability, Journal
from sipnap.sidecar.journal.memory import MemoryJournal
from sipnap.sidecar.listener import Address, ListenError
from sipnap.sidecar.metrics import serve_metrics
from sipnap.sidecar.recovery import recover
from sipnap.sidecar.services.admin import AdminServicer
from sipnap.sidecar.services.front_end import FrontEndServicer, add_front_end_service
from sipnap.sidecar.services.handed_over import SharedNapServicer
from sipnap.sidecar.services.nap import NapServicer
from sipnap.sidecar.services.worker import WorkerServicer
from sipnap.sidecar.workers.coroutines import CoroutinePool
from sipnap.sidecar.workers.processes import ProcessPool
from sipnap.sidecar.workers.remote import LEASE_SECONDS, RemotePool
from sipnap.sidecar.workers.shared import SharedPool
from sipnap.v1 import admin_service_pb2, front_end_service_pb2, nap_service_pb2, worker_service_pb2
from sipnap.v1.admin_service_pb2_grpc import add_AdminServiceServicer_to_server
from sipnap.v1.nap_service_pb2_grpc import add_NapServiceServicer_to_server
from sipnap.v1.worker_service_pb2_grpc import add_WorkerServiceServicer_to_server

_OPTIONS: list[tuple[str, int]] = [
    # A second sidecar on the port must fail to start, not share it silently.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A front end whose machine vanished must not look connected for hours.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Our own clients ping every 10 s; gRPC's default would call that abuse and hang up.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
]

_LAST_WORDS_SECONDS = 0.5

log = logging.getLogger("sipnap.sidecar")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a sidecar needs to know."""

    listen: Address
    """Where it serves gRPC."""
    journal: Journal = field(default_factory=MemoryJournal)
    """Where acceptances are kept."""
    limits: Limits = field(default_factory=Limits)
    """What it refuses."""
    groups: Sequence[GroupSettings] = (GroupSettings(DEFAULT_GROUP, 16),)
    """The worker groups."""
    max_queued: int = 10_000
    """Most operations that wait in a group which says nothing itself."""
    close_operations: Callable[[], Awaitable[None]] | None = None
    """Awaited at the end: some hold connections."""
    operations: Mapping[str, Operation] = field(default_factory=dict)
    """What the workers know."""
    operation_modules: Sequence[str] = ()
    """Modules whose operations worker processes load themselves."""
    lease_seconds: float = LEASE_SECONDS
    """How long a job is left to a worker of another process that gives no sign of life."""
    log_format: str = "text"
    """How worker processes write their log."""
    metrics: Address | None = None
    """Where it serves Prometheus metrics; None: nowhere."""
    tls_certificate: Path | None = None
    """Its certificate chain; None: plain text."""
    tls_private_key: Path | None = None
    """The key that belongs to it."""
    tls_ca: Path | None = None
    """What client certificates are checked against; None: clients need none."""
    insecure: bool = False
    """Plain text on an address that other machines can reach is meant so."""
    drain_seconds: float = 60.0
    """How long a drain waits for what is held to end."""
    reread_groups: Callable[[], Sequence[GroupSettings]] | None = None
    """Reads the worker groups' settings again, at SIGHUP; raises ValueError if they are none."""


class Sidecar:
    """A sidecar that serves until it is told to stop. Use `serve`."""

    def __init__(self, settings: Settings, on_ready: Callable[[Address], None]) -> None:
        self._settings = settings
        self._on_ready = on_ready
        self._stop = asyncio.Event()
        self.version = metadata.version("sipnap")
        self.instance_id = secrets.token_hex(8)
        self._hand_over: HandOver | None = None

    def stop(self) -> None:
        """Drain at the first call, end at once at the second."""
        if self._stop.is_set():
            log.warning("second signal: ending at once")
            os._exit(1)
        self._stop.set()

    async def serve(self) -> None:
        """Start up, serve, drain.

        Raises:
            ListenError: It cannot or will not listen there.
            JournalError: The journal cannot be opened or read.
        """
        settings = self._settings
        asyncio.get_running_loop().add_signal_handler(  # which would end the process, as long as a recovery takes
            signal.SIGHUP, log.warning, "SIGHUP came before the sidecar was ready, it is ignored"
        )
        engine = Engine(
            asyncio.get_running_loop().time,
            settings.limits,
            make_groups(settings.groups, settings.max_queued),
            settings.operations,
        )
        dispatcher = Dispatcher(engine, settings.journal)
        tasks = settings.journal.tasks
        shared_pool = SharedPool(dispatcher, tasks, self.instance_id) if tasks is not None else None
        remote_pool = RemotePool(dispatcher, settings.lease_seconds, shared_pool.make_queue if shared_pool else None)
        process_pool = ProcessPool(
            remote_pool, self.instance_id, settings.limits.max_entry_bytes, settings.operation_modules,
            settings.log_format,
        )  # fmt: skip
        dispatcher.pools |= {
            WorkerKind.ASYNC: CoroutinePool(dispatcher, settings.operations),
            WorkerKind.REMOTE: shared_pool or remote_pool,
            WorkerKind.PROCESS: process_pool,
        }
        async with AsyncExitStack() as stack:
            stack.push_async_callback(settings.journal.close)
            if settings.close_operations is not None:
                stack.push_async_callback(settings.close_operations)
            server = grpc.aio.server(options=_OPTIONS)
            checks = self._add_services(server, dispatcher, remote_pool)
            # Before the journal is opened: two sidecars on one address is the commoner slip.
            address = self._bind(server)
            stack.callback(listener.remove, address)
            settings.journal.introduce(self.instance_id, f"{socket.gethostname()} {address}")
            await recover(engine, settings.journal)
            if shared_pool is not None and self._hand_over is not None:
                shared_pool.start(remote_pool, self._hand_over)
                stack.push_async_callback(shared_pool.close)
            dispatcher.start()
            await server.start()
            stack.push_async_callback(server.stop, _LAST_WORDS_SECONDS)
            if remote_pool.groups(WorkerKind.PROCESS):
                await process_pool.start()
                stack.push_async_callback(process_pool.close)
            if settings.metrics is not None:
                stack.callback(self._serve_metrics(dispatcher, settings.metrics))
            committer = asyncio.create_task(dispatcher.commit_forever(), name="sipnap committer")
            stack.callback(committer.cancel)
            if self._hand_over is not None:
                stack.callback(asyncio.create_task(self._hand_over.serve_forever(), name="sipnap letters").cancel)
            collector.restrain()
            tidier = asyncio.create_task(collector.collect_when_idle(lambda: engine.held_count), name="sipnap tidier")
            stack.callback(tidier.cancel)
            await checks.set("", health_pb2.HealthCheckResponse.SERVING)
            self._log_start(address, dispatcher)
            self._on_ready(address)
            await self._wait_for_stop(dispatcher, committer)
            await self._drain(dispatcher, checks, shared_pool)
            remote_pool.go_away()
            await dispatcher.commit_once()
        log.info("sidecar ended instance=%s", self.instance_id)

    def _add_services(
        self, server: grpc.aio.Server, dispatcher: Dispatcher, remote_pool: RemotePool
    ) -> health.aio.HealthServicer:
        checks = health.aio.HealthServicer()
        mailbox = dispatcher.journal.mailbox
        if mailbox is None:
            add_NapServiceServicer_to_server(NapServicer(dispatcher), server)
        else:
            servicer = SharedNapServicer(dispatcher, mailbox, self.instance_id)
            add_NapServiceServicer_to_server(servicer, server)
            self._hand_over = servicer.hand_over
        add_front_end_service(server, FrontEndServicer(dispatcher, self.instance_id))
        add_AdminServiceServicer_to_server(AdminServicer(dispatcher, self.instance_id, self.version), server)
        workers = WorkerServicer(remote_pool, self.instance_id, self._settings.limits.max_entry_bytes)
        add_WorkerServiceServicer_to_server(workers, server)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        names = [
            module.DESCRIPTOR.services_by_name[name].full_name
            for module, name in (
                (nap_service_pb2, "NapService"),
                (front_end_service_pb2, "FrontEndService"),
                (admin_service_pb2, "AdminService"),
                (worker_service_pb2, "WorkerService"),
            )
        ]
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        return checks

    def _bind(self, server: grpc.aio.Server) -> Address:
        settings = self._settings
        address = settings.listen
        credentials = self._credentials()
        listener.check(address, has_tls=credentials is not None, insecure=settings.insecure)
        previous_mask = os.umask(0o177 if address.path else 0o077)
        try:
            if credentials is None:
                port = server.add_insecure_port(str(address))
            else:
                port = server.add_secure_port(str(address), credentials)
        except RuntimeError as error:
            raise ListenError(
                f"--listen {address}: cannot be bound; is another sidecar running there? ({error})"
            ) from error
        finally:
            os.umask(previous_mask)
        listener.protect(address)
        return address if address.path else Address(host=address.host, port=port)

    def _credentials(self) -> grpc.ServerCredentials | None:
        settings = self._settings
        if settings.tls_certificate is None or settings.tls_private_key is None:
            if settings.tls_certificate or settings.tls_private_key or settings.tls_ca:
                raise ListenError("TLS needs both --tls-cert and --tls-key")
            return None
        try:
            chain = (settings.tls_private_key.read_bytes(), settings.tls_certificate.read_bytes())
            ca = settings.tls_ca.read_bytes() if settings.tls_ca else None
        except OSError as error:
            raise ListenError(f"TLS: cannot read {error.filename}: {error.strerror}") from error
        return grpc.ssl_server_credentials([chain], root_certificates=ca, require_client_auth=ca is not None)

    def _serve_metrics(self, dispatcher: Dispatcher, address: Address) -> Callable[[], None]:
        if address.path:
            raise ListenError("--metrics takes HOST:PORT: Prometheus does not scrape Unix sockets")
        try:
            port, close = serve_metrics(dispatcher, self.version, address.host, address.port)
        except OSError as error:
            raise ListenError(f"--metrics {address}: cannot be bound: {error.strerror}") from error
        log.info("metrics on http://%s/metrics", Address(host=address.host, port=port))
        return close

    def _log_start(self, address: Address, dispatcher: Dispatcher) -> None:
        settings = self._settings
        log.info(
            "sidecar started version=%s instance=%s listen=%s tls=%s journal=%s max_seconds=%g max_pending=%d "
            "groups=%s operations=%s",
            self.version, self.instance_id, address,
            "mutual" if settings.tls_ca else "server" if settings.tls_certificate else "off",
            dispatcher.journal.kind, settings.limits.max_delay_seconds, settings.limits.max_pending,
            ",".join(f"{group.name}:{group.kind.value}:{group.workers}" for group in settings.groups),
            ",".join(sorted(settings.operations)) or "none",
        )  # fmt: skip

    async def _wait_for_stop(self, dispatcher: Dispatcher, committer: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        if self._settings.reread_groups is not None:
            loop.add_signal_handler(signal.SIGHUP, reload_groups, dispatcher, self._settings.reread_groups)
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({stopped, committer}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if committer.done():
            committer.result()  # it never returns: this raises what ended it

    async def _drain(
        self, dispatcher: Dispatcher, checks: health.aio.HealthServicer, shared_pool: SharedPool | None
    ) -> None:
        engine = dispatcher.engine
        if shared_pool is not None:
            shared_pool.leave()
        await checks.enter_graceful_shutdown()
        dispatcher.announce_drain("the sidecar is shutting down")
        log.info(
            "draining held=%d sleeping=%d seconds=%g; a second signal ends at once",
            engine.held_count, engine.sleepers, self._settings.drain_seconds,
        )  # fmt: skip
        is_kept = self._settings.journal.durability is not Durability.MEMORY
        loop = asyncio.get_running_loop()
        end_seconds = loop.time() + self._settings.drain_seconds

        def is_busy() -> bool:
            # What the journal keeps goes on after the next start; what only this process knows is waited for.
            if not is_kept:
                return bool(engine.held_count or engine.sleepers)
            if shared_pool is None:
                return engine.jobs.running_count > 0
            here = (group for group in engine.jobs.groups.values() if group.kind is not WorkerKind.REMOTE)
            return shared_pool.busy > 0 or any(group.running for group in here)

        while loop.time() < end_seconds and is_busy():
            await asyncio.sleep(0.02)
        if is_kept:
            log.info("naps are kept for the next start held=%d", engine.held_count)
        elif engine.held_count or engine.sleepers:
            log.error(
                "drain time is over, naps are lost with the memory journal held=%d sleeping=%d",
                engine.held_count, engine.sleepers,
            )  # fmt: skip


async def serve(settings: Settings, on_ready: Callable[[Address], None]) -> None:
    """Run a sidecar until SIGTERM or SIGINT; `on_ready` is told the address when it serves.

    Raises:
        ListenError: It cannot or will not listen there.
        JournalError: The journal cannot be opened or read.
    """
    await Sidecar(settings, on_ready).serve()
