"""What `sipnap status` and `sipnap list` print: right figures, and nothing that SIP sent can garble."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipnap.client.commands.json_form import json_form, short_name
from sipnap.client.commands.listing import json_line, table_lines
from sipnap.client.commands.status import status_lines
from sipnap.client.table import Columns, duration_text, shown, table
from sipnap.v1 import admin_service_pb2 as admin
from sipnap.v1 import suspension_pb2 as pb

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
KEY = pb.SuspensionKey(
    front_end_id="kamailio", boot_epoch=2**63 + 1, transaction_index=7, transaction_label=2**32 - 1, nap_number=1
)


def _info(call_id: bytes = b"a@b", due: datetime | None = None) -> pb.SuspensionInfo:
    info = pb.SuspensionInfo(
        suspension=pb.Suspension(
            key=KEY, resume_route="RESUME", state=pb.TransactionState(method=b"INVITE", call_id=call_id, cseq=5)
        ),
        phase=pb.SUSPENSION_PHASE_CONTINUING,
        attempt=2,
    )
    info.suspension.delay.FromTimedelta(timedelta(seconds=2.5))
    info.due_time.FromDatetime(due or datetime.now(UTC) + timedelta(seconds=100))
    return info


def _status(**options: object) -> admin.GetStatusResponse:
    status = admin.GetStatusResponse(
        version="0.1.0",
        instance_id="abc",
        journal=admin.JournalStatus(kind="memory", durability=pb.DURABILITY_MEMORY),
        pending=3,
        continuing=2,
        sleeping=1,
        max_pending=1000,
        counters=admin.Counters(accepted=10, refused=1, applied=4),
    )
    status.start_time.FromDatetime(NOW - timedelta(minutes=3, seconds=20))
    for name, value in options.items():
        setattr(status, name, value)
    return status


def test_status_for_people() -> None:
    status = _status()
    status.front_ends.add(front_end_id="kamailio", boot_epoch=17, connected=True, pending=3)
    status.worker_groups.add(
        name="default", kind=admin.WORKER_KIND_ASYNC, workers=16, busy=2, succeeded=7, timed_out=3, refused=1
    )
    assert list(status_lines(status, "127.0.0.1:5600", NOW)) == [
        "sidecar     127.0.0.1:5600, sipnap 0.1.0, instance abc",
        "state       serving, up 3 min 20 s, since 2026-01-31 11:56:40 UTC",
        "journal     memory: what it accepted ends with the process",
        "now         3 pending of at most 1000, 2 continuing, 1 sleeping",
        "since start 10 accepted, 1 refused, 0 cancelled, 4 applied, 0 gone,",
        "            0 rejected, 0 lost, 0 slept",
        "",
        "FRONT END  SESSION  BOOT EPOCH  PENDING  CONTINUING",
        "kamailio   open     17          3        0",
        "",
        "WORKER GROUP  KIND   WORKERS  BUSY  QUEUED  OK  FAILED  TIMED OUT  REFUSED",
        "default       async  16       2     0       7   0       3          1",
    ]


def test_status_says_that_it_drains_and_that_nobody_came() -> None:
    lines = list(status_lines(_status(draining=True), "x:1", NOW))
    assert "draining" in lines[1]
    assert lines[-1] == "no front end has had a session yet"


def test_status_for_scripts() -> None:
    members = json.loads(json.dumps(json_form(_status())))
    assert members["start_time"] == "2026-01-31T11:56:40.000Z"
    assert members["journal"] == {"kind": "memory", "durability": "memory"}
    assert members["counters"]["accepted"] == 10
    assert (members["pending"], members["draining"], members["front_ends"]) == (3, False, [])


def test_list_for_people() -> None:
    heading, row = table_lines(iter([_info(due=datetime.now(UTC) + timedelta(seconds=100.4))]))
    assert heading.split() == ["KEY", "ROUTE", "PHASE", "DUE", "IN", "METHOD", "CALL-ID"]
    key = "kamailio/9223372036854775809/7/4294967295/1"
    assert row.split() == [key, "RESUME", "continuing", "1", "min", "40", "s", "INVITE", "a@b"]


def test_an_empty_list_says_so() -> None:
    assert list(table_lines(iter([]))) == ["nothing is suspended"]


def test_list_shows_how_long_a_continue_is_overdue() -> None:
    _, row = table_lines(iter([_info(due=datetime.now(UTC) - timedelta(seconds=30))]))
    assert " -30 s " in row


def test_list_for_scripts() -> None:
    members = json.loads(json_line(_info(due=NOW)))
    assert members["key"] == "kamailio/9223372036854775809/7/4294967295/1"
    assert (members["phase"], members["attempt"], members["due_time"]) == ("continuing", 2, "2026-01-31T12:00:00.000Z")
    assert members["suspension"]["delay_seconds"] == 2.5
    assert members["suspension"]["key"]["boot_epoch"] == 2**63 + 1
    assert members["suspension"]["state"]["cseq"] == 5
    assert "deadline_seconds" not in members["suspension"]  # not set


@given(st.binary())
def test_what_sip_sent_is_exact_in_json_and_harmless_in_the_table(value: bytes) -> None:
    line = json_line(_info(call_id=value))
    assert line.isprintable()
    assert json.loads(line)["suspension"]["state"]["call_id"].encode("utf-8", "surrogateescape") == value
    for line in table_lines(iter([_info(call_id=value)])):
        assert line.isprintable()


def test_terminal_escapes_are_spelt_out() -> None:
    assert shown(b'"\x1b]0;owned\x07\r\n\xff\xe2\x80\xae') == r'"\x1b]0;owned\x07\r\n\xff\u202e'
    assert shown("plain ü") == "plain ü"


def test_values_of_operations_and_avps_keep_their_kind() -> None:
    message = pb.Continue(
        values=[
            pb.NamedValue(name="flag", value=pb.Value(boolean=False)),
            pb.NamedValue(name="many", value=pb.Value(list=pb.ValueList(values=[pb.Value(integer=-1)]))),
            pb.NamedValue(name="none", value=pb.Value()),
        ]
    )
    assert json_form(message)["values"] == [
        {"name": "flag", "value": {"boolean": False}},
        {"name": "many", "value": {"list": {"values": [{"integer": -1}]}}},
        {"name": "none", "value": {}},
    ]


def test_enum_values_have_short_names_and_unknown_ones_their_number() -> None:
    assert short_name(pb.CancelOutcome.DESCRIPTOR, pb.CANCEL_OUTCOME_GONE) == "gone"
    assert short_name(pb.CancelOutcome.DESCRIPTOR, 0) == "unspecified"
    assert short_name(pb.CancelOutcome.DESCRIPTOR, 99) == "99"


@pytest.mark.parametrize(
    ("duration_seconds", "text"),
    [
        (0, "0.00 s"),
        (0.25, "0.25 s"),
        (9.994, "9.99 s"),
        (41.2, "41 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3600, "1 h 0 min"),
        (86400 * 2 + 3600 * 4.5, "2 d 4 h"),
    ],
)
def test_durations_have_at_most_two_units(duration_seconds: float, text: str) -> None:
    assert duration_text(duration_seconds) == text


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert list(table(("A", "LONG HEADING"), [("wide cell", "x")])) == ["A          LONG HEADING", "wide cell  x"]


def test_a_cell_that_is_too_wide_pushes_the_rest() -> None:
    assert Columns(("A", "B"), (3, 1)).row(("four!", "x")) == "four!  x"
