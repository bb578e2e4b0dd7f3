"""What the passing of time brings: the engine finds it, the edges carry it out."""

from __future__ import annotations

from dataclasses import dataclass

from sipnap.sidecar.core.front_ends import FrontEnd
from sipnap.sidecar.core.suspension import Held, Sleeper


@dataclass(frozen=True, slots=True)
class Told:
    """Naps whose front end is told of them by number, and waits itself for what is left of their time."""

    front_end: FrontEnd
    """Whose they are."""
    naps: dict[int, Held]
    """They, by number."""
    earliest_seconds: float
    """None of them is due before."""


@dataclass(frozen=True, slots=True)
class Due:
    """Whose time has come."""

    told: list[Told]
    """Their front ends are to be told of them by number."""
    continues: list[Held]
    """To be sent to their front ends in full."""
    sleepers: list[Sleeper]
    """To be woken."""
    answered: list[Held]
    """To be sent to their front ends as well, before their time: the last attempt of their operations has timed out."""
