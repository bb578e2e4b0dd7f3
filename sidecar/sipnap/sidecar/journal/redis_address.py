"""Where a Redis or Valkey is: one server, a primary behind Sentinels, or a cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass

_URL = re.compile(
    r"(?P<scheme>rediss?)(?:\+(?P<kind>sentinel|cluster))?://(?:(?P<user>[^@/]*)@)?(?P<hosts>[^@/?]+)"
    r"(?P<path>/[^?]*)?(?:\?(?P<query>.*))?\Z"
)
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[^\[\]:,]+))(?::(?P<port>\d{1,5}))?\Z")
_DEFAULT_PORTS = {"": 6379, "cluster": 6379, "sentinel": 26379}

FORMS = (
    "redis://HOST:PORT/DB, redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB or redis+cluster://HOST:PORT,HOST:PORT "
    "(rediss… with TLS)"
)
"""For error messages and help."""


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A parsed ``--journal redis…``."""

    kind: str
    """Empty: one server; or "sentinel", or "cluster"."""
    hosts: tuple[tuple[str, int], ...]
    """The server; the Sentinels; some of the cluster's nodes."""
    service: str
    """What the Sentinels call the primary; empty otherwise."""
    url: str
    """As the library takes it: the first host, the credentials, the database, and what follows the question mark."""

    @classmethod
    def parse(cls, text: str) -> RedisAddress:
        """Read it.

        Raises:
            ValueError: It is malformed; says how (and repeats no password).
        """
        match = _URL.match(text)
        if match is None:
            raise ValueError(f"not of the form {FORMS}")
        kind = match["kind"] or ""
        hosts = tuple(_host(host, _DEFAULT_PORTS[kind]) for host in match["hosts"].split(","))
        if not kind and len(hosts) > 1:
            raise ValueError("several hosts need redis+sentinel:// or redis+cluster://")
        parts = [part for part in (match["path"] or "").split("/") if part]
        service = parts.pop(0) if kind == "sentinel" and parts else ""
        if kind == "sentinel" and not service:
            raise ValueError(
                "the name that the Sentinels give the primary is missing: redis+sentinel://HOST:PORT/SERVICE"
            )
        database = parts.pop(0) if parts else "0"
        if parts or not database.isdigit():
            raise ValueError(f"database {'/'.join([database, *parts])!r} is not a number")
        if kind == "cluster" and database != "0":
            raise ValueError("a cluster has only database 0")
        credentials = f"{match['user']}@" if match["user"] else ""
        query = f"?{match['query']}" if match["query"] else ""
        url = f"{match['scheme']}://{credentials}{_join(*hosts[0])}/{database}{query}"
        return cls(kind, hosts, service, url)

    @property
    def name(self) -> str:
        """For people: without credentials."""
        hosts = ",".join(_join(*host) for host in self.hosts)
        return f"redis{'+' if self.kind else ''}{self.kind}://{hosts}{'/' if self.service else ''}{self.service}"


def _host(text: str, default_port: int) -> tuple[str, int]:
    match = _HOST.match(text)
    if match is None or not 0 < int(match["port"] or default_port) < 65536:
        raise ValueError(f"{text!r} is not HOST or HOST:PORT")
    return match["ipv6"] or match["name"], int(match["port"] or default_port)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
