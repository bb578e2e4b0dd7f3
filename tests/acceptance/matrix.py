"""A load of naps while something dies, and what became of each call: the rows of the failure matrix."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.acceptance.proxy import Proxy
from tests.acceptance.sipp import Callers, asked_for, call_id_of, logged_messages
from tests.acceptance.stack import Stack
from tests.support.processes import wait_until

RATE = 500
"""Calls per second."""

NAP_MS = (500, 5000)
"""Shortest and longest nap."""

RESUMED_TWICE = "acceptance: resumed twice"
"""What the proxy's script logs when its resume route runs for a transaction that it has run for before."""

EARLIER_LIFE = "acceptance: a continue for an earlier life of the proxy"
"""What the proxy's script logs when the shim sends one."""

_FINAL = re.compile(r"SIP/2\.0 ([2-6][0-9]{2}) ")
_STATUS = re.compile(r"^X-Status: *(\w+)", re.MULTILINE)


@dataclass(slots=True)
class SeenCall:
    """One call as SIPp has logged it."""

    sent_ms: float
    """When its INVITE was first made, in ms since 1970."""
    nap_ms: float
    """How long it was to nap."""
    trying_ms: float | None = None
    """When the first 100 came: a proxy has taken it, and it is not sent again."""
    finals: dict[str, float] = field(default_factory=dict)
    """Final replies that differ, whole, and when each was logged: a repetition of one is no other one."""

    @property
    def end(self) -> str:
        """``ok``, ``failed``, ``timed_out`` or ``lost`` from the resume route, ``refused`` at the door, or ``none``."""
        if not self.finals:
            return "none"
        first = next(iter(self.finals))
        if first.startswith("SIP/2.0 503 Refused At The Door"):
            return "refused"
        status = _STATUS.search(first)
        return status[1] if status and first.startswith("SIP/2.0 404 Resumed") else "none"


def seen_calls(log: Path) -> list[SeenCall]:
    """The calls in a message log of SIPp's, in the order of their first INVITEs."""
    calls: dict[str, SeenCall] = {}
    for logged_ms, text in logged_messages(log):
        call_id = call_id_of(text)
        if text.startswith("INVITE "):
            asked = asked_for(text)
            assert asked is not None, text
            calls.setdefault(call_id, SeenCall(*asked))
        elif "CSeq: 1 INVITE" in text and call_id in calls:
            call = calls[call_id]
            if text.startswith("SIP/2.0 100 ") and call.trying_ms is None:
                call.trying_ms = logged_ms
            elif _FINAL.match(text):
                call.finals.setdefault(text.rstrip(), logged_ms)
    return list(calls.values())


@dataclass(frozen=True, slots=True)
class Row:
    """What became of the calls while something died."""

    name: str
    """What died."""
    calls: int
    """Calls placed."""
    ok: int
    """Answered from the resume route, for what they asked for."""
    failed: int
    """Answered from the resume route with the status ``failed``, at any time: the sidecar refused them after all."""
    lost: int
    """Answered from the resume route through the backstop."""
    refused: int
    """Not suspended: the script's own 503."""
    old_life: int
    """Without an answer, because the proxy that had taken them is no more."""
    unanswered: int
    """Ended in 408 or in anything else, or not at all."""
    twice: int
    """Resumed twice, or answered twice."""
    late_ms: Sequence[float] = field(repr=False)
    """Of those that are ok or lost, ascending: time from INVITE to answer, minus the nap."""
    ok_last_second: float
    """Which part of the calls of the last second was answered ok: whether all works again."""

    @classmethod
    def of(
        cls, name: str, calls: Sequence[SeenCall], proxies: Iterable[Proxy], *, restarted_ms: float | None = None
    ) -> Row:
        """Count.

        Args:
            name: What died.
            calls: All that were placed.
            proxies: All lives of the proxy.
            restarted_ms: When its present life began, in ms since 1970; what another has taken by then is not answered.
        """
        gone = [
            call
            for call in calls
            if not call.finals
            and restarted_ms is not None
            and call.trying_ms is not None
            and call.trying_ms < restarted_ms
        ]
        ends = [call.end for call in calls]
        late_ms = [
            next(iter(call.finals.values())) - call.sent_ms - call.nap_ms
            for call in calls
            if call.end in {"ok", "lost"}
        ]
        last = [call for call in calls if call.sent_ms > calls[-1].sent_ms - 1000]
        return cls(
            name=name,
            calls=len(calls),
            ok=ends.count("ok"),
            failed=ends.count("failed") + ends.count("timed_out"),
            lost=ends.count("lost"),
            refused=ends.count("refused"),
            old_life=len(gone),
            unanswered=ends.count("none") - len(gone),
            twice=sum(len(call.finals) > 1 for call in calls)
            + sum(proxy.output().count(RESUMED_TWICE) for proxy in proxies),
            late_ms=sorted(late_ms),
            ok_last_second=sum(call.end == "ok" for call in last) / len(last),
        )

    @property
    def early(self) -> int:
        """Calls answered before their nap was over, and not because it was refused."""
        return sum(late < 0 for late in self.late_ms)

    def __str__(self) -> str:
        late = self.late_ms or [float("nan")]
        old_life = f"{self.old_life} of the proxy's earlier life, " if self.old_life else ""
        failed = f"{self.failed} failed, " if self.failed else ""
        return (
            f"{self.name}: {self.calls} calls, {self.ok} ok, {failed}{self.lost} lost, {self.refused} refused at the "
            f"door, {old_life}{self.unanswered} in 408 or not at all, {self.twice} resumed twice, {self.early} early; "
            f"late p50 {late[len(late) // 2]:.1f}, p99 {late[len(late) * 99 // 100]:.1f}, at most {late[-1]:.1f} ms"
        )


class Load(Callers):
    """SIPp placing `RATE` calls a second at a stack, each with a nap of `NAP_MS`."""

    def __init__(self, directory: Path, stack: Stack, *, seconds: int, patience_ms: int = 15_000) -> None:
        """Begin.

        Args:
            directory: For SIPp's files.
            stack: Whose proxy is called.
            seconds: For how long calls are placed.
            patience_ms: How long a caller waits for each answer.
        """
        self._stack = stack
        self._log = directory / "messages.log"
        self._dice = random.Random()
        self._placed = RATE * seconds
        super().__init__(
            directory,
            stack.proxy.address,
            scenario="answered.xml",
            rate=RATE,
            calls=self._placed,
            nap_ms=NAP_MS,
            keys=("-recv_timeout", str(patience_ms)),
            seed=self._dice.getrandbits(32),
        )

    def wait_some_time(self) -> None:
        """Wait until calls come and go, and then for a random part of half a second."""
        wait_until(lambda: self._stack.counters().applied > RATE // 2, 10, "calls come and go")
        self.wait_seconds(self._dice.uniform(0, 0.5))

    @staticmethod
    def wait_seconds(seconds: float) -> None:
        """Wait while the load goes on."""
        end = time.monotonic() + seconds
        wait_until(lambda: time.monotonic() >= end, seconds + 1, f"{seconds} s")

    def calls(self) -> list[SeenCall]:
        """Wait until the last call has ended, and return all."""
        self.wait(60)
        calls = seen_calls(self._log)
        assert len(calls) == self._placed, self.errors()
        return calls


def check(row: Row, say: Callable[[str], None], *, may_fail: bool = False) -> None:
    """Print a row, and hold it against what each row promises.

    Args:
        row: What became of the calls.
        say: Prints it.
        may_fail: Whether the sidecar may refuse naps that the proxy has suspended already.

    Raises:
        AssertionError: A call hung, ended in 408, was resumed twice or before its time, or later than the backstop.
    """
    say(str(row))
    assert (row.unanswered, row.twice, row.early) == (0, 0, 0), row
    assert row.failed == 0 or may_fail, row
    assert row.ok + row.failed + row.lost + row.refused + row.old_life == row.calls, row
    assert row.late_ms[-1] < 3000, f"the backstop comes after 1 s: {row}"
