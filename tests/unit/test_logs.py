"""The form of a log line: values by name, nothing from SIP able to forge one."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from sipnap.client import logs

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture(autouse=True)
def _untouched_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def _logged(form: str, *arguments: Any, level: int = logging.INFO, **options: Any) -> str:
    stream = io.StringIO()
    logs.setup("info", form, stream)
    logging.getLogger("sipnap.test").log(level, *arguments, **options)
    return stream.getvalue()


def test_text_line_has_time_level_logger_event_and_pairs() -> None:
    line = _logged("text", "front end connected front_end_id=%s pending=%d", "kamailio", 3)
    time, rest = line.split(" ", 1)
    assert re.fullmatch(TIME, time)
    assert rest == "info sipnap.test front end connected front_end_id=kamailio pending=3\n"


def test_json_line_has_the_values_as_members() -> None:
    line = _logged("json", "front end connected front_end_id=%s pending=%d late=%.3f", "kamailio", 3, 0.25)
    members = json.loads(line)
    assert re.fullmatch(TIME, members.pop("time"))
    assert members == {
        "level": "info",
        "logger": "sipnap.test",
        "event": "front end connected",
        "front_end_id": "kamailio",
        "pending": 3,
        "late": 0.25,
    }


def test_text_after_the_values_belongs_to_the_event() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "draining held=%d; a second signal ends at once", (5,), None)
    assert logs.event_of(record) == ("draining; a second signal ends at once", {"held": 5})


@pytest.mark.parametrize(
    ("message", "arguments", "event"),
    [
        ("plain", (), "plain"),
        ("100%% done", (1,), None),
        ("waited %s for x=%s", ("2 s", 1), "waited 2 s for x=1"),
        ("%s", ("from a library",), "from a library"),
        ("%(name)s by mapping", ({"name": "value"},), "value by mapping"),
    ],
)
def test_messages_that_do_not_name_all_values_are_one_text(
    message: str, arguments: tuple[Any, ...], event: str | None
) -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, message, arguments, None)
    if event is None:
        with pytest.raises(TypeError):
            logs.event_of(record)  # as the standard formatter: the mistake is the caller's
    else:
        assert logs.event_of(record) == (event, {})


HOSTILE = 'x\n2026-01-31T12:00:00.000Z error sipnap forged\x1b[2J\r"quoted" \\ \u202e\udcff'


def test_no_value_can_begin_a_line_or_reach_the_terminal() -> None:
    line = _logged("text", "received call_id=%s", HOSTILE)
    assert line.endswith("\n")
    body = line[:-1]
    assert body.isprintable()
    assert r'"x\n2026-01-31T12:00:00.000Z error sipnap forged\x1b[2J\r\"quoted\" \\ \u202e\udcff"' in body


def test_bytes_are_shown_as_text() -> None:
    assert _logged("text", "x call_id=%s", b"a\xff b").endswith('call_id="a\\\\xff b"\n')
    assert json.loads(_logged("json", "x call_id=%s", b"a\xff"))["call_id"] == "a\\xff"


def test_json_survives_whatever_it_is_given() -> None:
    line = _logged("json", "received call_id=%s time=%s nan=%f", HOSTILE, "noon", float("nan"))
    assert line.count("\n") == 1
    assert line.isascii()
    members = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert members["call_id"] == HOSTILE
    assert members["time_"] == "noon"  # the record's own time is not to be overwritten
    assert members["nan"] == "nan"


def test_tracebacks_are_indented_or_a_member() -> None:
    try:
        raise ValueError("first\n2026-01-31T12:00:00.000Z error sipnap forged")
    except ValueError:
        text = _logged("text", "it broke", level=logging.ERROR, exc_info=True)
        members = json.loads(_logged("json", "it broke", level=logging.ERROR, exc_info=sys.exc_info()))
    first, *rest = text.splitlines()
    assert first.endswith("error sipnap.test it broke")
    assert rest
    assert all(line.startswith("    ") for line in rest)
    assert "ValueError: first" in members["error"]


def test_level_is_the_least_that_is_logged() -> None:
    stream = io.StringIO()
    logs.setup("warning", "text", stream)
    log = logging.getLogger("sipnap.test")
    log.info("too little")
    log.warning("enough")
    assert [line.split()[-1] for line in stream.getvalue().splitlines()] == ["enough"]
