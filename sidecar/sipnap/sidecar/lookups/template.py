"""Templates: what the operator wrote, with places that values from SIP fill and cannot leave.

A value is anything: bytes that a caller chose. In a URL it is percent-encoded down to the unreserved characters of
RFC 3986, so that it stays within the path segment or the query value where its place is; scheme, host and port have no
places. Two things that encoding does not keep apart, because servers decode before they route, are refused: a path
segment that would be read as ``.`` or ``..``, and control characters in the path.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from sipnap.client.operations import OperationError, Value
from sipnap.v1 import suspension_pb2 as pb

STATE_FIELDS = ("method", "request_uri", "from", "to", "call_id", "cseq", "via_branch", "source_ip", "source_port")
"""What of the transaction state a template can have as ``{state.NAME}``."""

_PLACE = re.compile(
    r"\{([A-Za-z0-9_]{1,64}|state\.(?:" + "|".join(STATE_FIELDS) + r")|state\.avp\.[A-Za-z0-9_.-]{1,64})\}"
)
_BRACES = re.compile(r"\{\{|\}\}|" + _PLACE.pattern + r"|[{}]")
_URL = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::([0-9]{1,5}))?(/[^?#]*)?(?:\?([^#]*))?")
_HOST_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
_PATH_LITERAL = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*")
_QUERY_LITERAL = re.compile(r"(?:[A-Za-z0-9._~!$'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_SEPARATORS = re.compile(rb"[/\\]")

DEFAULT_PORTS = {"http": 80, "https": 443}
"""Where a URL without a port leads."""


class TemplateError(ValueError):
    """A template makes no sense; says why."""


class Values:
    """What fills the places: the arguments of one operation and the state of its transaction."""

    def __init__(self, arguments: Mapping[str, Value], state: pb.TransactionState) -> None:
        self._arguments = arguments
        self._state = state

    def value(self, name: str) -> Value:
        """The value for a place; what the transaction does not have is empty.

        Raises:
            OperationError: There is no such argument.
        """
        if name.startswith("state.avp."):
            return self._avp(name.removeprefix("state.avp."))
        if name.startswith("state."):
            found: Value = getattr(self._state, name.removeprefix("state."))
            return found
        try:
            return self._arguments[name]
        except KeyError:
            raise OperationError("http_bad_arguments", f"the template needs an argument {name!r}") from None

    def octets(self, name: str) -> bytes:
        """The value for a place, byte for byte.

        Raises:
            OperationError: There is no such argument, or it is a list.
        """
        value = self.value(name)
        if isinstance(value, list):
            raise OperationError("http_bad_arguments", f"the argument {name!r} is a list: only JSON has a place for it")
        if isinstance(value, bytes):
            return value
        return (str(value).lower() if isinstance(value, bool) else str(value)).encode()

    def text(self, name: str) -> str:
        """The value for a place where only text can be; what is not UTF-8 becomes U+FFFD.

        Raises:
            OperationError: There is no such argument, or it is a list.
        """
        return self.octets(name).decode("utf-8", "replace")

    def _avp(self, name: str) -> Value:
        for avp in self._state.avps:
            if avp.name == name:
                return avp.integer if avp.WhichOneof("value") == "integer" else avp.text
        return b""


@dataclass(frozen=True, slots=True)
class Text:
    """A text with places: ``number {number} from {state.source_ip}``; ``{{`` and ``}}`` stand for braces."""

    literals: tuple[str, ...]
    """What is around the places; one more than there are places."""
    places: tuple[str, ...]
    """The names in the places."""

    @classmethod
    def parse(cls, text: str) -> Text:
        """Find the places.

        Raises:
            TemplateError: A brace is no part of a place.
        """
        literals, places, end = [""], [], 0
        for found in _BRACES.finditer(text):
            literals[-1] += text[end : found.start()]
            end = found.end()
            if found[1]:
                places.append(found[1])
                literals.append("")
            elif len(found[0]) == 2:
                literals[-1] += found[0][0]
            else:
                raise TemplateError(
                    f"{text!r} has a brace that is no part of a place: expected {{name}} with a name of [A-Za-z0-9_], "
                    f"{{state.NAME}} with a NAME of {', '.join(STATE_FIELDS)} or avp.NAME; {{{{ for a brace itself"
                )
        literals[-1] += text[end:]
        return cls(tuple(literals), tuple(places))

    def filled(self, of: Callable[[str], str]) -> str:
        """The text with every place filled by what `of` says of its name."""
        parts = [self.literals[0]]
        for place, literal in zip(self.places, self.literals[1:], strict=True):
            parts += (of(place), literal)
        return "".join(parts)


@dataclass(frozen=True, slots=True)
class Origin:
    """Whom a URL leads to."""

    scheme: str
    """``http`` or ``https``."""
    host: str
    """Name or address in lower case; IPv6 without brackets."""
    port: int
    """1 to 65535."""

    @classmethod
    def of(cls, scheme: str, host: str, port: int | str | None) -> Origin:
        """The origin, put into its one form.

        Raises:
            TemplateError: It is none that can be asked.
        """
        number = int(port or DEFAULT_PORTS[scheme])
        if not 1 <= number <= 65535:
            raise TemplateError(f"the port {port} is out of range")
        return cls(scheme, plain_host(host), number)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UrlTemplate:
    """A URL with places in path segments and query values, and nowhere else."""

    origin: Origin
    """Whom it leads to, whatever the values are."""
    segments: tuple[Text, ...]
    """Between the slashes of the path."""
    query: tuple[tuple[str, Text | None], ...]
    """Names, as they are sent, and values; None: a name without ``=``."""

    @classmethod
    def parse(cls, url: str) -> UrlTemplate:
        """Take a template apart.

        Raises:
            TemplateError: It is no URL, or has a place where none may be.
        """
        found = _URL.fullmatch(url)
        if not found:
            raise TemplateError(
                f"{url!r} is no URL that can be asked: expected http:// or https://, a host without user, then path "
                "and query; no place before the path, no fragment"
            )
        scheme, host, port, path, query = found.groups()
        segments = tuple(_literal_text(part, _PATH_LITERAL, url) for part in (path or "/")[1:].split("/"))
        if any(not segment.places and _is_dots(unquote_to_bytes(segment.literals[0])) for segment in segments):
            raise TemplateError(f"{url!r} has . or .. in its path")
        pairs = query.split("&") if query else []
        return cls(Origin.of(scheme, host, port), segments, tuple(_query_pair(pair, url) for pair in pairs))

    @property
    def places(self) -> set[str]:
        """The names in the places."""
        texts = [*self.segments, *(text for _, text in self.query if text is not None)]
        return {place for text in texts for place in text.places}

    def filled(self, values: Values) -> str:
        """The URL with the values in it, encoded.

        Raises:
            OperationError: A value is missing, or cannot be in the path.
        """
        path = "".join("/" + _filled_segment(segment, values) for segment in self.segments)
        query = "&".join(
            name if text is None else f"{name}={text.filled(lambda place: encoded(values.octets(place)))}"
            for name, text in self.query
        )
        return f"{self.origin}{path}" + (f"?{query}" if self.query else "")


def encoded(octets: bytes) -> str:
    """Percent-encoded, all but the unreserved characters (RFC 3986 2.3)."""
    return quote(octets, safe="")


def plain_host(text: str) -> str:
    """A host in the one form in which hosts are compared.

    Raises:
        TemplateError: It is neither a name nor an address.
    """
    if text.startswith("["):
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError as error:
            raise TemplateError(f"{text!r} is no IPv6 address") from error
    host = text.lower().removesuffix(".")
    if host.rpartition(".")[2].isdigit():
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError as error:
            raise TemplateError(f"{text!r} is no IPv4 address") from error
    if len(host) > 253 or not _HOST_NAME.fullmatch(host):
        raise TemplateError(f"{text!r} is no host name (of another script: write it in its xn-- form)")
    return host


def _literal_text(part: str, allowed: re.Pattern[str], url: str) -> Text:
    if "{{" in part or "}}" in part:
        raise TemplateError(f"{url!r} has a double brace: a URL has no braces but those of places (%7B, %7D)")
    text = Text.parse(part)
    if not all(allowed.fullmatch(literal) for literal in text.literals):
        raise TemplateError(f"{url!r} has a character that has to be percent-encoded")
    if any(re.search("%[0-9A-Fa-f]?$", literal) for literal in text.literals[:-1]):
        raise TemplateError(f"{url!r} has a place within a percent-encoded character")
    return text


def _query_pair(pair: str, url: str) -> tuple[str, Text | None]:
    name, equals, value = pair.partition("=")
    if not name or "{" in name or "}" in name or not _QUERY_LITERAL.fullmatch(name):
        raise TemplateError(f"{url!r} has a query parameter without a fixed name: places are for values")
    return name, _literal_text(value, _QUERY_LITERAL, url) if equals else None


def _filled_segment(segment: Text, values: Values) -> str:
    filled = segment.filled(lambda place: encoded(values.octets(place)))
    if not segment.places:
        return filled
    if not filled:
        raise OperationError("http_bad_arguments", f"{segment.places[0]!r} is empty, and is all of a path segment")
    # What it is once a server, or two in a row, have decoded it must not lead elsewhere.
    octets = filled.encode()
    for _ in range(3):
        octets = unquote_to_bytes(octets)
        if _CONTROL.search(octets):
            raise OperationError("http_bad_arguments", f"{_names(segment)}: the path cannot hold control characters")
        if any(_is_dots(part) for part in _SEPARATORS.split(octets)):
            raise OperationError("http_bad_arguments", f"{_names(segment)}: the path cannot hold . or .. as a segment")
    return filled


def _names(text: Text) -> str:
    return ", ".join(map(repr, text.places))


def _is_dots(segment: bytes) -> bool:
    # Some servers take off what follows a semicolon first.
    return segment.partition(b";")[0] in (b".", b"..")
