"""What is refused at the door: every bound on what the sidecar takes in, but those of operations."""

from __future__ import annotations

import re
from collections.abc import Callable

from sipnap.sidecar.core.front_ends import FrontEnd
from sipnap.sidecar.core.suspension import Limits, NapKey, Reason, Refused

_MOST_KNOWN_ROUTES = 10_000
_MOST_SECONDS = 1e9
_ROUTE = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")


class Door:
    """Judges what wants to come in; nothing is taken in yet."""

    __slots__ = ("_limits", "_refusal", "_routes")

    def __init__(self, limits: Limits, refusal: Callable[[Reason, str], Refused]) -> None:
        self._limits = limits
        self._refusal = refusal
        self._routes: dict[str, str] = {}

    def judge(
        self,
        front_end: FrontEnd,
        packed_key: bytes,
        route: str,
        delay_seconds: float,
        deadline_seconds: float | None,
        entry_bytes: int,
    ) -> str:
        """Judge a suspension.

        Returns:
            Its route; one string for all that have it.

        Raises:
            Refused: It is not accepted.
        """
        limits = self._limits
        known_route = self._routes.get(route)
        if known_route is None:
            known_route = self._learn(route)
        if not packed_key.startswith(front_end.packed_epoch):
            epoch = NapKey.unpack(packed_key).boot_epoch
            raise self._refusal(
                Reason.STALE_EPOCH,
                f"boot epoch {epoch} is not the front end's present one, {front_end.boot_epoch}",
            )
        if len(front_end.held) >= limits.max_pending:
            raise self._refusal(Reason.FULL, f"{limits.max_pending} suspensions are held already (--max-pending)")
        if entry_bytes > limits.max_entry_bytes:
            raise self._refusal(
                Reason.TOO_LARGE, f"{entry_bytes} bytes, more than {limits.max_entry_bytes} (--max-entry-bytes)"
            )
        if not 0 < delay_seconds <= limits.max_delay_seconds:
            self.judge_delay(delay_seconds)
        if deadline_seconds is not None and not delay_seconds < deadline_seconds < _MOST_SECONDS:
            raise self._refusal(
                Reason.DELAY_OUT_OF_RANGE,
                f"deadline of {deadline_seconds:g} s is not after the delay of {delay_seconds:g} s",
            )
        return known_route

    def judge_delay(self, seconds: float) -> None:
        """Judge how long somebody wants to wait.

        Raises:
            Refused: So long, or so short, is not accepted.
        """
        if not 0 < seconds <= self._limits.max_delay_seconds:
            raise self._refusal(
                Reason.DELAY_OUT_OF_RANGE,
                f"{seconds:g} s is not more than 0 and at most {self._limits.max_delay_seconds:g} s (--max-seconds)",
            )

    def _learn(self, route: str) -> str:
        if not _ROUTE.match(route):
            raise self._refusal(Reason.INVALID, f"resume_route {route[:80]!r} is not 1 to 64 of [A-Za-z0-9_.:-]")
        if len(self._routes) < _MOST_KNOWN_ROUTES:
            self._routes[route] = route
        return route
