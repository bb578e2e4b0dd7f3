"""Asking for an operation: Python values to the contract's, and what cannot be sent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipnap.client.operations import arguments_of, operation_message
from sipnap.client.outstanding import seconds_of
from sipnap.v1 import suspension_pb2 as pb

scalars = st.binary() | st.booleans() | st.integers(-(2**63), 2**63 - 1)
names = st.from_regex(r"[A-Za-z0-9_]{1,64}", fullmatch=True)


@given(st.dictionaries(names, scalars | st.lists(scalars)))
def test_what_is_sent_arrives(arguments: dict[str, Any]) -> None:
    arrived = arguments_of(pb.Operation.FromString(operation_message("x", arguments).SerializeToString()).arguments)
    assert arrived == arguments
    assert {name: type(value) for name, value in arrived.items()} == {name: type(v) for name, v in arguments.items()}


def test_text_is_utf8_and_what_was_none_stays_as_it_came() -> None:
    hostile = bytes(range(256)).decode("utf-8", "surrogateescape")
    assert arguments_of(operation_message("x", {"a": "ü", "b": hostile, "c": ("d",)}).arguments) == {
        "a": "ü".encode(),
        "b": bytes(range(256)),
        "c": [b"d"],
    }


def test_settings_of_the_call() -> None:
    plain = operation_message("http")
    assert plain == pb.Operation(name="http")
    full = operation_message("http", group="g", prefix="p_", timeout_seconds=1.5, max_attempts=3)
    assert (full.group, full.prefix, full.max_attempts) == ("g", "p_", 3)
    assert 1.5 <= seconds_of(full.timeout) < 1.501


@pytest.mark.parametrize(
    "value", [None, 1.5, {"a": 1}, {"a"}, [[1]], [None], 2**63, "\ud800", object()], ids=lambda value: repr(value)[:12]
)
def test_what_cannot_be_sent(value: Any) -> None:
    with pytest.raises(ValueError, match="argument 'a' of operation 'http' cannot be sent"):
        operation_message("http", {"a": value})


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"arguments": {"a b": 1}}, "not a name"),
        ({"arguments": {"": 1}}, "not a name"),
        ({"arguments": {"a\n": 1}}, "not a name"),
        ({"prefix": "a-"}, "not a prefix"),
        ({"prefix": "a" * 33}, "not a prefix"),
        ({"max_attempts": 11}, "0 to 10"),
        ({"max_attempts": -1}, "0 to 10"),
        ({"timeout_seconds": 0}, "more than 0"),
        ({"timeout_seconds": float("nan")}, "more than 0"),
        ({"timeout_seconds": float("inf")}, "more than 0"),
    ],
)
def test_what_makes_no_sense(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        operation_message("http", **settings)
