"""What has happened since the start, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from sipnap.sidecar.core.suspension import Outcome, Reason, Refused


@dataclass(slots=True)
class Counters:
    """What has happened since the start."""

    accepted: int = 0
    """Suspensions accepted."""
    refused: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(Reason, 0))
    """Suspensions and sleeps refused."""
    cancelled: int = 0
    """Suspensions cancelled before their time."""
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    """Continues answered for; those of an ended life of their front end count as gone."""
    lost: int = 0
    """Suspensions given up at their deadline: nobody answered for the continue."""
    slept: int = 0
    """Sleeps that ran their time."""
    dropped: int = 0
    """Suspensions that were late at a restart and whose policy is to end then."""
    fenced: int = 0
    """Writes that the journal refused because another sidecar owned the front end by then."""

    def refusal(self, reason: Reason, message: str, retry_after_seconds: float | None = None) -> Refused:
        """Count a refusal; returns the error to raise."""
        self.refused[reason] += 1
        return Refused(reason, message, retry_after_seconds)
