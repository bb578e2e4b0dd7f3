"""Where HTTP templates come from: the operator's file, or the arguments of one operation."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sipnap.client.operations import OperationError, Value
from sipnap.sidecar.lookups.document_path import DocumentPath
from sipnap.sidecar.lookups.http_template import HttpTemplate, JsonTemplate
from sipnap.sidecar.lookups.template import TemplateError, Text, UrlTemplate

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
"""What can be sent."""

MOST_BYTES = 16 << 20
"""Upper bound of ``max_bytes``."""

MOST_REDIRECTS = 10
"""Upper bound of ``max_redirects``."""

MOST_SECONDS = 300.0
"""Upper bound of ``connect_seconds`` and ``total_seconds``."""

_TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_VALUE_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_STATUS_CLASS = re.compile(r"[1-5]xx")
_PREFIXES = ("header_", "query_", "json_", "form_", "pick_")

# What the library itself says of a message's length and way; two answers to that are how requests are smuggled.
_OWN_HEADERS = {
    *("accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "proxy-connection", "te"),
    *("trailer", "transfer-encoding", "upgrade"),
}


def read_templates(path: Path) -> dict[str, HttpTemplate]:
    """The templates of a TOML file: a table for each, named for it.

    Raises:
        TemplateError: The file cannot be read, or one of them makes no sense; names file, template and setting.
    """
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except OSError as error:
        raise TemplateError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TemplateError(f"{path}: not TOML: {error}") from error
    templates = {}
    for name, table in tables.items():
        try:
            if not isinstance(table, dict) or not _TEMPLATE_NAME.fullmatch(name):
                raise TemplateError("expected a table whose name is 1 to 64 characters of [A-Za-z0-9_.-]")
            templates[name] = template_of_table(name, table)
        except ValueError as error:
            raise TemplateError(f"{path}: [{name}]: {error}") from error
    return templates


def template_of_table(name: str, table: Mapping[str, Any]) -> HttpTemplate:
    """One template from its table.

    Raises:
        ValueError: A setting is missing, unknown or makes no sense; names it.
    """
    if "url" not in table:
        raise TemplateError("url is missing")
    if unknown := table.keys() - _SETTINGS.keys():
        raise TemplateError(f"{min(unknown)} is no setting; expected {', '.join(_SETTINGS)}")
    if "json" in table and "form" in table:
        raise TemplateError("json and form are two bodies: choose one")
    settings: dict[str, Any] = {}
    for setting, value in table.items():
        try:
            settings[setting] = _SETTINGS[setting](value)
        except ValueError as error:
            raise TemplateError(f"{setting}: {error}") from error
    settings.setdefault("method", "POST" if table.keys() & {"json", "form"} else "GET")
    settings.setdefault("body", "pick" not in table)
    template = HttpTemplate(name, **settings)
    if missing := template.required - {value for value, _ in template.pick + template.answer_headers}:
        raise TemplateError(f"required: {min(missing)} is in neither pick nor answer_headers")
    if template.max_redirects and template.method not in ("GET", "HEAD"):
        raise TemplateError(f"max_redirects: a {template.method} is not sent again elsewhere")
    return template


def template_of_arguments(arguments: Mapping[str, Value]) -> tuple[HttpTemplate, dict[str, Value]]:
    """The template that the arguments of one operation make, and the values for its places.

    Args:
        arguments: ``url``, ``method``, ``ok_status``, those with a prefix (``header_``, ``query_``, ``json_``,
            ``form_``, ``pick_``), and values for the places of the URL.

    Raises:
        OperationError: They make none.
    """
    try:
        url = _cached_url(_argument(arguments, "url"))
        method = _argument(arguments, "method", "")
        ok_status = _argument(arguments, "ok_status", "")
        of_prefix = {prefix: _with_prefix(arguments, prefix) for prefix in _PREFIXES}
        # Each value gets a place of its own name: what the caller chose is never read as a template.
        query = tuple((name, Text(("", ""), (f"query_{name}",))) for name in of_prefix["query_"])
        table: dict[str, Any] = {
            "url": UrlTemplate(url.origin, url.segments, url.query + query),
            "method": method.upper(),
            "headers": {name.replace("_", "-"): f"{{header_{name}}}" for name in of_prefix["header_"]},
            "json": {name: f"{{json_{name}}}" for name in of_prefix["json_"]},
            "form": {name: f"{{form_{name}}}" for name in of_prefix["form_"]},
            "pick": {name: _argument(arguments, f"pick_{name}") for name in of_prefix["pick_"]},
            "ok_status": [int(part) if part.isdigit() else part for part in ok_status.split(",") if part],
        }
        template = template_of_table("url", {setting: value for setting, value in table.items() if value})
    except ValueError as error:
        raise OperationError("http_bad_template", f"the arguments make no request: {error}") from error
    left_out = {"url", "method", "ok_status", *(f"pick_{name}" for name in of_prefix["pick_"])}
    return template, {name: value for name, value in arguments.items() if name not in left_out}


def _argument(arguments: Mapping[str, Value], name: str, default: str | None = None) -> str:
    value = arguments.get(name, default)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise TemplateError(f"{name} is missing" if value is None else f"{name} has to be text")


def _with_prefix(arguments: Mapping[str, Value], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in arguments if name.startswith(prefix) and name != prefix]


@lru_cache(maxsize=256)
def _cached_url(text: str) -> UrlTemplate:
    return UrlTemplate.parse(text)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TemplateError(f"{value!r} is no text")
    return value


def _url(value: object) -> UrlTemplate:
    return value if isinstance(value, UrlTemplate) else UrlTemplate.parse(_text(value))


def _method(value: object) -> str:
    if value not in METHODS:
        raise TemplateError(f"{value!r} is none of {', '.join(METHODS)}")
    return str(value)


def _table(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TemplateError(f"{value!r} is no table: expected {{name = …}}")
    return value


def _value_name(name: str) -> str:
    if not _VALUE_NAME.fullmatch(name):
        raise TemplateError(f"{name!r} is no name for a value: expected 1 to 64 of [A-Za-z0-9_]")
    return name


def _header_name(name: str) -> str:
    if not _HEADER_NAME.fullmatch(name):
        raise TemplateError(f"{name!r} is no name of a header")
    return name


def _headers(value: object) -> tuple[tuple[str, Text], ...]:
    headers = tuple((_header_name(name), Text.parse(_text(item))) for name, item in _table(value).items())
    for name, _ in headers:
        if name.lower() in _OWN_HEADERS:
            raise TemplateError(f"{name} is not yours to set")
    if len({name.lower() for name, _ in headers}) < len(headers):
        raise TemplateError("a header is named twice")
    return headers


def _json(value: object) -> JsonTemplate:
    match value:
        case str():
            return Text.parse(value)
        case dict():
            return {name: _json(item) for name, item in value.items()}
        case list():
            return [_json(item) for item in value]
        case int() | float():  # bool is an int
            return value
        case _:
            raise TemplateError(f"{value!r} is nothing that JSON has")


def _form(value: object) -> tuple[tuple[str, Text], ...]:
    return tuple((name, Text.parse(_text(item))) for name, item in _table(value).items())


def _pick(value: object) -> tuple[tuple[str, DocumentPath], ...]:
    return tuple((_value_name(name), DocumentPath.parse(_text(path))) for name, path in _table(value).items())


def _answer_headers(value: object) -> tuple[tuple[str, str], ...]:
    return tuple((_value_name(name), _header_name(_text(header)).lower()) for name, header in _table(value).items())


def _required(value: object) -> frozenset[str]:
    if not isinstance(value, list):
        raise TemplateError(f"{value!r} is no list of names")
    return frozenset(_text(name) for name in value)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise TemplateError(f"{value!r} is neither true nor false")
    return value


def _statuses(value: object) -> frozenset[int]:
    found: set[int] = set()
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str) and _STATUS_CLASS.fullmatch(item):
            found.update(range(int(item[0]) * 100, int(item[0]) * 100 + 100))
        elif isinstance(item, int) and not isinstance(item, bool) and 100 <= item <= 599:
            found.add(item)
        else:
            raise TemplateError(f"{item!r} is no status: expected such as 200 or '2xx'")
    return frozenset(found)


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST_SECONDS:
        raise TemplateError(f"{value!r} is not within 0 and {MOST_SECONDS:g} seconds")
    return float(value)


def _count(least: int, most: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise TemplateError(f"{value!r} is not within {least} and {most}")
        return value

    return read


_SETTINGS: dict[str, Callable[[object], object]] = {
    "url": _url,
    "method": _method,
    "headers": _headers,
    "json": _json,
    "form": _form,
    "pick": _pick,
    "answer_headers": _answer_headers,
    "required": _required,
    "body": _boolean,
    "ok_status": _statuses,
    "connect_seconds": _seconds,
    "total_seconds": _seconds,
    "max_bytes": _count(1, MOST_BYTES),
    "max_redirects": _count(0, MOST_REDIRECTS),
}
