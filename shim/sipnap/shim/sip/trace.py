"""A file with one JSON line for each step of each call: to see where a call's time goes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Protocol


class TracedCall(Protocol):
    """What the trace needs to know of a call."""

    @property
    def call_id(self) -> str:
        """Value of Call-ID."""
        ...

    @property
    def method(self) -> str:
        """Request method."""
        ...


class Trace:
    """Appends events to a file.

    Steps: received, replied, suspended, shipped, continued, refused, lost, cancelled, expired.
    """

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            OSError: It cannot be written.
        """
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, step: str, call: TracedCall, **fields: object) -> None:
        """Append one event; its `at` is seconds on the machine's monotonic clock, the same in every process."""
        event = {"at": time.monotonic(), "step": step, "call_id": call.call_id, "method": call.method, **fields}
        self._file.write(json.dumps(event) + "\n")  # pure ASCII, whatever the Call-ID holds

    def close(self) -> None:
        """Close the file."""
        self._file.close()
