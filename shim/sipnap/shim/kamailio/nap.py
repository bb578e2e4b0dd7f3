"""One nap of the proxy's: the object that the session keeps, with what only the bridge has to know of it."""

from __future__ import annotations

from sipnap.client.keys import Key
from sipnap.client.outstanding import Suspended
from sipnap.v1 import suspension_pb2 as pb


class Nap(Suspended):
    """A transaction that the proxy has suspended, or a task of its, until it has answered for the end of it.

    Made for each call: `datagram` sets what its constructor does not take.
    """

    __slots__ = ("call_id", "has_operations", "not_found", "sendings")

    call_id: bytes
    """Value of its Call-ID, which a CANCEL shares; empty if it has none."""
    has_operations: bool
    """Whether a worker is to do something meanwhile."""
    sendings: int
    """How often the proxy was told to end it."""
    not_found: int
    """How many of those found no such transaction."""

    @property
    def suspension(self) -> pb.Suspension:
        """What goes to the sidecar, decoded; empty for one whose datagram could not be read."""
        return pb.Suspension.FromString(self.encoded)


def nap_without_state(key: Key, route: str = "") -> Nap:
    """A nap of which no more is known: the proxy can be told to end it."""
    nap = Nap(key, b"", route, 0.0)
    nap.call_id = b""
    nap.has_operations = False
    nap.sendings = nap.not_found = 0
    return nap
