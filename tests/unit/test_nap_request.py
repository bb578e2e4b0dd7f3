"""The NAP requests: one header injection would resume somebody else's transaction."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipnap.client.keys import SuspensionKey
from sipnap.shim.kamailio import nap_request
from sipnap.v1 import suspension_pb2 as pb

KEY = SuspensionKey("kamailio", 1_700_000_000, 12345, 67890, 3)
ALLOWED = re.compile(
    rb"NAP sip:(?P<user>[-0-9a-z_.]+)@(?P<kind>plain|full|gate) SIP/2\.0\r\n"
    rb"Via: SIP/2\.0/UDP 127\.0\.0\.1;branch=z9hG4bK\r\nf:<sip:shim@sipnap>;tag=1\r\nt:<sip:proxy@sipnap>\r\n"
    rb"i:[-0-9a-z.]+\r\nCSeq:1 NAP\r\n"
    rb"(?:Nap-Route: (?P<route>[A-Za-z0-9_.:?-]+)\r\n)?(?:Nap-Error: (?P<error>[^\r\n]*)\r\n)?\r\n\Z"
)


def parts(request: bytes) -> dict[str, bytes | None]:
    found = ALLOWED.match(request)
    assert found, request
    return found.groupdict()


def test_the_usual_one() -> None:
    request = nap_request.continue_request(nap_request.nap_name(KEY), pb.CONTINUE_STATUS_OK)
    assert parts(request) == {
        "user": b"12345.67890.3.1700000000.ok",
        "kind": b"plain",
        "route": None,
        "error": None,
    }


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
