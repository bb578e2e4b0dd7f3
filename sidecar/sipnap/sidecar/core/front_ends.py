"""What the core knows of one front end: its life (boot epoch) and its suspensions."""

from __future__ import annotations

from sipnap.sidecar.core.suspension import Held, NapKey


class FrontEnd:
    """One front end, from its first Hello until nothing of it is left."""

    __slots__ = ("boot_epoch", "committing", "connected", "continuing", "front_end_id", "gone_since_seconds", "held")

    def __init__(self, front_end_id: str, boot_epoch: int) -> None:
        self.front_end_id = front_end_id
        self.boot_epoch = boot_epoch
        self.connected = False
        self.gone_since_seconds = 0.0
        """When its session ended, if it has none."""
        self.committing = 0
        """Suspensions that the journal does not have yet: held, but not accepted."""
        self.held: dict[NapKey, Held] = {}
        """All its suspensions in order of acceptance."""
        self.continuing: dict[NapKey, Held] = {}
        """Those to be continued and not answered for yet, in order of their time."""

    @property
    def pending(self) -> int:
        """Suspensions that are accepted and whose time has not come."""
        return len(self.held) - len(self.continuing) - self.committing
