"""What one HTTP lookup sends, and what it takes from the answer."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TypeAlias

from sipnap.client.operations import OperationError, Value
from sipnap.sidecar.lookups.document_path import DocumentPath
from sipnap.sidecar.lookups.template import Text, UrlTemplate, Values, encoded

JsonTemplate: TypeAlias = "dict[str, JsonTemplate] | list[JsonTemplate] | Text | int | float | bool"
"""A JSON document with places in its texts."""

_NO_HEADER_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What is sent."""

    method: str
    """GET and the like."""
    url: str
    """Encoded: to be sent as it is."""
    headers: dict[str, str]
    """Header fields, besides those that say how the message is framed."""
    body: bytes | None
    """The body; None: it has none."""


@dataclass(frozen=True, slots=True)
class HttpTemplate:
    """One kind of lookup. The names are those of the settings, see docs/lookups.md."""

    name: str
    """For messages."""
    url: UrlTemplate
    """Whom to ask for what."""
    method: str = "GET"
    """How."""
    headers: tuple[tuple[str, Text], ...] = ()
    """Header fields."""
    json: JsonTemplate | None = None
    """A JSON body; None: not that."""
    form: tuple[tuple[str, Text], ...] | None = None
    """The fields of a form as the body; None: not that."""
    pick: tuple[tuple[str, DocumentPath], ...] = ()
    """Values to take from a JSON answer."""
    required: frozenset[str] = frozenset()
    """Those of `pick` and `answer_headers` that have to be there."""
    answer_headers: tuple[tuple[str, str], ...] = ()
    """Values to take from header fields of the answer, whose names are in lower case."""
    body: bool = True
    """Whether the answer's body is a value."""
    ok_status: frozenset[int] | None = None
    """Any other status is an error; None: none is."""
    connect_seconds: float = 2.0
    """Most that it takes to connect, TLS included."""
    total_seconds: float = 10.0
    """Most that it takes in all."""
    max_bytes: int = 256 << 10
    """Largest answer, also after decompression."""
    max_redirects: int = 0
    """How many redirects are followed."""
    places: frozenset[str] = field(init=False)
    """The names in all places."""

    def __post_init__(self) -> None:
        """Gather the places."""
        texts = [text for _, text in self.headers + (self.form or ())] + _texts(self.json)
        object.__setattr__(self, "places", frozenset(self.url.places.union(*(text.places for text in texts))))

    def request(self, values: Values) -> HttpRequest:
        """What is sent with these values.

        Raises:
            OperationError: A value is missing, or cannot be where its place is.
        """
        headers = {name: _header(name, text, values) for name, text in self.headers}
        body, kind = self._body(values)
        if kind and not any(name.lower() == "content-type" for name in headers):
            headers["Content-Type"] = kind
        return HttpRequest(self.method, self.url.filled(values), headers, body)

    def _body(self, values: Values) -> tuple[bytes | None, str]:
        if self.json is not None:
            return json.dumps(_json(self.json, values), separators=(",", ":")).encode(), "application/json"
        if self.form is not None:
            pairs = (f"{encoded(name.encode())}={_encoded_text(text, values)}" for name, text in self.form)
            return "&".join(pairs).encode(), "application/x-www-form-urlencoded"
        return None, ""


def _texts(template: JsonTemplate | None) -> list[Text]:
    if isinstance(template, Text):
        return [template]
    inner = template.values() if isinstance(template, dict) else template if isinstance(template, list) else ()
    return [text for item in inner for text in _texts(item)]


def _header(name: str, text: Text, values: Values) -> str:
    value = text.filled(values.text)
    if _NO_HEADER_VALUE.search(value):
        raise OperationError("http_bad_arguments", f"the header {name} cannot hold control characters")
    return value


def _encoded_text(text: Text, values: Values) -> str:
    # Encoded piece by piece: what is no UTF-8 stays what it is.
    parts = [encoded(text.literals[0].encode())]
    for place, literal in zip(text.places, text.literals[1:], strict=True):
        parts += (encoded(values.octets(place)), encoded(literal.encode()))
    return "".join(parts)


def _json(template: JsonTemplate, values: Values) -> object:
    match template:
        case dict():
            return {name: _json(item, values) for name, item in template.items()}
        case list():
            return [_json(item, values) for item in template]
        case Text(literals=("", ""), places=(place,)):
            return _json_value(values.value(place))  # the place is all of it: a number stays a number
        case Text():
            return template.filled(values.text)
        case _:
            return template


def _json_value(value: Value) -> object:
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
