"""Workers of kind process: child processes of the sidecar's own, for operations that compute.

Each child is a ``sipnap worker`` with one place, which speaks `WorkerService` over a Unix socket that only this user
can reach. So a job of theirs has a lease like any other remote job; what is added here is that somebody starts them,
replaces those that end, and ends them with the sidecar.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence
from pathlib import Path

import grpc.aio

from sipnap.client.channel import MAX_MESSAGE_BYTES
from sipnap.client.operations import load_operations
from sipnap.client.settings import ENVIRONMENT_PREFIX
from sipnap.sidecar.core.groups import Job, WorkerGroup, WorkerKind
from sipnap.sidecar.services.worker import WorkerServicer
from sipnap.sidecar.workers.remote import RemotePool
from sipnap.v1.worker_service_pb2_grpc import add_WorkerServiceServicer_to_server

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]

_SHORTEST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0
_START_SECONDS = 20.0
_END_SECONDS = 5.0
_PREFIX, _SOCKET = "sipnap-workers-", "workers.sock"
_STALE_SECONDS = 60.0
_STANDARD_ERROR = 2
_STARTING_AT_ONCE = max(2, os.cpu_count() or 1)

log = logging.getLogger("sipnap.workers")


class ProcessPool:
    """The children of all groups of kind process. See `sipnap.sidecar.workers.base.WorkerPool`."""

    def __init__(
        self,
        pool: RemotePool,
        instance_id: str,
        max_result_bytes: int,
        modules: Sequence[str],
        log_format: str = "text",
    ) -> None:
        """Begin without children; `start` makes them.

        Args:
            pool: Leases the jobs.
            instance_id: The sidecar's.
            max_result_bytes: Largest result of one job, encoded.
            modules: Python modules whose operations the children offer, besides those of installed packages.
            log_format: How the children write their log, which is the sidecar's standard error.
        """
        self._pool = pool
        self._modules = list(modules)
        self._log_format = log_format
        self._servicer = WorkerServicer(
            pool, instance_id, max_result_bytes, kind=WorkerKind.PROCESS, on_join=self._joined
        )
        self._server: grpc.aio.Server | None = None
        self._directory: Path | None = None
        self._children: dict[WorkerGroup, list[_Child]] = {}
        self._fitted: dict[WorkerGroup, int] = {}
        self._awaited: dict[str, asyncio.Event] = {}
        self._starting = asyncio.Semaphore(_STARTING_AT_ONCE)
        self._last_number = 0
        for group in self._groups:
            group.operations = frozenset(load_operations(modules))

    @property
    def pids(self) -> list[int]:
        """Process ids of the children that live."""
        children = (child for children in self._children.values() for child in children)
        return [child.process.pid for child in children if child.process is not None]

    async def start(self) -> None:
        """Open the socket and start the children; does not wait until they are ready."""
        parent = Path(os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or tempfile.gettempdir())
        _sweep(parent)
        self._directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))  # of this user alone: mode 0700
        self._server = grpc.aio.server(options=_OPTIONS)
        add_WorkerServiceServicer_to_server(self._servicer, self._server)
        self._server.add_insecure_port(self._target)
        await self._server.start()
        for group in self._groups:
            self._fit(group)

    async def close(self) -> None:
        """End the children: what they still run is lost."""
        children = [child for children in self._children.values() for child in children]
        for child in children:
            child.retire()
        if children:
            await asyncio.wait([child.task for child in children], timeout=_END_SECONDS)
        for child in children:
            child.kill()
        await asyncio.gather(*(child.task for child in children), return_exceptions=True)
        if self._server is not None:
            await self._server.stop(None)
            self._server = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def wake(self, group: WorkerGroup) -> None:
        """See `WorkerPool`. The group may have another number of workers by now."""
        if self._server is not None:
            self._fit(group)
        self._pool.wake(group)

    def stop(self, job: Job) -> None:
        """See `WorkerPool`."""
        self._pool.stop(job)

    # Children

    @property
    def _groups(self) -> list[WorkerGroup]:
        return self._pool.groups(WorkerKind.PROCESS)

    def _fit(self, group: WorkerGroup) -> None:
        """Start children, or have some retire, until the group has as many as it is to have."""
        if self._fitted.get(group) == group.workers:
            return
        self._fitted[group] = group.workers
        children = self._children.setdefault(group, [])
        staying = [child for child in children if not child.is_retiring]
        for _ in range(group.workers - len(staying)):
            self._last_number += 1
            children.append(_Child(self, group, self._last_number))
        if len(staying) > group.workers:
            busy = {worker.worker_id for worker in self._pool.desk(group).book.workers if worker.leases}
            # The idle ones first, and of those the youngest.
            staying.sort(key=lambda child: (child.worker_id in busy, -child.number))
            for child in staying[: len(staying) - group.workers]:
                child.retire()

    def forget(self, child: _Child) -> None:
        """A child that retired has ended."""
        self._children[child.group].remove(child)

    async def spawn(self, child: _Child) -> tuple[Process, bool]:
        """Start a child's process and wait until it has joined, has ended, or takes too long.

        Returns:
            The process, and whether it has joined.
        """
        async with self._starting:  # some at a time: a hundred Pythons that start take the CPU from everybody
            joined = self._awaited[child.worker_id] = asyncio.Event()
            try:
                process = child.process = await asyncio.create_subprocess_exec(
                    *self._command(child),
                    stdin=DEVNULL,
                    stdout=_STANDARD_ERROR,
                    env=_environment(),
                    process_group=0,  # the terminal's Ctrl-C is for the sidecar, which drains
                )
                waits = {asyncio.ensure_future(joined.wait()), asyncio.ensure_future(process.wait())}
                await asyncio.wait(waits, timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()
            finally:
                del self._awaited[child.worker_id]
        return process, joined.is_set()

    def _joined(self, worker_id: str) -> None:
        if worker_id in self._awaited:
            self._awaited[worker_id].set()

    def _command(self, child: _Child) -> list[str]:
        words = [sys.executable, "-P", "-m", "sipnap.client", "worker", "--sidecar", self._target]
        words += ["--group", child.group.name, "--worker-id", child.worker_id, "--concurrency", "1"]
        words += ["--with-parent", str(os.getpid()), "--log-level", "warning", "--log-format", self._log_format]
        for module in self._modules:
            words += ["--operations", module]
        return words

    @property
    def _target(self) -> str:
        return f"unix:{self._directory}/{_SOCKET}"


class _Child:
    """One place for a child process, which is filled again when the process ends."""

    def __init__(self, pool: ProcessPool, group: WorkerGroup, number: int) -> None:
        self.group = group
        self.number = number
        self.worker_id = f"{group.name}.{number}"
        self.is_retiring = False
        self.process: Process | None = None
        self._pool = pool
        self.task = asyncio.get_running_loop().create_task(self._keep(), name=f"sipnap process {self.worker_id}")

    def retire(self) -> None:
        """Have it finish what it has, and not be replaced."""
        self.is_retiring = True
        if self.process is not None:
            self._signal(signal.SIGTERM)
        else:
            self.task.cancel()

    def kill(self) -> None:
        """End it now."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)

    async def _keep(self) -> None:
        failures = 0
        try:
            while not self.is_retiring:
                has_joined = False
                try:
                    process, has_joined = await self._pool.spawn(self)
                    ending = _ending(process.pid, await process.wait())
                except OSError as error:
                    ending = str(error)
                self.process = None
                failures = 0 if has_joined else failures + 1
                if not self.is_retiring:
                    await self._report_and_pause(ending, failures)
        finally:
            self._pool.forget(self)

    async def _report_and_pause(self, ending: str, failures: int) -> None:
        if not failures:
            log.warning(
                "process worker ended, it is replaced group=%s worker=%s %s", self.group.name, self.worker_id, ending
            )
            return
        pause_seconds = min(_SHORTEST_PAUSE_SECONDS * 2**failures, _LONGEST_PAUSE_SECONDS) * random.uniform(0.5, 1.0)
        log.error(
            "process worker does not start, what it printed says why group=%s worker=%s %s next_try_seconds=%.1f",
            self.group.name, self.worker_id, ending, pause_seconds,
        )  # fmt: skip
        await asyncio.sleep(pause_seconds)


def _ending(pid: int, exit_code: int) -> str:
    return f"pid={pid} " + (f"signal={signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit_code={exit_code}")


def _sweep(parent: Path) -> None:
    """Remove what sidecars left behind that were killed: directories of ours where nobody listens any more."""
    for directory in parent.glob(f"{_PREFIX}*"):
        try:
            found = directory.stat()
            if found.st_uid != os.getuid() or time.time() - found.st_mtime < _STALE_SECONDS:
                continue
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(directory / _SOCKET))
        except ConnectionRefusedError:
            shutil.rmtree(directory, ignore_errors=True)
        except OSError:
            continue


def _environment() -> dict[str, str]:
    """What a child inherits: the paths that modules are found on, and none of the sidecar's own settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    return {**inherited, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
