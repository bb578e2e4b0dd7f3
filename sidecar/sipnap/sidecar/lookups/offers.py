"""Which lookups this sidecar offers, by its settings."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import re
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

from sipnap.client.operations import Operation
from sipnap.client.settings import count, seconds
from sipnap.sidecar.lookups.allowed_hosts import AllowedHost, AllowedHosts
from sipnap.sidecar.lookups.http_settings import read_templates

_DEFAULT_ENUM_DOMAIN = "e164.arpa"
_DNS_PORT = 53
_NAME_SERVER = re.compile(r"(?:\[([^\]]+)\]|([^:]+))(?::([0-9]{1,5}))?")

log = logging.getLogger("sipnap.lookups")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--http-allow", metavar="HOST[:PORT]", type=_allowed_host, action="append", default=[],
        help="a host that the operation http may ask, at its usual ports or at this one; may be repeated; without any "
        "there is no operation http",
    )  # fmt: skip
    parser.add_argument(
        "--http-templates", metavar="FILE", type=Path, default=None,
        help="the templates of the operation http (TOML, a table for each)",
    )  # fmt: skip
    parser.add_argument(
        "--http-ca", metavar="FILE", type=Path, default=None,
        help="authorities that vouch for HTTPS servers (PEM), in place of the system's",
    )  # fmt: skip
    parser.add_argument(
        "--http-connections", metavar="N", type=count, default=64,
        help="most connections to one HTTP host and port (default 64)",
    )  # fmt: skip
    parser.add_argument(
        "--enum-domain", metavar="DOMAIN", action="append", default=[],
        help="a tree that the operation enum may search; may be repeated, the first is searched unless the script "
        f"names another (default {_DEFAULT_ENUM_DOMAIN})",
    )  # fmt: skip
    parser.add_argument(
        "--enum-server", metavar="ADDRESS[:PORT]", type=_name_server, action="append", default=[],
        help="a name server that the operation enum asks, port 53 unless given; may be repeated (default: the "
        "machine's own)",
    )  # fmt: skip
    parser.add_argument(
        "--enum-seconds", metavar="SECONDS", type=seconds, default=3.0,
        help="most that one ENUM lookup takes (default 3)",
    )  # fmt: skip


def operations_from(arguments: argparse.Namespace) -> tuple[dict[str, Operation], Callable[[], Awaitable[None]]]:
    """The operations, and what to await when the sidecar ends.

    Raises:
        ValueError: A setting makes no sense, or needs an extra; names it.
    """
    operations = {}
    closes = []
    if arguments.http_allow:
        operations["http"], close = _http(arguments)
        closes.append(close)
    elif arguments.http_templates is not None:
        raise ValueError("--http-templates needs --http-allow: nobody is asked who is not on that list")
    else:
        log.info("the operation http is not offered: --http-allow names no host")
    enum = _enum(arguments)
    if enum is not None:
        operations["enum"] = enum

    async def close_all() -> None:
        for close in closes:
            await close()

    return operations, close_all


def _http(arguments: argparse.Namespace) -> tuple[Operation, Callable[[], Awaitable[None]]]:
    try:
        from sipnap.sidecar.lookups.http import HttpLookup
    except ImportError as error:
        raise ValueError(f"--http-allow needs one package more: pip install 'sipnap[http]' ({error})") from error
    try:
        tls = ssl.create_default_context(cafile=arguments.http_ca)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"--http-ca {arguments.http_ca}: no certificates can be read: {error}") from error
    templates = read_templates(arguments.http_templates) if arguments.http_templates is not None else {}
    lookup = HttpLookup(
        AllowedHosts(arguments.http_allow), templates, tls=tls, connections_per_host=arguments.http_connections
    )
    return Operation(lookup), lookup.close


def _enum(arguments: argparse.Namespace) -> Operation | None:
    is_meant = bool(arguments.enum_domain or arguments.enum_server)
    try:
        from sipnap.sidecar.lookups.enum import EnumLookup
    except ImportError as error:
        if is_meant:
            raise ValueError(f"--enum-… needs one package more: pip install 'sipnap[enum]' ({error})") from error
        log.info("the operation enum is not offered: pip install 'sipnap[enum]' would bring what it needs")
        return None
    domains = arguments.enum_domain or [_DEFAULT_ENUM_DOMAIN]
    try:
        return Operation(EnumLookup(domains, arguments.enum_server, arguments.enum_seconds))
    except ValueError as error:
        if is_meant:
            raise ValueError(f"--enum-domain, --enum-server: {error}") from error
        log.info("the operation enum is not offered: %s", error)
        return None


def _allowed_host(text: str) -> AllowedHost:
    try:
        return AllowedHost.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _name_server(text: str) -> tuple[str, int]:
    found = _NAME_SERVER.fullmatch(text)
    try:
        address = ipaddress.ip_address((found[1] or found[2]) if found else text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS or ADDRESS:PORT (an IPv6 one in brackets)") from None
    port = int(found[3] or _DNS_PORT) if found else _DNS_PORT
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: the port is out of range")
    return str(address), port
