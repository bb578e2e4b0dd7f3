"""What the core knows of one front end: its life (boot epoch) and its suspensions."""

from __future__ import annotations

from collections.abc import Callable

from sipnap.sidecar.core.streams import Stream
from sipnap.sidecar.core.suspension import Held, Limits, NapKey, Reason, Refused


class FrontEnd:
    """One front end, from its first Hello until nothing of it is left."""

    __slots__ = (
        "boot_epoch", "committing", "connected", "continuing", "front_end_id", "gone_since_seconds",
        "held", "packed_epoch", "stream",
    )  # fmt: skip

    def __init__(self, front_end_id: str, boot_epoch: int) -> None:
        self.front_end_id = front_end_id
        self.begin_life(boot_epoch)
        self.connected = False
        self.stream: Stream | None = None
        """Its session's, if that one numbers its naps."""
        self.gone_since_seconds = 0.0
        """When its session ended, if it has none."""
        self.committing = 0
        """Suspensions that the journal does not have yet: held, but not accepted."""
        self.held: dict[bytes, Held] = {}
        """All its suspensions by packed key, in order of acceptance."""
        self.continuing: dict[int, Held] = {}
        """Those to be continued and not answered for yet, by sequence, in order of their time."""

    def begin_life(self, boot_epoch: int) -> None:
        """It has been started, or is heard of for the first time."""
        self.boot_epoch = boot_epoch
        self.packed_epoch = NapKey(boot_epoch, 0, 0, 0).pack()[:8]
        """What the packed keys of its present suspensions begin with."""

    @property
    def pending(self) -> int:
        """Suspensions that are accepted and whose time has not come."""
        return len(self.held) - len(self.continuing) - self.committing


class FrontEnds(dict[str, FrontEnd]):
    """All front ends that a sidecar knows, by id."""

    __slots__ = ("_clock", "_limits", "_refusal")

    def __init__(self, clock: Callable[[], float], limits: Limits, refusal: Callable[[Reason, str], Refused]) -> None:
        super().__init__()
        self._clock = clock
        self._limits = limits
        self._refusal = refusal

    def make(self, front_end_id: str, boot_epoch: int) -> FrontEnd:
        """A new one; if there is no room, it takes that of those that have neither a session nor suspensions.

        Raises:
            Refused: There are too many front ends.
        """
        if len(self) >= self._limits.max_front_ends:
            for name, front_end in list(self.items()):
                if not front_end.connected and not front_end.held:
                    del self[name]
        if len(self) >= self._limits.max_front_ends:
            raise Refused(Reason.FULL, f"the sidecar serves {self._limits.max_front_ends} front ends already")
        front_end = self[front_end_id] = FrontEnd(front_end_id, boot_epoch)
        return front_end

    def reachable(self, front_end_id: str) -> FrontEnd:
        """The front end that a unary call names.

        Raises:
            Refused: It has no session, nor had one lately: nobody would ever resume its transactions.
        """
        front_end = self.get(front_end_id)
        if front_end is not None and (
            front_end.connected or self._clock() - front_end.gone_since_seconds < self._limits.linger_seconds
        ):
            return front_end
        raise self._refusal(
            Reason.FRONT_END_UNKNOWN, f"front end {front_end_id[:160]!r} has no session with this sidecar"
        )
