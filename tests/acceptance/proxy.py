"""A real Kamailio with one of the scripts of these tests, on free loopback ports."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sipnap.shim.kamailio.command import write_config
from tests.support.processes import Process, free_port, wait_until

HERE = Path(__file__).parent
KAMAILIO = shutil.which("kamailio", path="/usr/sbin:/usr/local/sbin:/usr/bin")
_rpc_ids = itertools.count(1)


class Proxy(Process):
    """Kamailio, in its own directory; it includes the sipnap.cfg that `sipnap shim kamailio --write-config` writes."""

    def __init__(
        self,
        directory: Path,
        *,
        script: str | Path = "native.cfg",
        kemi_script: str | Path = "kemi_script.py",
        ports: Ports | None = None,
        memory_mb: int = 256,
        defines: Mapping[str, int | str] = MappingProxyType({}),
    ) -> None:
        """Start it and wait until it answers OPTIONS.

        Args:
            directory: For its files.
            script: Which script, of this directory or by its whole path.
            kemi_script: Its Python script, likewise; a native script does not read it.
            ports: Those of an earlier life that is to be started anew.
            memory_mb: Shared memory; each transaction takes some kilobytes for some seconds.
            defines: More settings of sipnap.cfg, such as ``SIPNAP_MARGIN_MS``.
        """
        assert KAMAILIO, (
            "kamailio is not installed: apt-get install kamailio kamailio-extra-modules kamailio-python3-modules"
        )
        self.ports = ports or Ports()
        self.directory = directory
        directory.mkdir(exist_ok=True)
        write_config(directory, force=True)
        python_script = directory / "kemi_script.py"
        python_script.write_bytes((HERE / kemi_script).read_bytes())
        self.script_text = (HERE / script).read_text()
        text = self.script_text
        for wanted, given in {
            "CONFIG_DIR/kemi_script.py": str(python_script),
            "/etc/kamailio/script.py": str(python_script),
            "RPC_PORT": str(self.ports.rpc),
        }.items():
            text = text.replace(wanted, given)
        (directory / "script.cfg").write_text(text)
        settings: dict[str, int | str] = {
            "SIP_PORT": self.ports.sip,
            "SIPNAP_PORT": self.ports.nap,
            "SIPNAP_SHIM_PORT": self.ports.shim,
            **defines,
        }
        main = directory / "kamailio.cfg"
        lines = [f"#!define {name} {value}" for name, value in settings.items()]
        main.write_text("#!KAMAILIO\n" + "\n".join(lines) + '\ninclude_file "script.cfg"\n')
        limits = 'ulimit -c 0; exec "$@"'  # it can dump its whole shared memory otherwise
        kamailio: list[str | Path] = [
            KAMAILIO,
            "-f",
            main,
            "-DD",
            "-E",
            "-m",
            str(memory_mb),
            "-M",
            "16",
            "-w",
            directory,
            "-Y",
            directory,
        ]
        # The interpreter of app_python3 takes its prefix from the first python3 on PATH: the system's it has to be.
        path = "/usr/bin:/bin:/usr/sbin:/sbin"
        super().__init__("kamailio", ["/bin/sh", "-c", limits, "sh", *kamailio], env={"PATH": path}, cwd=directory)
        try:
            wait_until(self.answers_options, 15, lambda: f"Kamailio answers OPTIONS\n{self.tail()}")
        except BaseException:
            self.kill()
            raise

    @property
    def address(self) -> str:
        """Where it takes SIP."""
        return f"127.0.0.1:{self.ports.sip}"

    def answers_options(self) -> bool:
        """Whether it answers a request within 200 ms."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.settimeout(0.2)
            probe.connect(("127.0.0.1", self.ports.sip))
            port = probe.getsockname()[1]
            try:
                probe.send(
                    f"OPTIONS sip:127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:{port};branch=z9hG4bKprobe{port}\r\n"
                    f"From: <sip:probe@127.0.0.1>;tag=1\r\nTo: <sip:127.0.0.1>\r\nCall-ID: probe-{port}\r\n"
                    f"CSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n".encode()
                )
                return probe.recv(4096).startswith(b"SIP/2.0 200")
            except OSError:
                return False

    def rpc(self, method: str, *params: str | int) -> Any:
        """The result of one of its JSON-RPC commands."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(5)
            asker.connect(("127.0.0.1", self.ports.rpc))
            number = next(_rpc_ids)
            asker.send(json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": number}).encode())
            answer = json.loads(asker.recv(65536))
            assert "error" not in answer, answer
            return answer["result"]


class Ports:
    """The loopback ports of one proxy and its shim."""

    def __init__(self) -> None:
        self.sip = free_port()
        self.rpc = free_port()
        self.nap = free_port()
        self.shim = free_port()
