"""Paths into a JSON document: ``data.routes[0].uri``, ``routes[*].uri``, ``["odd key"].x``."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TypeAlias

from sipnap.client.operations import Scalar, Value

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
"""What `json.loads` gives."""

_STEP = re.compile(r'(?P<name>[^.\[\]"\s]+)|\[(?P<index>[0-9]{1,6}|\*)\]|\[(?P<quoted>"(?:[^"\\]|\\.)*")\]')
_INT64 = range(-(2**63), 2**63)
_MOST_LIST_VALUES = 32


@dataclass(frozen=True, slots=True)
class DocumentPath:
    """Where in a document a value is."""

    text: str
    """As it was written."""
    steps: tuple[str | int | None, ...]
    """Names, places in lists from 0; None: each place of a list."""

    @classmethod
    def parse(cls, text: str) -> DocumentPath:
        """Read a path.

        Raises:
            ValueError: It is none.
        """
        steps: list[str | int | None] = []
        at = 0
        while at < len(text) or not steps:
            dot = text[at : at + 1] == "."
            found = _STEP.match(text, at + dot)
            # Names are set apart by dots, brackets are not.
            if not found or (dot and (not steps or found["name"] is None)) or (steps and found["name"] and not dot):
                raise ValueError(f"{text!r} is no path: expected such as data.routes[0].uri or routes[*].uri")
            if found["name"] is not None:
                steps.append(found["name"])
            elif found["quoted"] is not None:
                steps.append(str(json.loads(found["quoted"])))
            else:
                steps.append(None if found["index"] == "*" else int(found["index"]))
            at = found.end()
        return cls(text, tuple(steps))

    def of(self, document: Json) -> Value | None:
        """The value there; None: there is none, or null.

        A list's values are its own, an object or an inner list is given as JSON text, a fraction as text.
        """
        found = [document]
        for step in self.steps:
            found = [inner for outer in found for inner in _inner(outer, step)]
        if None in self.steps:
            return _scalars(found)
        only = found[0] if found else None
        if isinstance(only, list):
            return _scalars(only)
        return None if only is None else _scalar(only)


def _inner(outer: Json, step: str | int | None) -> list[Json]:
    if isinstance(step, str):
        return [outer[step]] if isinstance(outer, dict) and step in outer else []
    if not isinstance(outer, list):
        return []
    if step is None:
        return outer[:_MOST_LIST_VALUES]
    return outer[step : step + 1]


def _scalars(values: list[Json]) -> Value | None:
    return [_scalar(value) for value in values[:_MOST_LIST_VALUES] if value is not None] or None


def _scalar(value: Json) -> Scalar:
    if isinstance(value, str):
        # A lone surrogate is JSON, but no character.
        return value.encode("utf-8", "replace")
    if isinstance(value, bool) or (isinstance(value, int) and value in _INT64):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
