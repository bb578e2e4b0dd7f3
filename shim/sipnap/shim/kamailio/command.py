"""``sipnap shim kamailio``: run the shim beside a Kamailio, or write out the files that its script includes."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import signal
from importlib import resources
from pathlib import Path

from sipnap.client import collector
from sipnap.client.commands import target
from sipnap.client.errors import NapError
from sipnap.client.keys import is_front_end_id
from sipnap.client.session import FrontEndSession
from sipnap.shim.kamailio.bridge import Bridge
from sipnap.shim.kamailio.inbox import Address

SUMMARY = "run the shim beside a Kamailio, or write the files that its script includes"

EPILOG = """\
examples:
  sipnap shim kamailio --write-config /etc/kamailio     write sipnap.cfg and sipnap_kemi.py there, and end
  sipnap shim kamailio                                  between a Kamailio and a sidecar that use the default ports
  sipnap shim kamailio --sidecar 10.0.0.5:5600 --tls-ca ca.pem --front-end-id sbc1
  sipnap shim kamailio --sidecar a:5600 --sidecar b:5600        the first sidecar that answers

signals: the first SIGTERM or SIGINT shuts the gate, finishes what is in hand and ends with 0; the second ends at once.
exit codes: 0 after a signal, 1 when it cannot start, 2 for a bad setting.
"""

CONFIG_FILES = ("sipnap.cfg", "sipnap_operations.cfg", "sipnap_kemi.py")
"""What --write-config writes."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--listen", metavar="HOST:PORT", type=_loopback, default=Address("127.0.0.1", 5999),
        help="where the proxy sends to: its SIPNAP_SHIM_PORT (default 127.0.0.1:5999)",
    )  # fmt: skip
    parser.add_argument(
        "--proxy", metavar="HOST:PORT", type=_loopback, default=Address("127.0.0.1", 5071),
        help="the proxy's NAP socket: its SIPNAP_PORT (default 127.0.0.1:5071)",
    )  # fmt: skip
    parser.add_argument(
        "--front-end-id", metavar="NAME", type=_front_end_id, default="kamailio",
        help="name of this proxy, different for each that uses the sidecar (default kamailio)",
    )  # fmt: skip
    parser.add_argument(
        "--ship-raw-request", action="store_true", help="send each suspended SIP request along as a whole"
    )
    parser.add_argument(
        "--write-config", metavar="DIR", type=Path, help=f"write {' and '.join(CONFIG_FILES)} to a directory, and end"
    )
    parser.add_argument("--force", action="store_true", help="with --write-config: replace files that differ")
    target.configure(parser, several=True)


def run(arguments: argparse.Namespace) -> int:
    """Run until a signal comes; the result is the exit code."""
    if arguments.write_config is not None:
        return write_config(arguments.write_config, force=arguments.force)
    session = FrontEndSession(
        target.targets_of(arguments),
        front_end_id=arguments.front_end_id,
        credentials=target.credentials_of(arguments),
    )
    try:
        bridge = Bridge(
            session,
            front_end_id=arguments.front_end_id,
            listen=arguments.listen,
            proxy=arguments.proxy,
            ship_raw_request=arguments.ship_raw_request,
        )
    except OSError as error:
        raise NapError(f"--listen {arguments.listen}: {error.strerror}; is another shim running there?") from error
    asyncio.run(_serve(session, bridge, arguments.listen))
    return 0


def write_config(directory: Path, *, force: bool) -> int:
    """Write the proxy's files to a directory; the result is the exit code. Files that differ are replaced if forced.

    Raises:
        NapError: It cannot be done; the message says what would help.
    """
    if not directory.is_dir():
        raise NapError(f"--write-config {directory}: no such directory; make it first")
    package = resources.files("sipnap.shim.kamailio")
    contents = {directory / name: package.joinpath(name).read_bytes() for name in CONFIG_FILES}
    changed = [path for path, content in contents.items() if path.exists() and path.read_bytes() != content]
    if changed and not force:
        names = ", ".join(str(path) for path in changed)
        raise NapError(f"--write-config: {names} exists and differs; --force replaces it")
    for path, content in contents.items():
        try:
            path.write_bytes(content)
        except OSError as error:
            raise NapError(f"--write-config: {path}: {error.strerror}") from error
        print(path)
    return 0


async def _serve(session: FrontEndSession, bridge: Bridge, listen: Address) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def end() -> None:
        # Now the default action again: a second signal ends at once.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    collector.restrain()
    async with session:
        carrying = loop.create_task(bridge.run(), name="sipnap bridge")
        print(f"sipnap shim kamailio: ready on {listen}", flush=True)
        waiting = loop.create_task(ended.wait())
        tidier = loop.create_task(collector.collect_when_idle(lambda: session.outstanding), name="sipnap tidier")
        await asyncio.wait({carrying, waiting}, return_when=asyncio.FIRST_COMPLETED)
        for task in (carrying, waiting, tidier):
            task.cancel()
        results = await asyncio.gather(carrying, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]


def _loopback(text: str) -> Address:
    host, _, port = text.rpartition(":")
    try:
        number = int(port)
        is_loopback = ipaddress.IPv4Address(host or "127.0.0.1").is_loopback
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no 127.0.0.1:PORT") from None
    if not is_loopback:
        raise argparse.ArgumentTypeError(f"{text!r} is not on loopback: the shim runs beside its proxy, with 127.0.0.1")
    if not 0 < number < 65536:
        raise argparse.ArgumentTypeError(f"{text!r}: a port is a number from 1 to 65535")
    return Address(host or "127.0.0.1", number)


def _front_end_id(text: str) -> str:
    if not is_front_end_id(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 to 128 of [A-Za-z0-9._:-]")
    return text
