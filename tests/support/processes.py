"""Real processes for tests: started on free ports, waited for with a bound, ended with their whole process group."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

READY_SECONDS = 20.0
"""How long a process may take until it is ready: two cores are shared by everything."""

_OUTPUT_TAIL_BYTES = 6000
_ENDED = ("Z", "X")  # nobody has asked for its exit code yet; its sockets are closed
_given_ports: set[int] = set()


def free_port() -> int:
    """A loopback port that nobody holds on UDP or TCP, and that this test run has not been given before."""
    for _ in range(200):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given_ports:
            _given_ports.add(port)
            return port
    raise RuntimeError("no free loopback port found")


def wait_until(condition: Callable[[], object], seconds: float, what: str | Callable[[], str]) -> None:
    """Ask again and again, until the condition holds.

    Raises:
        AssertionError: It did not hold within so many seconds; says `what` was waited for.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what() if callable(what) else what}")
        time.sleep(0.01)


class Process:
    """One process with its own group; its output goes to a file, so that it can never block on us.

    Usable as a context manager; leaving it kills the group.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        ready: str | None = None,
        ready_seconds: float = READY_SECONDS,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Start it, and wait until a line of its output matches the regular expression `ready`, if one is given.

        Raises:
            AssertionError: It ended, or took longer than `ready_seconds`, before it was ready; says what it printed.
        """
        self.name = name
        self._is_killed = False
        self._output_file = tempfile.TemporaryFile(prefix=f"sipnap-test-{name}-")  # noqa: SIM115 - closed with the process
        self._popen = subprocess.Popen(
            [str(part) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=self._output_file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
        if ready is not None:
            try:
                self.wait_output(ready, ready_seconds)
            except BaseException:
                self.kill()
                raise

    @property
    def pid(self) -> int:
        """Its process id, and that of its group."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal's number if a signal ended it."""
        return self._popen.poll()

    def output(self) -> str:
        """All that it printed so far on standard output and standard error."""
        return self._read(0)

    def tail(self) -> str:
        """The end of its output, for messages about failures."""
        size = os.fstat(self._output_file.fileno()).st_size
        text = self._read(max(0, size - _OUTPUT_TAIL_BYTES))
        return f"--- {self.name} (pid {self.pid}, exit code {self.exit_code}) said:\n{text}\n---"

    def wait_output(self, pattern: str, seconds: float = READY_SECONDS) -> re.Match[str]:
        """Wait until a line of its output matches.

        Raises:
            AssertionError: It ended, or the time passed, without that.
        """
        compiled = re.compile(pattern, re.MULTILINE)
        deadline = time.monotonic() + seconds
        while True:
            ended = self.exit_code is not None  # asked before reading: what it said last counts too
            if match := compiled.search(self.output()):
                return match
            if ended or time.monotonic() > deadline:
                why = "ended" if ended else f"took longer than {seconds:g} s"
                raise AssertionError(f"{self.name} {why} without printing {pattern!r}\n{self.tail()}")
            time.sleep(0.01)

    def wait(self, seconds: float) -> int:
        """Wait for its end and return its exit code.

        Raises:
            AssertionError: It still runs after so many seconds.
        """
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {seconds:g} s\n{self.tail()}") from None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself."""
        self._popen.send_signal(number)

    def stop(self, seconds: float = 10.0) -> int:
        """Ask it to end (SIGTERM) and return its exit code; it is killed if it does not.

        Raises:
            AssertionError: It had to be killed.
        """
        try:
            if self.exit_code is None:
                self.signal(signal.SIGTERM)
            return self.wait(seconds)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the whole group at once, and wait until it holds no port any more; harmless when it has ended."""
        if self._is_killed:
            return  # by now its number may be another's
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        # The last of Kamailio's processes may end some time after the first one.
        wait_until(lambda: all(fields[0] in _ENDED for fields in self._stats()), 10, f"all of {self.name} ends")
        self._is_killed = True

    def cpu_seconds(self) -> float:
        """CPU time that the group has used so far, user and system, of the processes that still live."""
        ticks = sum(int(fields[11]) + int(fields[12]) for fields in self._stats())
        return ticks / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if error is not None and hasattr(error, "add_note"):
            error.add_note(self.tail())
        self._output_file.close()

    def _stats(self) -> Iterator[list[str]]:
        """Of each process of the group, what /proc says of it from its state on (proc(5))."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            if int(fields[2]) == self.pid:
                yield fields

    def _read(self, offset: int) -> str:
        chunks = []
        while chunk := os.pread(self._output_file.fileno(), 1 << 20, offset):
            chunks.append(chunk)
            offset += len(chunk)
        return b"".join(chunks).decode(errors="replace")


def sipnap(*arguments: str | Path) -> list[str | Path]:
    """The command line that runs `sipnap` with this interpreter, whether installed or not."""
    return [sys.executable, "-m", "sipnap.client", *arguments]


class Sidecar(Process):
    """`sipnap serve` on a free loopback port with the memory journal."""

    def __init__(self, *flags: str | Path, port: int | None = None) -> None:
        """Start it and wait until it is ready; `flags` come after, and so win over, those given here."""
        self.port = port or free_port()
        self.target = f"127.0.0.1:{self.port}"
        super().__init__(
            "sidecar",
            sipnap("serve", "--listen", self.target, "--journal", "memory", *flags),
            ready=r"^sipnap serve: ready on ",
        )
