"""Fixtures that more than one kind of test uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Sidecar
from tests.support.redis_server import RedisServer


@pytest.fixture(autouse=True)
def state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test starts keeps its state in the test's own directory, not in the user's."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    """A real `sipnap serve` process, ready; its gRPC address is `sidecar.target`."""
    with Sidecar() as process:
        yield process


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One `redis-server` for all tests that leave its settings alone; ask for `redis` instead."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as process:
        yield process


@pytest.fixture
def redis(shared_redis: RedisServer) -> RedisServer:
    """A real, empty Redis; its address is `redis.url`. Its settings are to be left alone, or put back."""
    shared_redis.command("FLUSHALL")
    return shared_redis
