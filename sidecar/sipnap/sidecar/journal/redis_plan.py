"""What is written to Redis for one front end: our ownership of it, and plans that become calls of scripts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources

from sipnap.sidecar.core.front_ends import FrontEnd
from sipnap.sidecar.core.suspension import Held
from sipnap.sidecar.journal.packing import pack

_NAPS_KEPT_MS = 3600 * 1000  # beyond the last deadline: naps of front ends that never come back anywhere
_ENTRIES_PER_SCRIPT = 1000  # Redis serves nobody else meanwhile
_BYTES_PER_SCRIPT = 1 << 20


@dataclass(slots=True, eq=False)
class Grip:
    """Our ownership of one front end."""

    front_end: FrontEnd
    """Which."""
    token: str
    """What the scripts know us by."""
    write: int = 0
    """Number of the last write tried."""
    confirmed: int = 0
    """Number of the last write known to be done."""
    is_loading: bool = True
    """What is kept of it is not all in the engine yet: nothing is written so long."""
    doubtful: set[bytes] = field(default_factory=set)
    """Naps that Redis may have and must not keep: added by a write whose outcome is unknown, or ended while loading."""

    @property
    def keys(self) -> tuple[str, str]:
        """Its owner and its naps."""
        return keys_of(self.front_end.front_end_id)


@dataclass(slots=True, eq=False)
class Plan:
    """What is to be written for one front end."""

    grip: Grip
    """For which."""
    ends: list[bytes] = field(default_factory=list)
    """Packed keys of naps to forget."""
    additions: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Packed keys and entries of naps to keep."""
    keep_until_ms: int = 0
    """When all of the additions are over, milliseconds since 1970."""
    probes: bool = False
    """Whether to find out, at the end, if additions were possible."""

    def add(self, held: Held, offset_ns: int) -> None:
        """Have one more suspension written; `offset_ns` from our clock to Redis's."""
        self.additions.append((held.packed_key, pack(held, offset_ns, time.monotonic_ns() + offset_ns)))
        deadline_ms = (int(held.deadline_seconds * 1e9) + offset_ns) // 1_000_000
        self.keep_until_ms = max(self.keep_until_ms, deadline_ms + _NAPS_KEPT_MS)

    def chunks(self) -> Iterator[list[bytes]]:
        """Arguments of each script call, from the number of ends on: ends first, a key may come again."""
        chunk, size = [b"0"], 0
        for start in range(0, len(self.ends), _ENTRIES_PER_SCRIPT):
            if len(chunk) > 1:
                yield chunk
            ends = self.ends[start : start + _ENTRIES_PER_SCRIPT]
            chunk = [b"%d" % len(ends), *ends]
        for addition in self.additions:
            chunk += addition
            size += len(addition[1])
            if size > _BYTES_PER_SCRIPT or len(chunk) > 2 * _ENTRIES_PER_SCRIPT:
                yield chunk
                chunk, size = [b"0"], 0
        if len(chunk) > 1:
            yield chunk
        if self.probes and not self.additions:
            yield [b"0"]


def script(name: str) -> bytes:
    """Its text, without what is there for people. Sent whole each time: a Redis may have forgotten its hash."""
    text = (resources.files(__package__) / f"{name}.lua").read_text()
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("--")).encode()


def keys_of(front_end_id: str) -> tuple[str, str]:
    """A front end's owner and its naps: the braces keep them in one slot of a cluster."""
    return f"sipnap:{{{front_end_id}}}:owner", f"sipnap:{{{front_end_id}}}:naps"
