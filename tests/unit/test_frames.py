"""SessionFrame is SessionRequest on the wire, both ways, whatever is in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipnap.client.frames import SESSION_METHOD, SessionFrame
from sipnap.client.keys import fill_key, key_of
from sipnap.v1 import front_end_service_pb2 as wire
from sipnap.v1 import suspension_pb2 as pb

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
KEYS = st.builds(
    pb.SuspensionKey,
    front_end_id=st.sampled_from(["", "kamailio"]),
    boot_epoch=U64,
    transaction_index=U32,
    transaction_label=U32,
    nap_number=U32,
)
SUSPENSIONS = st.builds(
    pb.Suspension,
    key=KEYS,
    resume_route=st.sampled_from(["", "RESUME"]),
    state=st.builds(pb.TransactionState, head=st.binary(max_size=300), call_id=st.binary(max_size=20)),
    data=st.binary(max_size=20),
)
REQUESTS = st.builds(
    wire.SessionRequest,
    hello=st.none() | st.builds(wire.Hello, protocol_version=U32, front_end_id=st.just("x"), boot_epoch=U64),
    frame_number=U64,
    suspends=st.lists(SUSPENSIONS, max_size=4),
    cancels=st.lists(KEYS, max_size=3),
    results=st.lists(
        st.builds(wire.ContinueResult, key=KEYS, outcome=st.sampled_from(pb.ContinueOutcome.values())), max_size=3
    ),
    heartbeat=st.none() | st.builds(wire.Heartbeat, nonce=U64),
    applied=st.lists(U64, max_size=5),
    left_us=st.lists(U64, max_size=5),
)


@given(REQUESTS)
def test_a_frame_reads_what_a_request_writes_and_writes_the_same(request: wire.SessionRequest) -> None:
    data = request.SerializeToString(deterministic=True)
    frame = SessionFrame.FromString(data)
    assert [pb.Suspension.FromString(encoded) for encoded in frame.suspends] == list(request.suspends)
    assert frame.SerializeToString(deterministic=True) == data


@given(REQUESTS)
def test_a_request_reads_what_a_frame_writes(request: wire.SessionRequest) -> None:
    frame = SessionFrame(frame_number=request.frame_number, applied=request.applied)
    frame.left_us.extend(request.left_us)
    frame.suspends.extend(suspension.SerializeToString() for suspension in request.suspends)
    for key in request.cancels:
        fill_key(frame.cancels.add(), key_of(key)[1:])
        key.front_end_id = ""  # it stays implied
    read = wire.SessionRequest.FromString(frame.SerializeToString())
    assert read == wire.SessionRequest(
        frame_number=request.frame_number,
        suspends=request.suspends,
        cancels=request.cancels,
        applied=request.applied,
        left_us=request.left_us,
    )


def test_every_field_of_a_request_is_one_of_a_frame() -> None:
    """And none is different but the one that is meant to be."""
    request, frame = wire.SessionRequest.DESCRIPTOR, SessionFrame.DESCRIPTOR
    assert {field.number: field.name for field in frame.fields} == {
        field.number: field.name for field in request.fields
    }
    for field in request.fields:
        same = frame.fields_by_name[field.name]
        assert same.is_repeated == field.is_repeated
        assert (same.type == field.type) != (field.name == "suspends"), field.name


@pytest.mark.parametrize("encoded", [b"", b"\xff", b"no message at all"])
def test_what_is_no_suspension_is_the_readers_business(encoded: bytes) -> None:
    frame = SessionFrame()
    frame.suspends.append(encoded)
    assert list(SessionFrame.FromString(frame.SerializeToString()).suspends) == [encoded]


def test_the_method_is_the_contracts() -> None:
    service = wire.DESCRIPTOR.services_by_name["FrontEndService"]
    assert f"/{service.full_name}/{service.methods_by_name['Session'].name}" == SESSION_METHOD
