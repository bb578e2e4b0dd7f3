"""Stacks of proxy, shim and sidecar: one for each engine, shared by the tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.caller import Caller
from tests.acceptance.stack import Stack


@pytest.fixture(scope="module", params=["native.cfg", "kemi.cfg"])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running stack, with the script in the proxy's own language, and once more in Python."""
    with Stack(tmp_path_factory.mktemp("stack"), script=request.param) as running:
        yield running


@pytest.fixture
def caller(stack: Stack) -> Iterator[Caller]:
    """A caller of that stack's proxy."""
    with Caller(stack.proxy.ports.sip) as ready:
        yield ready
