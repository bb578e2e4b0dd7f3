"""Where the sidecar listens, and what it refuses to listen on."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


class ListenError(Exception):
    """The sidecar cannot or will not listen there; the message names the fix."""


@dataclass(frozen=True, slots=True)
class Address:
    """A place to listen: a TCP address or a Unix socket."""

    host: str = ""
    """Host name or address; empty for a Unix socket."""
    port: int = 0
    """TCP port; 0: any free one."""
    path: str = ""
    """Path of a Unix socket; empty for TCP."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``.

        Raises:
            ValueError: It is none of these.
        """
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not path:
                raise ValueError("unix: needs a path, such as unix:/run/sipnap/sidecar.sock")
            return cls(path=path)
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise ValueError(f"{text!r} is not HOST:PORT or unix:PATH")
        return cls(host=host, port=int(port))

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path:
            return True
        try:
            found = {info[4][0] for info in socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)}
        except OSError as error:
            raise ListenError(f"--listen {self}: cannot resolve {self.host!r}: {error}") from error
        return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def check(address: Address, *, has_tls: bool, insecure: bool) -> None:
    """Refuse what would be unsafe or would share an address with a running sidecar.

    Raises:
        ListenError: With the flag that mends it.
    """
    if not address.is_local and not has_tls and not insecure:
        raise ListenError(
            f"--listen {address} is reachable from other machines and has no TLS: whoever connects can resume calls. "
            "Give --tls-cert and --tls-key (and --tls-ca for mutual TLS), listen on 127.0.0.1, or say --insecure"
        )
    if address.path:
        _clear_stale_socket(Path(address.path))


def protect(address: Address) -> None:
    """Make a Unix socket that was just bound its owner's alone (mode 0600)."""
    if address.path:
        os.chmod(address.path, 0o600)


def remove(address: Address) -> None:
    """Take the file of a Unix socket away."""
    if address.path:
        with suppress(FileNotFoundError):
            os.unlink(address.path)


def _clear_stale_socket(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise ListenError(f"--listen unix:{path}: the directory {path.parent} does not exist") from None
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"--listen unix:{path}: the file exists and is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()  # a leftover of a process that is gone
        except OSError as error:
            raise ListenError(f"--listen unix:{path}: {error}") from error
        else:
            raise ListenError(f"--listen unix:{path}: another process listens there already")
