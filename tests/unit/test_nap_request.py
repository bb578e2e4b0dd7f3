"""The NAP requests: one header injection would resume somebody else's transaction."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipnap.client.keys import SuspensionKey
from sipnap.shim.kamailio import nap_request
from sipnap.v1 import suspension_pb2 as pb

KEY = SuspensionKey("kamailio", 1_700_000_000, 12345, 67890, 3)
ALLOWED = re.compile(
    rb"NAP sip:(?P<user>[-0-9a-z_.]+)@(?P<kind>plain|full|task|gate) SIP/2\.0\r\n"
    rb"Via: SIP/2\.0/UDP 127\.0\.0\.1;branch=z9hG4bK\r\nf:<sip:shim@sipnap>;tag=1\r\nt:<sip:proxy@sipnap>\r\n"
    rb"i:[-0-9a-z.]+\r\nCSeq:1 NAP\r\n"
    rb"(?:Nap-Route: (?P<route>[A-Za-z0-9_.:?-]+)\r\n)?"
    rb"(?:Nap-Names: (?P<names>[A-Za-z0-9_:;]+)\r\nNap-Values: (?P<values>[A-Za-z0-9_:;+/=-]*)\r\n)?"
    rb"(?:Nap-Data: (?P<data>[A-Za-z0-9+/=]*)\r\n)?"
    rb"(?:Nap-Error: (?P<error>[^\r\n]*)\r\nNap-Code: (?P<code>[a-z0-9_]+)\r\n)?\r\n\Z"
)


def parts(request: bytes) -> dict[str, bytes | None]:
    found = ALLOWED.match(request)
    assert found, request
    return found.groupdict()


def test_the_usual_one() -> None:
    request = nap_request.continue_request(nap_request.nap_name(KEY), pb.CONTINUE_STATUS_OK)
    said = {name: value for name, value in parts(request).items() if value is not None}
    assert said == {"user": b"12345.67890.3.1700000000.ok", "kind": b"plain"}


@pytest.mark.parametrize(
    ("label", "written"),
    [(0, 0), (2**31 - 1, 2**31 - 1), (2**31, -(2**31)), (2**32 - 1, -1)],
)
def test_labels_are_signed_for_tm(label: int, written: int) -> None:
    assert nap_request.nap_name(KEY._replace(transaction_label=label)) == b"12345.%d.3.1700000000" % written


@pytest.mark.parametrize("status", [s for s in pb.ContinueStatus.values() if s])
def test_every_status_has_a_word(status: int) -> None:
    name = pb.ContinueStatus.Name(status).removeprefix("CONTINUE_STATUS_").lower()
    request = nap_request.continue_request(b"1.2.3.4", status)
    assert parts(request)["user"] == b"1.2.3.4." + name.encode()


def test_an_unknown_status_is_a_failure() -> None:
    assert parts(nap_request.continue_request(b"1.2.3.4", 99))["user"] == b"1.2.3.4.failed"


def test_a_route_of_another_program() -> None:
    request = nap_request.continue_request(b"1.2.3.4", pb.CONTINUE_STATUS_OK, route="OTHER_route-1.x:y")
    assert (parts(request)["kind"], parts(request)["route"]) == (b"full", b"OTHER_route-1.x:y")


@given(route=st.text(), error=st.text())
def test_nothing_gets_out_of_its_header(route: str, error: str) -> None:
    request = nap_request.continue_request(b"1.2.3.4", pb.CONTINUE_STATUS_FAILED, route=route, error=error)
    found = parts(request)
    assert found["user"] == b"1.2.3.4.failed"
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", route):
        assert found["route"] == b"?", "no script has such a route"
    assert len(request) < 2200


@pytest.mark.parametrize(("is_open", "word"), [(True, b"open"), (False, b"closed"), (None, b"ask")])
def test_heartbeat(is_open: bool | None, word: bytes) -> None:
    found = parts(nap_request.gate_request(17, is_open=is_open))
    assert (found["kind"], found["user"]) == (b"gate", word + b".17")


def values_of(request: bytes) -> list[tuple[str, bytes | int]]:
    """Names and values as the script reads them, last value first."""
    text = parts(request)["values"]
    assert text is not None
    read: list[tuple[str, bytes | int]] = []
    for entry in text.split(b";") if text else ():
        name, kind, value = entry.split(b":")
        assert kind in (b"t", b"i")
        read.append((name.decode(), base64.b64decode(value, validate=True) if kind == b"t" else int(value)))
    return read


def named(name: str, value: bytes | int | bool | list[bytes]) -> pb.NamedValue:
    if isinstance(value, bool):
        return pb.NamedValue(name=name, value=pb.Value(boolean=value))
    if isinstance(value, int):
        return pb.NamedValue(name=name, value=pb.Value(integer=value))
    if isinstance(value, list):
        items = [pb.Value(text=text) for text in value]
        return pb.NamedValue(name=name, value=pb.Value(list=pb.ValueList(values=items)))
    return pb.NamedValue(name=name, value=pb.Value(text=value))


def test_values() -> None:
    values = [named("a", b"one"), named("b", 7), named("c", True), named("d", [b"x", b"y"]), named("e", -(2**40))]
    request = nap_request.continue_request(b"1.2.3.4", pb.CONTINUE_STATUS_OK, values=values)
    assert parts(request)["names"] == b"a:t;b:i;c:b;d:ltt;e:n"
    assert values_of(request) == [("a", b"one"), ("b", 7), ("c", 1), ("d", b"y"), ("d", b"x"), ("e", b"-1099511627776")]
    assert parts(request)["user"] == b"1.2.3.4.ok"


VALUES = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9_]{1,64}", fullmatch=True),
    st.binary(max_size=300) | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.lists(st.binary(), max_size=4),
    max_size=12,
)


@given(VALUES)
def test_any_values_keep_to_their_header(found: dict[str, bytes | int | bool | list[bytes]]) -> None:
    request = nap_request.continue_request(
        b"1.2.3.4", pb.CONTINUE_STATUS_OK, values=[named(name, value) for name, value in found.items()]
    )
    if not found:
        assert parts(request)["kind"] == b"plain"
        return
    expected: list[tuple[str, bytes | int]] = []
    for name, value in found.items():
        if isinstance(value, list):
            expected += [(name, text) for text in reversed(value)]
        elif isinstance(value, bytes):
            expected.append((name, value))
        else:
            expected.append((name, int(value) if abs(value) < 2**31 else b"%d" % value))
    assert values_of(request) == expected


@given(name=st.text(max_size=70))
def test_names_of_values_are_checked(name: str) -> None:
    request = nap_request.continue_request(
        b"1.2.3.4", pb.CONTINUE_STATUS_OK, values=[named(name, b"x"), named("good", b"y")]
    )
    is_good = re.fullmatch("[A-Za-z0-9_]{1,64}", name) is not None
    assert ("good", b"y") in values_of(request)
    assert len(values_of(request)) == 1 + is_good


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([named("big", b"x" * 36_000)], "at most 48000 fit"),
        ([named("list", [b"x" * 1000] * 40)], "at most 48000 fit"),
        ([named(f"v{number}", number) for number in range(65)], "65 values, at most 64 fit"),
        ([named("list", [b""] * 65)], "65 values, at most 64 fit"),
        ([named(f"v{number}", []) for number in range(65)], "65 values, at most 64 fit"),
    ],
)
def test_values_that_do_not_fit(values: list[pb.NamedValue], why: str) -> None:
    request = nap_request.continue_request(b"1.2.3.4", pb.CONTINUE_STATUS_OK, route="R", values=values)
    found = parts(request)
    assert (found["user"], found["code"], found["values"]) == (b"1.2.3.4.failed", b"too_large", None)
    assert found["route"] == b"R"
    assert why.encode() in (found["error"] or b"")


def test_the_largest_request_fits_into_a_datagram() -> None:
    values = [named("v" * 61 + f"{number:03}", b"x" * 500) for number in range(64)]
    request = nap_request.continue_request(
        b"4294967295.-2147483648.12.1700000000",
        pb.CONTINUE_STATUS_TIMED_OUT,
        route="R" * 64,
        error="\U0001f600" * 1000,
        error_code="c" * 64,
        values=values,
    )
    assert parts(request)["values"] is not None
    assert 47_000 < len(request) < 60_000


@given(error=st.text(min_size=1), code=st.text())
def test_error_codes_are_words(error: str, code: str) -> None:
    request = nap_request.continue_request(b"1.2.3.4", pb.CONTINUE_STATUS_FAILED, error=error, error_code=code)
    found = parts(request)
    assert found["code"] == (code.encode() if re.fullmatch("[a-z0-9_]{1,64}", code) else b"failed")


@given(data=st.binary(max_size=400), route=st.text(), error=st.text())
def test_any_task_keeps_to_its_headers(data: bytes, route: str, error: str) -> None:
    request = nap_request.task_request(b"1.2.0.4", pb.CONTINUE_STATUS_OK, route=route, data=data, error=error)
    found = parts(request)
    assert (found["user"], found["kind"]) == (b"1.2.0.4.ok", b"task")
    assert base64.b64decode(found["data"] or b"", validate=True) == data


def test_a_task_whose_data_do_not_fit() -> None:
    found = parts(nap_request.task_request(b"1.2.0.4", pb.CONTINUE_STATUS_OK, route="R", data=b"x" * 36_001))
    assert (found["user"], found["data"], found["code"]) == (b"1.2.0.4.failed", b"", b"too_large")
