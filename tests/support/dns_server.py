"""A DNS server for tests: NAPTR records of E.164 numbers under a domain, slow, broken or silent by number.

In the test's own loop: ``async with dns_server(zone) as port``. As a process of its own: ``DnsServer()``, or
``python -m tests.support.dns_server --port 0 --domain e164.test --delay-ms 50``, which prints ``ready on
127.0.0.1:PORT``. UDP and TCP, same port.

The zone that the process serves, by the last three digits of the number N:

=======  ===============================================================================================================
``…001`` there is no such name (NXDOMAIN)
``…002`` never an answer
``…003`` SERVFAIL
``…004`` the name exists, without any NAPTR record
``…005`` a non-terminal record that leads to the records of N with ``000`` in place of ``005``
``…006`` a non-terminal record that leads to itself, for ever
``…007`` an answer too large for UDP: truncated there, whole over TCP
``…008`` a regular expression made to keep a backtracking engine busy for years
others   three records, most preferred last: ``mailto:`` (``E2U+email:mailto``), ``sip:second-N@127.0.0.1``,
         ``sip:N@127.0.0.1`` (both ``E2U+sip``, rewritten from N)
=======  ===============================================================================================================
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import struct
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from tests.support.processes import Process, free_port

HOST = "127.0.0.1"

Zone = Callable[[str], Sequence[str] | dns.rcode.Rcode | None]
"""From a name without its last dot to NAPTR records as a zone file has them; a code; or None for silence."""

_LARGEST_UDP_BYTES = 1232


def naptr(order: int, preference: int, flags: str, service: str, regexp: str, replacement: str = ".") -> str:
    """One record as a zone file has it; the backslashes of `regexp` count once."""
    quoted = regexp.replace("\\", "\\\\").replace('"', '\\"')
    return f'{order} {preference} "{flags}" "{service}" "{quoted}" {replacement}'


def number_of(name: str, domain: str) -> str:
    """The digits that a name under the domain stands for (RFC 6116 3.2)."""
    return name.removesuffix("." + domain).replace(".", "")[::-1]


def name_of(number: str, domain: str) -> str:
    """The name under which the records of the digits are."""
    return ".".join(reversed(number)) + "." + domain


def numbers(domain: str) -> Zone:
    """The zone of this module's own docstring."""

    def records(name: str) -> Sequence[str] | dns.rcode.Rcode | None:
        if not name.endswith("." + domain):
            return dns.rcode.REFUSED
        number = number_of(name, domain)
        match number[-3:]:
            case "001":
                return dns.rcode.NXDOMAIN
            case "002":
                return None
            case "003":
                return dns.rcode.SERVFAIL
            case "004":
                return []
            case "005":
                return [naptr(10, 10, "", "E2U+sip", "", name_of(number[:-3] + "000", domain) + ".")]
            case "006":
                return [naptr(10, 10, "", "E2U+sip", "", name + ".")]
            case "008":
                return [naptr(10, 10, "u", "E2U+sip", "!^(\\+?(4|4|4|[0-9])*)*x$!sip:never@127.0.0.1!")]
        found = [
            naptr(20, 10, "u", "E2U+email:mailto", "!^.*$!mailto:somebody@example.com!"),
            naptr(10, 20, "u", "E2U+sip", "!^\\+(.*)$!sip:second-\\1@127.0.0.1!"),
            naptr(10, 10, "u", "E2U+sip", "!^\\+(.*)$!sip:\\1@127.0.0.1!"),
        ]
        if number.endswith("007"):
            found += [naptr(30, i, "u", "E2U+sip", f"!^.*$!sip:{i}-{'x' * 150}@127.0.0.1!") for i in range(40)]
        return found

    return records


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, zone: Zone, delay_seconds: float) -> None:
        self._zone, self._delay_seconds = zone, delay_seconds
        self._transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        wire = _answer(self._zone, data, _LARGEST_UDP_BYTES)
        if wire is not None:
            asyncio.get_running_loop().call_later(self._delay_seconds, self._transport.sendto, wire, addr)


def _answer(zone: Zone, data: bytes, most_bytes: int) -> bytes | None:
    query = dns.message.from_wire(data)
    question = query.question[0]
    found = zone(question.name.to_text(omit_final_dot=True).lower())
    if found is None:
        return None
    answer = dns.message.make_response(query, recursion_available=True)
    if isinstance(found, dns.rcode.Rcode):
        answer.set_rcode(found)
    elif found and question.rdtype == dns.rdatatype.NAPTR:
        answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", "NAPTR", *found))
    wire = answer.to_wire(max_size=65535)
    if len(wire) <= most_bytes:
        return wire
    answer.answer.clear()
    answer.flags |= dns.flags.TC
    return answer.to_wire()


@contextlib.asynccontextmanager
async def dns_server(zone: Zone, port: int = 0, *, delay_seconds: float = 0.0) -> AsyncIterator[int]:
    """Serve in this loop; gives the port."""

    streams: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        streams[task] = writer
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                (size,) = struct.unpack("!H", await reader.readexactly(2))
                wire = _answer(zone, await reader.readexactly(size), 65535)
                if wire is not None:
                    writer.write(struct.pack("!H", len(wire)) + wire)
                    await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    port = port or free_port()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Udp(zone, delay_seconds), (HOST, port))
    server = await asyncio.start_server(serve_stream, HOST, port)
    try:
        yield port
    finally:
        transport.close()
        server.close()
        for writer in streams.values():
            writer.close()
        await asyncio.gather(*streams)


class DnsServer(Process):
    """The server as a process, ready; its address is `address`, HOST:PORT."""

    def __init__(self, domain: str = "e164.test", *, delay_seconds: float = 0.0) -> None:
        module = "tests.support.dns_server"
        flags = ["--port", "0", "--domain", domain, "--delay-ms", f"{delay_seconds * 1000:g}"]
        super().__init__("dns-server", [sys.executable, "-m", module, *flags], cwd=Path(__file__).parents[2])
        try:
            self.port = int(self.wait_output(rf"^ready on {HOST}:(\d+)$")[1])
        except BaseException:
            self.kill()
            raise
        self.domain = domain
        self.address = f"{HOST}:{self.port}"


async def _serve_forever(arguments: argparse.Namespace) -> None:
    zone = numbers(arguments.domain)
    async with dns_server(zone, arguments.port, delay_seconds=arguments.delay_ms / 1000) as port:
        print(f"ready on {HOST}:{port}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--domain", default="e164.test")
    parser.add_argument("--delay-ms", type=float, default=0)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve_forever(parser.parse_args()))
