"""The demo's promises: each can be broken, and is then reported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sipnap.shim.sip.demo_calls import CallRecord
from sipnap.shim.sip.demo_table import Timeline, aligned, broken_promises, rows, verdict


def record(**more: Any) -> CallRecord:
    seen: dict[str, Any] = {"invite_at": 100.0, "trying_at": 100.001, "final_at": 101.01, "final_code": 302}
    return CallRecord("x", **{**seen, "final_reason": "Moved", **more})


NAPPED = Timeline(
    "nap",
    record(final_headers={"contact": "<sip:b@c>"}),
    {"suspended": 100.002, "shipped": 100.003, "continued": 101.005},
    1.0,
    302,
    "<sip:b@c>",
    status="ok",
)
CANCELLED = Timeline(
    "cancel",
    record(final_at=100.301, final_code=487, cancel_at=100.3, cancel_code=200),
    {"suspended": 100.002, "shipped": 100.003},
    20.0,
    487,
    held_after_cancel=0,
)
REFUSED = Timeline("refused", record(final_at=100.002, final_code=503), {}, None, 503)


def changed(timeline: Timeline, steps: dict[str, float] | None = None, **record_changes: Any) -> Timeline:
    new_record = replace(timeline.record, **record_changes)
    return replace(timeline, record=new_record, steps={**timeline.steps, **(steps or {})})


@pytest.mark.parametrize("timeline", [NAPPED, CANCELLED, REFUSED], ids=lambda timeline: timeline.title)
def test_kept(timeline: Timeline) -> None:
    assert list(broken_promises(timeline)) == []
    assert verdict(timeline)


@pytest.mark.parametrize(
    ("timeline", "complaint"),
    [
        (changed(NAPPED, {"continued": 101.0019}), "early"),
        (changed(NAPPED, final_at=101.6), "late"),
        (changed(NAPPED, final_code=500), "not 302"),
        (changed(NAPPED, final_headers={"contact": "<sip:x@c>"}), "sent to <sip:x@c>, not to <sip:b@c>"),
        (changed(NAPPED, final_headers={}), "sent to nobody"),
        (changed(REFUSED, final_headers={"contact": "<sip:x@c>"}), "not to nobody"),
        (changed(NAPPED, trying_at=None), "no 100"),
        (changed(NAPPED, retransmissions=1), "2 times"),
        (changed(NAPPED, {"shipped": 101.006}), "order"),
        (replace(NAPPED, status="lost"), "'lost'"),
        (replace(NAPPED, steps={"suspended": 100.0}), "shipped nor continued"),
        (changed(CANCELLED, cancel_code=481), "not 200"),
        (changed(CANCELLED, {"continued": 100.5}), "after the CANCEL"),
        (changed(CANCELLED, final_at=100.6), "487 took 300 ms"),
        (replace(CANCELLED, held_after_cancel=1), "still holds 1"),
        (replace(CANCELLED, held_after_cancel=None), "still holds"),
        (changed(REFUSED, {"suspended": 100.001}), "suspended"),
        (changed(REFUSED, final_at=100.3), "took 300 ms"),
        (changed(REFUSED, final_at=None), "never came"),
    ],
)
def test_broken(timeline: Timeline, complaint: str) -> None:
    (broken,) = broken_promises(timeline)
    assert complaint in broken


def test_the_table_has_a_column_for_each_step() -> None:
    heading, napped, cancelled, refused = rows([NAPPED, CANCELLED, REFUSED])
    assert heading == ["call", "INVITE", "100", "suspended", "shipped", "CANCEL", "due", "continued", "final", "reply"]
    assert napped == ["nap", "0.0", "1.0", "2.0", "3.0", "-", "1002.0", "1005.0", "1010.0", "302 Moved"]
    assert cancelled[5:8] == ["300.0", "20002.0", "-"]
    assert refused[3:8] == ["-"] * 5


def test_numbers_stand_to_the_right() -> None:
    assert list(aligned([["a", "1", "x"], ["bb", "22", "yy"]])) == ["a    1  x", "bb  22  yy"]
