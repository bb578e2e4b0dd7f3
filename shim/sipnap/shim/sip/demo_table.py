"""What the demo's calls promised, whether they kept it, and the table that shows it. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sipnap.shim.sip.demo_calls import CallRecord

MAX_LATE_SECONDS = 0.5
"""How late a resumed call may be answered."""

MAX_AT_ONCE_SECONDS = 0.25
"""What counts as at once: the 487 after a CANCEL, the 503 of a refused nap."""

_STEPS = ("INVITE", "100", "suspended", "shipped", "CANCEL", "due", "continued", "final")


@dataclass(frozen=True, slots=True)
class Timeline:
    """One call as the caller and the front end saw it. Times are seconds on the machine's monotonic clock."""

    title: str
    """What the call shows."""
    record: CallRecord
    """The caller's side."""
    steps: dict[str, float]
    """The front end's side: when it took each step, by name (`trace.Trace`)."""
    nap_seconds: float | None
    """How long the call was to nap, or its operation to take; None: not at all."""
    expected_code: int
    """Status code of the final response that was promised."""
    expected_contact: str = ""
    """Its Contact; empty: none."""
    status: str = ""
    """Status that the call was continued with; empty if it was not."""
    held_after_cancel: int | None = None
    """Suspensions that the sidecar still held after the CANCEL; None: nobody asked."""

    @property
    def due_at(self) -> float | None:
        """When the nap was to end."""
        if self.nap_seconds is None or "suspended" not in self.steps:
            return None
        return self.steps["suspended"] + self.nap_seconds


def broken_promises(timeline: Timeline) -> Iterator[str]:
    """What went otherwise than promised, for people; nothing if all went well."""
    record, steps = timeline.record, timeline.steps
    if record.final_code != timeline.expected_code:
        yield f"answered {record.final_code} {record.final_reason}, not {timeline.expected_code}"
    if (contact := record.final_headers.get("contact", "")) != timeline.expected_contact:
        yield f"sent to {contact or 'nobody'}, not to {timeline.expected_contact or 'nobody'}"
    if record.trying_at is None:
        yield "no 100 Trying"
    if record.retransmissions:
        yield f"the INVITE had to be sent {record.retransmissions + 1} times"
    if timeline.nap_seconds is None:
        if "suspended" in steps:
            yield "it was suspended, with the sidecar stopped"
        yield from _at_once("the refusal", record.invite_at, record.final_at)
    elif record.cancel_at is not None:
        if record.cancel_code != 200:
            yield f"the CANCEL was answered {record.cancel_code}, not 200"
        if "continued" in steps:
            yield "it was continued after the CANCEL"
        if timeline.held_after_cancel != 0:
            yield f"the sidecar still holds {timeline.held_after_cancel} naps after the CANCEL"
        yield from _at_once("the 487", record.cancel_at, record.final_at)
    else:
        yield from _in_time(timeline)


def verdict(timeline: Timeline) -> str:
    """One line for people about a call that kept its promise."""
    record = timeline.record
    final_at = record.final_at or 0.0
    if timeline.nap_seconds is None:
        return f"refused at the door and answered {(final_at - record.invite_at) * 1e3:.1f} ms after the INVITE"
    if record.cancel_at is not None:
        return f"487 came {(final_at - record.cancel_at) * 1e3:.1f} ms after the CANCEL (200); the sidecar let it go"
    due_at = timeline.due_at or 0.0
    late_ms = (timeline.steps["continued"] - due_at) * 1e3
    return (
        f"continued {late_ms:.1f} ms after it was due, answered {(final_at - due_at) * 1e3:.1f} ms after; never early"
    )


def rows(timelines: Sequence[Timeline]) -> Iterator[list[str]]:
    """The table, its heading first: a row for each call, milliseconds since its INVITE."""
    yield ["call", *_STEPS, "reply"]
    for timeline in timelines:
        record, steps = timeline.record, timeline.steps
        times = (
            record.invite_at,
            record.trying_at,
            steps.get("suspended"),
            steps.get("shipped"),
            record.cancel_at,
            timeline.due_at,
            steps.get("continued"),
            record.final_at,
        )
        cells = ["-" if at is None else f"{(at - record.invite_at) * 1e3:.1f}" for at in times]
        yield [timeline.title, *cells, f"{record.final_code} {record.final_reason}"]


def aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    last = len(widths) - 1
    for row in table:
        cells = [
            f"{cell:<{width}}" if number in (0, last) else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _at_once(what: str, from_at: float, to_at: float | None) -> Iterator[str]:
    if to_at is None or to_at - from_at > MAX_AT_ONCE_SECONDS:
        took = "never came" if to_at is None else f"took {(to_at - from_at) * 1e3:.0f} ms"
        yield f"{what} {took}; at most {MAX_AT_ONCE_SECONDS * 1e3:.0f} ms were promised"


def _in_time(timeline: Timeline) -> Iterator[str]:
    steps, due_at, final_at = timeline.steps, timeline.due_at, timeline.record.final_at
    missing = [step for step in ("suspended", "shipped", "continued") if step not in steps]
    if missing or due_at is None or final_at is None:
        yield f"it was never {' nor '.join(missing) or 'answered'}"
        return
    if timeline.status != "ok":
        yield f"the nap ended with status {timeline.status!r}"
    if not steps["suspended"] <= steps["shipped"] <= steps["continued"] <= final_at:
        yield "its steps came in the wrong order"
    if steps["continued"] < due_at:
        yield f"it was continued {(due_at - steps['continued']) * 1e3:.2f} ms early"
    if final_at - due_at > MAX_LATE_SECONDS:
        yield f"it was answered {(final_at - due_at) * 1e3:.0f} ms late; at most {MAX_LATE_SECONDS * 1e3:.0f} promised"
