"""Run a benchmark: ``python -m bench NAME [FLAG ...]``; without a name the short form of all."""

from __future__ import annotations

import argparse
import sys
from types import ModuleType

from bench import capacity, recovery, rpc, timers

BENCHMARKS: dict[str, ModuleType] = {"capacity": capacity, "timers": timers, "rpc": rpc, "recovery": recovery}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Benchmarks of sipnap; without a name, the short form of all. Results go to bench/results.",
        epilog="example: python -m bench capacity --rates 4000 8000 --paths async_ms_route sipnap",
    )
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="NAME")
    for name, module in BENCHMARKS.items():
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.__doc__,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        module.configure(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args()
    if arguments.run is not None:
        return int(arguments.run(arguments))
    for name, module in BENCHMARKS.items():
        print(f"== {name}", flush=True)
        if code := module.run(parser.parse_args([name])):
            return int(code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
