"""The settings of worker groups: ``--group name=lookups,workers=16,kind=async,queue=1000``."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sipnap.sidecar.core.groups import DEFAULT_GROUP, MOST_WORKERS, WorkerGroup, WorkerKind
from sipnap.sidecar.dispatcher import Dispatcher

FORM = "name=NAME,workers=N,kind=async|process|remote,queue=N"
"""What a ``--group`` looks like; workers of remote ones come by themselves, kind and queue may be left out."""

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")
log = logging.getLogger("sipnap.sidecar")

_KEYS = ("name", "workers", "kind", "queue")


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """One worker group as it is to be."""

    name: str
    """Its name, as operations ask for it: 1 to 64 characters of ``[A-Za-z0-9_.:-]``."""
    workers: int
    """How many workers it has; 0 for remote ones, which come and go."""
    kind: WorkerKind = WorkerKind.ASYNC
    """Who they are."""
    max_queued: int | None = None
    """Most jobs that wait for one; None: ``--max-queued``."""

    @classmethod
    def parse(cls, text: str) -> GroupSettings:
        """Read a ``--group``.

        Raises:
            ValueError: It is none; says what is wrong with it.
        """
        values: dict[str, str] = {}
        for part in text.split(","):
            key, has_value, value = (word.strip() for word in part.partition("="))
            if not has_value:
                raise ValueError(f"{part.strip()!r} is not key=value; a group is {FORM}")
            if key not in _KEYS:
                raise ValueError(f"{key!r} is not one of {', '.join(_KEYS)}")
            if key in values:
                raise ValueError(f"{key} is given twice")
            values[key] = value
        name = values.get("name", "")
        if not _NAME.match(name):
            raise ValueError(f"name={name!r}: a group needs a name, 1 to 64 of [A-Za-z0-9_.:-]")
        try:
            kind = WorkerKind(values.get("kind", WorkerKind.ASYNC.value))
        except ValueError:
            raise ValueError(f"kind={values['kind']!r} is not async, process or remote") from None
        queue = _number("queue", values["queue"], 10_000_000) if "queue" in values else None
        if kind is WorkerKind.REMOTE:
            if "workers" in values:
                raise ValueError("workers= is not for kind=remote: they come by themselves ('sipnap worker')")
            return cls(name, 0, kind, queue)
        if "workers" not in values:
            raise ValueError(f"workers= is missing; a group is {FORM}")
        return cls(name, _number("workers", values["workers"], MOST_WORKERS), kind, queue)


def group_flag(text: str) -> GroupSettings:
    """The type of the flag ``--group``."""
    try:
        return GroupSettings.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def with_default(groups: Iterable[GroupSettings], workers: int) -> tuple[GroupSettings, ...]:
    """All groups, in the order given; "default" with so many coroutines comes first unless it is among them.

    Raises:
        ValueError: Two have one name.
    """
    by_name: dict[str, GroupSettings] = {}
    for group in groups:
        if group.name in by_name:
            raise ValueError(f"--group: there are two by the name of {group.name!r}")
        by_name[group.name] = group
    if DEFAULT_GROUP not in by_name:
        by_name = {DEFAULT_GROUP: GroupSettings(DEFAULT_GROUP, workers), **by_name}
    return tuple(by_name.values())


def make_groups(groups: Sequence[GroupSettings], max_queued: int) -> list[WorkerGroup]:
    """The groups themselves, for the engine."""
    return [
        WorkerGroup(
            group.name,
            group.workers,
            max_queued if group.max_queued is None else group.max_queued,
            group.kind,
        )
        for group in groups
    ]


def reload_groups(dispatcher: Dispatcher, reread: Callable[[], Sequence[GroupSettings]]) -> None:
    """Read the settings again and give each group the workers that they say; what is wrong with them changes nothing.

    Only the number of workers can change at run time; whatever else is new is logged as such.
    """
    try:
        wanted = {group.name: group for group in reread()}
    except ValueError as error:
        log.error("settings not taken, nothing has changed reason=%s", error)
        return
    groups = dispatcher.engine.jobs.groups
    for name in sorted(wanted.keys() ^ groups.keys()):
        log.warning(
            "settings changed, needs a restart group=%s change=%s", name, "new" if name in wanted else "not there now"
        )
    resized = []
    for name, settings in wanted.items():
        group = groups.get(name)
        if group is None:
            continue
        if settings.kind is not group.kind or settings.max_queued not in (None, group.max_queued):
            log.warning("settings changed, needs a restart group=%s change=kind or queue", name)
        if settings.kind is group.kind is not WorkerKind.REMOTE and settings.workers != group.workers:
            resized.append(f"{name}:{group.workers}->{settings.workers}")
            dispatcher.resize(group, settings.workers)
    log.info("settings read again resized=%s", ",".join(resized) or "none")


def _number(key: str, text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= most):
        raise ValueError(f"{key}={text!r} is not a whole number from 1 to {most}")
    return int(text)
