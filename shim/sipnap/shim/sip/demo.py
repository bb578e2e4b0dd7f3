"""``sipnap demo``: a sidecar, a Python front end and five real SIP calls on this machine, with their timelines."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sipnap.client.aio import Client

SUMMARY = "place five SIP calls through a sidecar and a Python front end, and show their timelines"

EPILOG = """\
It starts `sipnap serve` and `sipnap shim sip` on free loopback ports, and ends them again. The calls:
  1. a nap of 1 s that resumes in another route (async_route)
  2. a nap of 0.5 s that goes on with the next line (async_sleep)
  3. a lookup of 0.2 s that a worker of the sidecar does meanwhile (operation)
  4. a CANCEL during a nap of 20 s
  5. a nap with the sidecar stopped: refused at the door
exit codes: 0 if each call went as promised, 1 otherwise.
"""

_CANCEL_AFTER_SECONDS = 0.3
_FORGET_SECONDS = 0.1  # how soon the sidecar has to let a cancelled nap go

_LEGEND = """\
Milliseconds since the INVITE. INVITE, 100, CANCEL, final: at the caller's socket. suspended, shipped (written to the
gRPC stream), continued: in the front end's trace. due: suspended plus the nap, or the lookup. All on one clock.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--show-logs", action="store_true", help="print what the two processes logged (default: only if a call fails)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Place the calls, print the table; 0 if each kept its promise."""
    for module in ("grpc_health", "sippy"):
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    from sipnap.client.errors import NapError
    from sipnap.shim.sip.demo_processes import DemoError

    with tempfile.TemporaryDirectory(prefix="sipnap-demo-") as folder:
        try:
            return asyncio.run(_demo(Path(folder), show_logs=arguments.show_logs))
        except TimeoutError:
            print("sipnap demo: a call got no final response in 32 s", file=sys.stderr)
            return 1
        except (DemoError, NapError) as error:
            print(f"sipnap demo: {error}", file=sys.stderr)
            return 1


async def _demo(folder: Path, *, show_logs: bool) -> int:
    from sipnap.client.aio import Client
    from sipnap.shim.sip import demo_operations, demo_routes
    from sipnap.shim.sip.demo_calls import Caller
    from sipnap.shim.sip.demo_processes import DemoProcess
    from sipnap.shim.sip.demo_table import Timeline, aligned, broken_promises, rows, verdict

    started_seconds = time.monotonic()
    trace = folder / "calls.jsonl"
    trace.touch()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started_seconds:5.1f} s  {text}", flush=True)

    say("starting the sidecar: sipnap serve")
    with DemoProcess(
        folder, "serve", "--listen", "127.0.0.1:0", "--journal", f"sqlite:{folder}/journal.sqlite3",
        "--operations", demo_operations.__name__,
    ) as sidecar:  # fmt: skip
        target = sidecar.await_line(r"^sipnap serve: ready on (\S+)$")[1]
        say(f"starting the front end: sipnap shim sip --sidecar {target}")
        with DemoProcess(
            folder, "shim", "sip", "--sidecar", target, "--bind", "127.0.0.1:0",
            "--routes", str(demo_routes.__file__), "--trace", str(trace),
        ) as front_end:  # fmt: skip
            host, _, port = front_end.await_line(r"^sipnap shim sip: ready on (\S+)$")[1].rpartition(":")
            caller = await Caller.open(host, int(port))
            say(f"call 1: INVITE sip:route@{host}:{port}, a nap of {demo_routes.ROUTE_SECONDS:g} s into a resume route")
            routed = await caller.invite("route")
            say(f"call 2: INVITE sip:sleep@{host}:{port}, a nap of {demo_routes.SLEEP_SECONDS:g} s, then the next line")
            slept = await caller.invite("sleep")
            say(f"call 3: INVITE sip:4711@{host}:{port}, a lookup of {demo_operations.LOOKUP_SECONDS:g} s by a worker")
            looked_up = await caller.invite("4711")
            say(f"call 4: INVITE sip:long@{host}:{port}, a nap of {demo_routes.LONG_SECONDS:g} s and a CANCEL in it")
            async with Client(target) as client:
                await client.status()  # connected before it matters
                cancelled = await caller.invite("long", cancel_after_seconds=_CANCEL_AFTER_SECONDS)
                held = await _held(client, (cancelled.final_at or 0.0) + _FORGET_SECONDS)
            say("stopping the sidecar")
            sidecar.stop()
            front_end.await_line(r"naps are refused at the door", 5.0)
            say(f"call 5: INVITE sip:route@{host}:{port}, nobody to nap at")
            refused = await caller.invite("route")
            caller.close()
            front_end.stop()
    steps, statuses = _read_trace(trace)
    timelines = [
        Timeline(
            title, record, steps.get(record.call_id, {}), nap, code, contact, statuses.get(record.call_id, ""),
            held if record is cancelled else None,
        )
        for title, record, nap, code, contact in (
            ("1 async_route 1 s", routed, demo_routes.ROUTE_SECONDS, 302, "<sip:bob@192.0.2.4>"),
            ("2 async_sleep 0.5 s", slept, demo_routes.SLEEP_SECONDS, 486, ""),
            ("3 operation 0.2 s", looked_up, demo_operations.LOOKUP_SECONDS, 302, "<sip:carol@192.0.2.7>"),
            ("4 CANCEL in a nap", cancelled, demo_routes.LONG_SECONDS, 487, ""),
            ("5 sidecar stopped", refused, None, 503, ""),
        )
    ]  # fmt: skip
    print("\n" + _LEGEND)
    print("\n".join(aligned(list(rows(timelines)))), end="\n\n")
    is_kept = True
    for timeline in timelines:
        broken = list(broken_promises(timeline))
        is_kept = is_kept and not broken
        print(f"{'BROKEN' if broken else 'kept':6}  {timeline.title}: {'; '.join(broken) or verdict(timeline)}")
    if show_logs or not is_kept:
        for process in (sidecar, front_end):
            print(f"\n--- {process.name}\n{process.output()}", end="")
    print(f"\n{'Each call went as promised.' if is_kept else 'A promise was broken.'}")
    return 0 if is_kept else 1


async def _held(client: Client, deadline_seconds: float) -> int:
    """How many suspensions the sidecar holds: 0 as soon as there are none, what is left at the deadline otherwise."""
    while (held := len([info async for info in client.list()])) and time.monotonic() < deadline_seconds:
        await asyncio.sleep(0.005)
    return held


def _read_trace(trace: Path) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """When the front end took which step, and the status of each nap, by Call-ID."""
    steps: dict[str, dict[str, float]] = {}
    statuses: dict[str, str] = {}
    for line in trace.read_text().splitlines():
        event = json.loads(line)
        steps.setdefault(event["call_id"], {}).setdefault(event["step"], event["at"])
        if event["step"] == "continued":
            statuses[event["call_id"]] = event["status"]
    return steps, statuses
