"""How sipnap's programs log: one line per event on stderr, as text for people or as JSON for collectors.

A call such as ``log.info("front end connected front_end_id=%s pending=%d", name, count)`` names its values in the
message: they become quoted ``key=value`` pairs in text, and members of their own in JSON. Values may stem from SIP;
neither form lets one of them begin a line or reach the terminal as a control sequence.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from datetime import UTC, datetime
from typing import TextIO

LEVELS = ("debug", "info", "warning", "error")
"""Values of ``--log-level``, from much to little."""

FORMATS = ("text", "json")
"""Values of ``--log-format``."""

_RESERVED = frozenset({"time", "level", "logger", "event", "error", "stack"})
_PAIR = re.compile(r"(\w+)=%[-#0+ ]*\d*(?:\.\d+)?[sdrfgxi]")
_SPACE_BEFORE_STOP = re.compile(r" +([,;:.])")
_PLACEHOLDER = re.compile(r"%(?!%)")
_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")  # printable ASCII without space, quote, equals sign and backslash


def setup(level: str = "info", form: str = "text", stream: TextIO | None = None) -> None:
    """Send all log records of this process to `stream` (stderr unless given), in place of what was set up before.

    Args:
        level: The least that is logged, one of `LEVELS`.
        form: One of `FORMATS`.
        stream: Where to.
    """
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.123Z info sipnap.sidecar listening address=127.0.0.1:5600``; tracebacks indented."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the indented lines of a traceback if the record has one."""
        event, values = event_of(record)
        pairs = "".join(f" {name}={_quoted(value)}" for name, value in values.items())
        line = f"{_time_of(record)} {record.levelname.lower()} {record.name} {escaped(event)}{pairs}"
        # Indented, so that no line of an error's text can pass for an event of its own.
        return "\n    ".join([line, *map(escaped, _traceback_of(self, record).splitlines())])


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, event, the event's own values, and error for a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line without its end."""
        event, values = event_of(record)
        members: dict[str, object] = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": event,
        }
        for name, value in values.items():
            members[f"{name}_" if name in _RESERVED else name] = value if _is_json_number(value) else _text_of(value)
        if traceback := _traceback_of(self, record):
            members["error"] = traceback
        # ASCII only: whatever reads the line cannot trip over an encoding.
        return json.dumps(members, ensure_ascii=True)


def event_of(record: logging.LogRecord) -> tuple[str, dict[str, object]]:
    """What happened, and the values that the message names (``key=%s``), in order.

    A message that does not name all of its values is taken as one text.
    """
    message, arguments = str(record.msg), record.args
    names = _PAIR.findall(message)
    if not names or not isinstance(arguments, tuple) or len(names) != len(arguments):
        return record.getMessage(), {}
    event = _PAIR.sub("", message)
    if _PLACEHOLDER.search(event):
        return record.getMessage(), {}
    event = _SPACE_BEFORE_STOP.sub(r"\1", " ".join(event.replace("%%", "%").split()))
    return event.rstrip(" ,:;"), dict(zip(names, arguments, strict=True))


def escaped(text: str) -> str:
    """The text with control characters, line ends and lone surrogates shown as backslash escapes."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _quoted(value: object) -> str:
    text = _text_of(value)
    if _PLAIN.fullmatch(text):
        return text
    return '"' + escaped(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _text_of(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _is_json_number(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _time_of(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback_of(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts)
