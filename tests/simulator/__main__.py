"""Runs many seeds, or one with all that happened in it: ``python -m tests.simulator --help``."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from multiprocessing import get_context

from tests.simulator.run import Outcome, run

_SEEDS_PER_TASK = 25
_MOST_FAILURES = 10


def main() -> int:
    """The result is the exit code: 1 if a promise was broken."""
    arguments = _read_arguments()
    if arguments.seed is not None:
        return _replay(arguments.seed)
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    started_seconds = time.monotonic()
    done = naps = resumed = failures = 0
    for outcome in _outcomes(seeds, arguments.jobs):
        done, naps, resumed = done + 1, naps + outcome.naps, resumed + outcome.resumed
        if outcome.violations:
            failures += 1
            print(f"\nseed {outcome.seed} (replay: python -m tests.simulator --seed {outcome.seed})")
            for violation in outcome.violations:
                print(f"  {violation}", flush=True)
        if done % 100 == 0 or done == len(seeds):
            rate = done / (time.monotonic() - started_seconds)
            print(
                f"\r{done} of {len(seeds)} seeds, {rate:.0f}/s, {naps} naps, {resumed} resumed, {failures} failed",
                end="", file=sys.stderr, flush=True,
            )  # fmt: skip
        if failures >= _MOST_FAILURES:
            break
    print(file=sys.stderr)
    return 1 if failures else 0


def _outcomes(seeds: range, jobs: int) -> Iterator[Outcome]:
    if jobs == 1:
        yield from map(_run_quietly, seeds)
        return
    with get_context("spawn").Pool(jobs) as pool:
        yield from itertools.chain.from_iterable(pool.imap(_run_some, _cut(seeds)))


def _cut(seeds: range) -> Iterable[range]:
    return (seeds[start : start + _SEEDS_PER_TASK] for start in range(0, len(seeds), _SEEDS_PER_TASK))


def _run_some(seeds: range) -> list[Outcome]:
    return [_run_quietly(seed) for seed in seeds]


def _run_quietly(seed: int) -> Outcome:
    outcome = run(seed)
    outcome.trace.clear()  # large, and not all of it can go to another process
    return outcome


def _replay(seed: int) -> int:
    outcome = run(seed, with_logs=True)
    for line in outcome.story():
        print(line)
    print(
        f"seed {seed}: {outcome.naps} naps, {outcome.resumed} resumed, {outcome.virtual_seconds:.1f} virtual seconds, "
        f"{len(outcome.violations)} violations"
    )
    for violation in outcome.violations:
        print(f"  {violation}")
    return 1 if outcome.violations else 0


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulator", description="Simulate front end, network, sidecars and crashes, seed by seed."
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many to run (%(default)s)")
    parser.add_argument("--first", type=int, default=1, help="the first of them (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes to run them in (%(default)s)")
    parser.add_argument("--seed", type=int, help="run this one only, and print all that happened in it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
