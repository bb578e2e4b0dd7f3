"""A real Redis for tests: on a free loopback port, in a directory of its own, keeping nothing unless told to."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from tests.support.processes import Process, free_port


class RedisServer(Process):
    """`redis-server`, ready. A missing one fails the test: what is not run is not known to work."""

    def __init__(self, folder: Path, *flags: str, port: int | None = None) -> None:
        """Start it; `flags` are settings as the command line takes them, such as ``--appendonly yes``."""
        program = shutil.which("redis-server")
        assert program, "redis-server is not installed: apt-get install redis-server"
        self.port = port or free_port()
        self.folder = folder
        self.url = f"redis://127.0.0.1:{self.port}/0"
        settings = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(folder), "--save", ""]
        super().__init__("redis", [program, *settings, *flags], ready=r"Ready to accept connections")

    @classmethod
    def sentinel(cls, folder: Path, service: str, primary: RedisServer) -> Process:
        """A Sentinel that alone decides, soon, that the primary is dead; its port is in its name: ``sentinel:PORT``."""
        port = free_port()
        settings = folder / "sentinel.conf"
        settings.write_text(
            f"bind 127.0.0.1\nport {port}\ndir {folder}\nsentinel monitor {service} 127.0.0.1 {primary.port} 1\n"
            f"sentinel down-after-milliseconds {service} 400\nsentinel failover-timeout {service} 2000\n"
        )
        return Process(f"sentinel:{port}", ["redis-server", settings, "--sentinel"], ready=r"\+monitor master")

    def command(self, *words: str | bytes) -> bytes:
        """Send one command and return the first bytes of the answer, as Redis writes them."""
        encoded = [word.encode() if isinstance(word, str) else word for word in words]
        request = b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(request)
            answer = connection.recv(65536)
        assert not answer.startswith(b"-"), answer
        return answer
