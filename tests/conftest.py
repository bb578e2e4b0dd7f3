"""Fixtures that more than one kind of test uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Sidecar


@pytest.fixture(autouse=True)
def state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test starts keeps its state in the test's own directory, not in the user's."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    """A real `sipnap serve` process, ready; its gRPC address is `sidecar.target`."""
    with Sidecar() as process:
        yield process
