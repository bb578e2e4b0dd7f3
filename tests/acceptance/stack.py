"""Proxy, shim and sidecar together, each a real process."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from sipnap.client import sync
from sipnap.v1 import suspension_pb2 as pb
from sipnap.v1.admin_service_pb2 import Counters
from tests.acceptance.caller import Call
from tests.acceptance.proxy import Ports, Proxy
from tests.support.processes import Process, Sidecar, sipnap, wait_until

FRONT_END_ID = "acceptance"


class Shim(Process):
    """`sipnap shim kamailio` between a proxy and a sidecar."""

    def __init__(self, ports: Ports, sidecar_target: str, *flags: str) -> None:
        super().__init__(
            "shim",
            sipnap(
                "shim", "kamailio", "--sidecar", sidecar_target, "--front-end-id", FRONT_END_ID,
                "--listen", f"127.0.0.1:{ports.shim}", "--proxy", f"127.0.0.1:{ports.nap}", *flags,
            ),
            ready=r"^sipnap shim kamailio: ready on ",
        )  # fmt: skip


class Stack:
    """All three. A context manager: leaving it ends what still runs, and adds their output to the error, if any."""

    def __init__(
        self,
        directory: Path,
        *,
        script: str = "native.cfg",
        kemi_script: str = "kemi_script.py",
        defines: Mapping[str, int] = MappingProxyType({}),
        sidecar_flags: Sequence[str] = (),
        has_second_sidecar: bool = False,
    ) -> None:
        """Start them, and wait until requests may nap.

        Args:
            directory: For the proxy's files.
            script: The proxy's script.
            kemi_script: Its Python script; a native script does not read it.
            defines: More settings of sipnap.cfg.
            sidecar_flags: For `sipnap serve`, such as ``--journal``; the memory journal if it is not among them.
            has_second_sidecar: Whether the shim has another one to go to, with the same flags.
        """
        self._exits = contextlib.ExitStack()
        self._directory = directory
        self._script = script
        self._kemi_script = kemi_script
        self._defines = defines
        self._sidecar_flags = sidecar_flags
        self.second_sidecar: Sidecar | None = None
        self._shim_flags: list[str] = []
        self._lives = 1
        try:
            self.sidecar = self._exits.enter_context(Sidecar(*sidecar_flags))
            self.client = self._exits.enter_context(sync.Client(self.sidecar.target))
            if has_second_sidecar:
                self.second_sidecar = self._exits.enter_context(Sidecar(*sidecar_flags))
                self._shim_flags = ["--sidecar", self.second_sidecar.target]
            self.proxy = self._exits.enter_context(
                Proxy(directory / "proxy", script=script, kemi_script=kemi_script, defines=defines)
            )
            self.shim = self._exits.enter_context(Shim(self.proxy.ports, self.sidecar.target, *self._shim_flags))
            self.wait_gate(is_open=True)
        except BaseException:
            self._exits.close()
            raise

    def wait_gate(self, *, is_open: bool, seconds: float = 10) -> None:
        """Wait until the proxy believes that the gate is open, or shut."""
        wait_until(
            lambda: self.gate_is_open() == is_open,
            seconds,
            lambda: f"gate {'open' if is_open else 'shut'}\n{self.proxy.tail()}\n{self.shim.tail()}",
        )

    def gate_is_open(self) -> bool:
        """Whether the proxy lets requests nap."""
        gate = self.shared_variable("sipnap_gate")
        now: int = self.proxy.rpc("core.uptime")["uptime"] + self.boot_epoch()
        return gate >= now

    def boot_epoch(self) -> int:
        """The proxy's ``$Tb``: the shim has logged it."""
        return int(self.shim.wait_output(r"boot_epoch=([0-9]+)")[1])

    def shared_variable(self, name: str) -> int:
        """Value of one of the proxy's ``$shv`` variables, an integer."""
        value: dict[str, Any] = self.proxy.rpc("pv.shvGet", name)
        return int(value["value"])

    def counters(self) -> Counters:
        """What the sidecar has counted since its start."""
        return self.client.status().counters

    def held(self) -> list[pb.SuspensionInfo]:
        """What the sidecar holds."""
        return list(self.client.list(FRONT_END_ID))

    def holds(self, call: Call) -> bool:
        """Whether the sidecar holds a suspension of this call."""
        return any(info.suspension.state.via_branch == call.branch for info in self.held())

    def held_for(self, call: Call) -> pb.SuspensionInfo:
        """The one suspension that the sidecar holds for a call; waits for it."""
        found: list[pb.SuspensionInfo] = []

        def look() -> bool:
            found[:] = [info for info in self.held() if info.suspension.state.via_branch == call.branch]
            return bool(found)

        wait_until(look, 5, lambda: f"the sidecar holds the call\n{self.proxy.tail()}")
        assert len(found) == 1, found
        return found[0]

    def restart_shim(self) -> None:
        """A new shim in the place of the old one."""
        self.shim = self._exits.enter_context(Shim(self.proxy.ports, self.sidecar.target, *self._shim_flags))

    def restart_sidecar(self) -> None:
        """A new sidecar in the place of the old one, on its port, with its journal."""
        self.sidecar = self._exits.enter_context(Sidecar(*self._sidecar_flags, port=self.sidecar.port))

    def restart_proxy(self) -> None:
        """A new proxy in the place of the old one, on its ports."""
        self._lives += 1
        directory = self._directory / f"proxy-{self._lives}"
        self.proxy = self._exits.enter_context(
            Proxy(
                directory,
                script=self._script,
                kemi_script=self._kemi_script,
                ports=self.proxy.ports,
                defines=self._defines,
            )
        )

    def close(self) -> None:
        """End all that still runs."""
        self._exits.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.__exit__(kind, error, trace)
