"""``sipnap shim sip``: run the Python SIP front end."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from sipnap.client.commands import target
from sipnap.client.settings import count, host_port, seconds

SUMMARY = "run the Python SIP front end: a UAS and redirect server whose routes are coroutines"

EPILOG = """\
examples:
  sipnap shim sip --routes routes.py                             SIP on 127.0.0.1:5070, sidecar on 127.0.0.1:5600
  sipnap shim sip --routes routes.py --bind 192.0.2.1:5060       SIP for other machines
  sipnap shim sip --routes routes.py --trace /tmp/calls.jsonl    with a line for each step of each call

routes.py, in short:
  from sipnap.shim.sip import App, Call
  app = App()

  @app.request_route
  async def main(call: Call) -> None:
      if not await call.async_route("RESUME", 4):
          call.reply(503, "Unavailable")

  @app.route("RESUME")
  async def resume(call: Call) -> None:
      call.redirect("sip:bob@192.0.2.4")

signals: the first SIGTERM or SIGINT drains (new requests get 503, calls under way may end), the second ends at once.
exit codes: 0 after a drain, 1 when it cannot start, 2 for a bad setting.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--routes", metavar="FILE.py", type=Path, required=True, help="Python file that defines 'app = App()'"
    )
    parser.add_argument(
        "--bind", metavar="HOST:PORT", type=host_port, default="127.0.0.1:5070",
        help="where to serve SIP over UDP (default 127.0.0.1:5070; port 0: any free one)",
    )  # fmt: skip
    parser.add_argument(
        "--front-end-id", metavar="NAME", default="sip",
        help="name at the sidecar, the same after restarts, one for each front end (default sip)",
    )  # fmt: skip
    parser.add_argument(
        "--max-seconds", metavar="SECONDS", type=seconds, default=100.0,
        help="longest nap; the sidecar's own --max-seconds counts too (default 100)",
    )  # fmt: skip
    parser.add_argument(
        "--margin-seconds", metavar="SECONDS", type=seconds, default=2.0,
        help="how long after its time a nap counts as lost and resumes by itself (default 2)",
    )  # fmt: skip
    parser.add_argument(
        "--max-transactions", metavar="N", type=count, default=50_000,
        help="transactions held at once; over it, new requests get 503 (default 50000)",
    )  # fmt: skip
    parser.add_argument(
        "--drain-seconds", metavar="SECONDS", type=seconds, default=5.0,
        help="how long a drain waits for calls to end (default 5)",
    )  # fmt: skip
    parser.add_argument(
        "--trace", metavar="FILE", type=Path, help="append a JSON line for each step of each call (default: none)"
    )
    target.configure(parser, several=True)


def run(arguments: argparse.Namespace) -> int:
    """Run until a signal."""
    from sipnap.shim.sip.routes_file import RoutesError, load_app
    from sipnap.shim.sip.server import Settings, StartError, serve

    host, _, port = arguments.bind.rpartition(":")
    try:
        settings = Settings(
            app=load_app(arguments.routes),
            sidecars=target.targets_of(arguments),
            host=host.strip("[]"),
            port=int(port),
            front_end_id=arguments.front_end_id,
            credentials=target.credentials_of(arguments),
            max_seconds=arguments.max_seconds,
            margin_seconds=arguments.margin_seconds,
            max_transactions=arguments.max_transactions,
            drain_seconds=arguments.drain_seconds,
            trace=arguments.trace,
        )
        asyncio.run(serve(settings, lambda address: print(f"sipnap shim sip: ready on {address}", flush=True)))
    except RoutesError as error:
        logging.getLogger("sipnap.sip").debug("the routes file failed", exc_info=error)
        print(f"sipnap shim sip: {error}", file=sys.stderr)
        return 1
    except StartError as error:
        print(f"sipnap shim sip: {error}", file=sys.stderr)
        return 1
    return 0
