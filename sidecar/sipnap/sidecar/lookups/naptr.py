"""The rules of NAPTR records for ENUM: which record counts, in which order, and what it makes of a number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sipnap.sidecar.lookups.ere import BadExpression, Budget, Expression

MOST_URI_CHARACTERS = 512
"""Longest URI that a record may make."""

# RFC 3986, less what a URI must not hold anyway: it ends up in the Request-URI.
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):[!#-;=?-\[\]_a-z~]+")

_NUMBER = re.compile(rb"\+[0-9]{2,31}\Z")
_SERVICE = re.compile(r"[a-z0-9-]{1,32}(:[a-z0-9-]{1,32})?\Z")

# What a URI of an Enumservice looks like, where that is fixed (RFC 3764, RFC 4415 and their like).
_SCHEMES = {"sip": ("sip", "sips"), "tel": ("tel",)}


class BadRecord(ValueError):
    """It cannot be used; the next one may be."""


@dataclass(frozen=True, slots=True, order=True)
class Naptr:
    """One NAPTR record (RFC 3403 4.1). Records sort by how much they are preferred."""

    order: int
    """The lower goes first."""
    preference: int
    """Among those of one order the lower goes first."""
    flags: str
    """"u": it makes a URI; none: it leads to another name."""
    services: str
    """``E2U+sip`` and the like; of a record that leads on it says nothing (RFC 6116 3.4.1)."""
    regexp: bytes
    """A substitution expression (RFC 3402 3.2), or nothing."""
    replacement: str
    """The name that it leads to; "." if none."""

    @property
    def is_terminal(self) -> bool:
        """Whether it makes a URI."""
        return self.flags.lower() == "u"

    @property
    def leads_to(self) -> str | None:
        """The name with the records to go on with; None: it does not lead on."""
        return self.replacement if not self.flags and not self.regexp and self.replacement != "." else None


@dataclass(frozen=True, slots=True)
class ServiceFilter:
    """Which Enumservices are asked for."""

    wanted: frozenset[str]
    """``type`` stands for each of its subtypes as well, ``type:subtype`` for itself. In lower case."""

    @classmethod
    def parse(cls, text: str) -> ServiceFilter:
        """From ``E2U+sip``, ``E2U+pstn:tel+sip`` or, shorter, ``sip``.

        Raises:
            ValueError: It is none of these.
        """
        wanted = _enumservices(text) or frozenset(text.lower().split("+"))
        if "e2u" in wanted or not all(_SERVICE.match(service) for service in wanted):
            raise ValueError(f"{text!r} is no service: expected such as E2U+sip or E2U+pstn:tel")
        return cls(wanted)

    def takes(self, services: str) -> bool:
        """Whether a record with this services field offers one of those asked for."""
        return any(
            service in self.wanted or service.partition(":")[0] in self.wanted for service in _enumservices(services)
        )

    def fits(self, uri: str) -> bool:
        """Whether the URI's scheme is one that all services asked for allow, where that is fixed."""
        allowed = [_SCHEMES.get(service) for service in self.wanted]
        scheme = uri.partition(":")[0].lower()
        return None in allowed or any(schemes and scheme in schemes for schemes in allowed)


def _enumservices(services: str) -> frozenset[str]:
    """What a services field offers (RFC 6116 3.4.2); ``sip+E2U`` is the form of RFC 2916, still met."""
    parts = services.lower().split("+")
    if parts[0] == "e2u":
        return frozenset(parts[1:])
    return frozenset(parts[:-1]) if len(parts) == 2 and parts[1] == "e2u" else frozenset()


def number_of(text: bytes) -> str:
    """The number in the form that records are applied to (RFC 6116 3.1): a plus and 2 to 31 digits.

    Visual separators are dropped (RFC 3966 5.1.1). E.164 has 15 digits at most; private trees go further.

    Raises:
        ValueError: It is no such number.
    """
    number = text.translate(None, b"-.() ")
    if not _NUMBER.match(number):
        raise ValueError("expected + and 2 to 31 digits")
    return number.decode("ascii")


def name_of(number: str, domain: str) -> str:
    """The name that has the records of a number (RFC 6116 3.2), such as ``2.1.3.4.e164.arpa.``."""
    return ".".join([*reversed(number[1:]), domain.strip(".")]) + "."


def uri_of(record: Naptr, number: str, budget: Budget) -> str:
    """The URI that a terminal record makes of the number.

    The result is the replacement alone, as in Kamailio (enum: reg_replace): what the expression does not match of the
    number is dropped, not kept around it.

    Raises:
        BadRecord: It makes none, or nothing that is a URI.
        TooCostly: The budget was spent before that.
    """
    pattern, replacement, flags = _parts(record.regexp)
    if flags.strip("iI"):
        raise BadRecord(f"it has the unknown flags {flags!r}")
    try:
        expression = Expression(pattern, ignore_case=bool(flags))
    except BadExpression as error:
        raise BadRecord(f"its expression cannot be used: {error}") from error
    found = expression.search(number, budget)
    if found is None:
        raise BadRecord("its expression does not match the number")
    uri = _filled(replacement, found)
    if len(uri) > MOST_URI_CHARACTERS or not _URI.fullmatch(uri):
        raise BadRecord("what it makes of the number is no URI")
    return uri


def preferred(records: Iterable[Naptr]) -> list[Naptr]:
    """The records as they are to be tried: by order, then by preference (RFC 3403 4.1)."""
    return sorted(records, key=lambda record: (record.order, record.preference))


def _parts(regexp: bytes) -> tuple[str, str, str]:
    """Expression, replacement and flags: ``!^.*$!sip:info@example.com!`` (RFC 3402 3.2)."""
    text = regexp.decode("latin-1")
    delimiter = text[:1]
    if not delimiter or delimiter.isdigit() or delimiter in "iI\\":
        raise BadRecord("its regexp field does not begin with a delimiter")
    parts, at = [""], 1
    while at < len(text):
        if text[at] == "\\" and at + 1 < len(text):
            # An escaped delimiter is that character; whatever else is escaped is the business of who reads the part.
            parts[-1] += (
                text[at + 1] if text[at + 1] == delimiter and delimiter not in ".[]()*+?{}|^$" else text[at : at + 2]
            )
            at += 2
            continue
        if text[at] == delimiter:
            parts.append("")
        else:
            parts[-1] += text[at]
        at += 1
    if len(parts) != 3:
        raise BadRecord("its regexp field is not !expression!replacement!")
    return parts[0], parts[1], parts[2]


def _filled(replacement: str, found: list[str]) -> str:
    """The replacement with its back references filled in."""
    filled, characters = "", iter(replacement)
    for character in characters:
        if character != "\\":
            filled += character
            continue
        escaped = next(characters, "")
        if escaped in tuple("123456789"):
            if int(escaped) >= len(found):
                raise BadRecord(f"\\{escaped} is none of its groups")
            filled += found[int(escaped)]
        elif escaped and not escaped.isalnum():
            filled += escaped
        else:
            raise BadRecord("its replacement has a stray backslash")
    return filled
