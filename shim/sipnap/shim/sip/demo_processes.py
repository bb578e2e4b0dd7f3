"""The two processes of the demo, started as a user would start them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

START_SECONDS = 20.0
"""How long a process may take until it is ready."""

_STOP_SECONDS = 5.0


class DemoError(Exception):
    """The demo could not be carried out."""


class DemoProcess:
    """One `sipnap` process with its output in a file. A context manager; leaving it ends the process."""

    def __init__(self, folder: Path, *words: str) -> None:
        """Start `sipnap` with these words.

        Args:
            folder: Where its output goes.
            words: The command line after ``sipnap``.
        """
        self.name = "sipnap " + " ".join(word for word in words[:2] if not word.startswith("-"))
        self._output = folder / (self.name.replace(" ", "-") + ".log")
        # Settings of this machine's real services must not reach the demo's.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SIPNAP_")}
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sipnap.client", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def output(self) -> str:
        """All that it has printed."""
        return self._output.read_text(errors="replace")

    def await_line(self, pattern: str, timeout_seconds: float = START_SECONDS) -> re.Match[str]:
        """Wait until it prints a line that the regular expression finds.

        Raises:
            DemoError: It ended first, or took too long.
        """
        deadline_seconds = time.monotonic() + timeout_seconds
        while (found := re.search(pattern, self.output(), re.MULTILINE)) is None:
            if self._process.poll() is not None:
                raise DemoError(f"{self.name} ended with exit code {self._process.returncode}:\n{self.output()}")
            if time.monotonic() > deadline_seconds:
                raise DemoError(f"{self.name} did not print {pattern!r} in {timeout_seconds:g} s:\n{self.output()}")
            time.sleep(0.01)
        return found

    def stop(self) -> int:
        """Have it drain, and return its exit code.

        Raises:
            DemoError: It did not end.
        """
        self._process.terminate()
        try:
            return self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise DemoError(f"{self.name} did not end in {_STOP_SECONDS:g} s:\n{self.output()}") from None
