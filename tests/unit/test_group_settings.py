"""What `--group` takes, and what reading the settings again may change."""

from __future__ import annotations

import pytest

from sipnap.sidecar.core.groups import WorkerKind
from sipnap.sidecar.group_settings import GroupSettings, make_groups, with_default


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("name=lookups,workers=16", GroupSettings("lookups", 16)),
        ("name=lookups, workers=16, kind=process, queue=7", GroupSettings("lookups", 16, WorkerKind.PROCESS, 7)),
        ("kind=remote,name=far", GroupSettings("far", 0, WorkerKind.REMOTE)),
        ("name=far,kind=remote,queue=5", GroupSettings("far", 0, WorkerKind.REMOTE, 5)),
    ],
)
def test_groups(text: str, settings: GroupSettings) -> None:
    assert GroupSettings.parse(text) == settings


@pytest.mark.parametrize("text", ["", "lookups", "name=", "name=a,,workers=3", "name=a,workers=-1", "name=a,workers=٣"])
def test_no_groups(text: str) -> None:
    with pytest.raises(ValueError, match=r"name|workers|key=value"):
        GroupSettings.parse(text)


def test_the_default_group_is_always_there() -> None:
    other = GroupSettings("other", 3)
    assert with_default([other], 16) == (GroupSettings("default", 16), other)
    own = GroupSettings("default", 2, WorkerKind.PROCESS)
    assert with_default([other, own], 16) == (other, own)


def test_queues_are_bounded_as_said() -> None:
    groups = make_groups([GroupSettings("a", 1), GroupSettings("b", 2, max_queued=5)], 100)
    assert [(group.name, group.workers, group.max_queued) for group in groups] == [("a", 1, 100), ("b", 2, 5)]
