"""Continues that a session makes itself. The attempt of those that no sidecar would have sent is 0."""

from __future__ import annotations

from sipnap.client.keys import Key, fill_key
from sipnap.v1 import front_end_service_pb2 as wire
from sipnap.v1 import suspension_pb2 as pb


def as_asked(key: Key, route: str) -> pb.Continue:
    """The sidecar said in short that it is over just as it was asked for."""
    order = pb.Continue(resume_route=route, status=pb.CONTINUE_STATUS_OK, attempt=1)
    fill_key(order.key, key[1:])
    return order


def refused(key: Key, route: str, refusal: wire.Refusal) -> pb.Continue:
    """The sidecar did not accept it."""
    reason = reason_text(refusal.reason)
    return _continue(key, route, pb.CONTINUE_STATUS_FAILED, f"refused: {reason}: {refusal.message}", reason)


def lost(key: Key, route: str) -> pb.Continue:
    """Its deadline has passed."""
    return _continue(key, route, pb.CONTINUE_STATUS_LOST, "no sidecar answered for it in time", "lost")


def reason_text(reason: pb.RefusalReason) -> str:
    """A refusal's reason as scripts and logs show it, such as ``full``."""
    return pb.RefusalReason.Name(reason).removeprefix("REFUSAL_REASON_").lower()


def _continue(key: Key, route: str, status: pb.ContinueStatus, error: str, error_code: str) -> pb.Continue:
    order = pb.Continue(resume_route=route, status=status, error=error, error_code=error_code)
    fill_key(order.key, key[1:])
    return order
