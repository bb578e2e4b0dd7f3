"""What an operation is given, as scripts write it: ``name=value&name=value``, values urlencoded.

Scripts build it from values of SIP, with ``{s.urlencode.param}``. What that would have encoded is an error here, not
taken as it is: a script that forgot to encode is found out by its first ``@``, and not by whoever puts a ``&`` into a
user name.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from sipnap.v1 import suspension_pb2 as pb

MOST_ARGUMENTS = 64
"""How many arguments one operation can have."""

_NAME = re.compile(rb"[A-Za-z0-9_]{1,64}\Z")
# What {s.urlencode.param} of Kamailio leaves as it is, and other encoders besides (RFC 3986 2.3, HTML's form encoding).
_VALUE = re.compile(rb"(?:[A-Za-z0-9_.~!*'()+-]|%[0-9A-Fa-f]{2})*\Z")


class ArgumentsError(ValueError):
    """Arguments that are not what the module's docstring says."""


def named_arguments(text: bytes) -> list[pb.NamedValue]:
    """Read arguments; every value is text, bytes as they were before they were encoded.

    Raises:
        ArgumentsError: They are malformed, or one is there twice.
    """
    if not text:
        return []
    pairs = text.split(b"&", MOST_ARGUMENTS)
    if len(pairs) > MOST_ARGUMENTS:
        raise ArgumentsError(f"there are more than {MOST_ARGUMENTS} arguments")
    found: dict[bytes, pb.NamedValue] = {}
    for pair in pairs:
        name, equals, value = pair.partition(b"=")
        if not equals or not _NAME.match(name):
            raise ArgumentsError(
                f"{pair[:80]!r} is no argument: expected NAME=VALUE, a name of 1 to 64 of [A-Za-z0-9_]"
            )
        if name in found:
            raise ArgumentsError(f"argument {name.decode()} is there twice: is a value not urlencoded?")
        if not _VALUE.match(value):
            raise ArgumentsError(
                f"argument {name.decode()} is not urlencoded: {value[:80]!r}; write it as $(...{{s.urlencode.param}})"
            )
        text_value = pb.Value(text=unquote_to_bytes(value.replace(b"+", b" ")))
        found[name] = pb.NamedValue(name=name.decode(), value=text_value)
    return list(found.values())
