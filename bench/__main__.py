"""Run a benchmark: ``python -m bench NAME [FLAG ...]``; without a name the short form of all."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from types import ModuleType

from bench import capacity, growth, lookup, pool, recovery, report, results, rpc, timers

BENCHMARKS: dict[str, ModuleType] = {
    "capacity": capacity,
    "timers": timers,
    "rpc": rpc,
    "growth": growth,
    "pool": pool,
    "lookup": lookup,
    "recovery": recovery,
}
"""Each is a module with SUMMARY, SHORT and LONG (flags of its two forms), configure and run."""

_REPORT = "report"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Benchmarks of sipnap. Without a name: the short form of all, which shows that they run.",
        epilog="examples: python -m bench capacity --rates 4000 8000 --ways async_ms_route sipnap; "
        "python -m bench full; python -m bench report",
    )
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="NAME")
    for name, module in {**BENCHMARKS, _REPORT: report}.items():
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.__doc__,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        module.configure(command)
        command.set_defaults(run=module.run)
    full = commands.add_parser("full", help="the long form of all, then the report: what the documentation shows")
    full.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), help="which of them")
    full.set_defaults(run=lambda arguments: _all(parser, arguments.only, is_long=True))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)  # what a session says about sidecars that come and go is no news here
    if arguments.run is not None:
        return int(arguments.run(arguments))
    return _all(parser, list(BENCHMARKS), is_long=False)


def _all(parser: argparse.ArgumentParser, names: list[str], *, is_long: bool) -> int:
    """One after the other; one that fails does not keep the others from running."""
    failed = []
    for name in names:
        module = BENCHMARKS[name]
        flags = module.LONG if is_long else [*module.SHORT, "--results", str(results.SHORT_DIRECTORY)]
        print(f"== {name} {' '.join(flags)}", flush=True)
        started = time.monotonic()
        try:
            code = module.run(parser.parse_args([name, *flags]))
        except Exception:
            traceback.print_exc()
            code = 1
        if code:
            failed.append(name)
        print(f"== {name}: {'failed' if code else 'done'} after {time.monotonic() - started:.0f} s", flush=True)
    if is_long:
        report.run(parser.parse_args([_REPORT]))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
