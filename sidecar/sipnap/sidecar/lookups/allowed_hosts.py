"""The hosts that lookups may ask: whatever a template, a script or a redirect says, nobody else is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sipnap.sidecar.lookups.template import DEFAULT_PORTS, Origin, TemplateError, plain_host

_FORM = re.compile(r"(\[[^\]]+\]|[^:\[\]/@]+)(?::([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class AllowedHost:
    """One entry of the list."""

    host: str
    """Name or address, in the form of `plain_host`."""
    port: int | None
    """None: the ports that http and https have by themselves."""

    @classmethod
    def parse(cls, text: str) -> AllowedHost:
        """From ``HOST``, ``HOST:PORT`` or ``[IPV6]:PORT``.

        Raises:
            ValueError: It is none of these.
        """
        found = _FORM.fullmatch(text)
        if not found:
            raise ValueError(f"{text!r} is not HOST or HOST:PORT")
        port = int(found[2]) if found[2] else None
        if port is not None and not 1 <= port <= 65535:
            raise ValueError(f"{text!r}: the port is out of range")
        return cls(plain_host(found[1]), port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


class AllowedHosts:
    """The list."""

    def __init__(self, hosts: Iterable[AllowedHost]) -> None:
        self._hosts = frozenset((allowed.host, allowed.port) for allowed in hosts)

    def __contains__(self, origin: Origin) -> bool:
        if (origin.host, origin.port) in self._hosts:
            return True
        return origin.port == DEFAULT_PORTS[origin.scheme] and (origin.host, None) in self._hosts

    def check(self, origin: Origin) -> None:
        """Refuse an origin that is not on the list.

        Raises:
            TemplateError: It is not; says which entry would allow it.
        """
        if origin not in self:
            is_usual = origin.port == DEFAULT_PORTS[origin.scheme]
            entry = AllowedHost(origin.host, None if is_usual else origin.port)
            raise TemplateError(f"{origin} is not allowed: --http-allow {entry} would allow it")
