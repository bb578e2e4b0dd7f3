"""What the core knows of one front end: its life (boot epoch) and its suspensions."""

from __future__ import annotations

from sipnap.sidecar.core.suspension import Held, NapKey


class FrontEnd:
    """One front end, from its first Hello until nothing of it is left."""

    __slots__ = (
        "ahead_seconds", "boot_epoch", "committing", "connected", "continuing", "front_end_id", "gone_since_seconds",
        "held", "packed_epoch",
    )  # fmt: skip

    def __init__(self, front_end_id: str, boot_epoch: int) -> None:
        self.front_end_id = front_end_id
        self.begin_life(boot_epoch)
        self.connected = False
        self.ahead_seconds = 0.0
        """How long before its time its session takes a continue, and waits itself."""
        self.gone_since_seconds = 0.0
        """When its session ended, if it has none."""
        self.committing = 0
        """Suspensions that the journal does not have yet: held, but not accepted."""
        self.held: dict[bytes, Held] = {}
        """All its suspensions by packed key, in order of acceptance."""
        self.continuing: dict[bytes, Held] = {}
        """Those to be continued and not answered for yet, in order of their time."""

    def begin_life(self, boot_epoch: int) -> None:
        """It has been started, or is heard of for the first time."""
        self.boot_epoch = boot_epoch
        self.packed_epoch = NapKey(boot_epoch, 0, 0, 0).pack()[:8]
        """What the packed keys of its present suspensions begin with."""

    @property
    def pending(self) -> int:
        """Suspensions that are accepted and whose time has not come."""
        return len(self.held) - len(self.continuing) - self.committing
