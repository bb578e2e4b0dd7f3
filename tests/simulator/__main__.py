"""Runs many seeds, or one with all that happened in it: ``python -m tests.simulator --help``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.simulator.run import Outcome, run, run_quietly

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
        yield from map(run_quietly, seeds)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        try:
            yield from pool.map(run_quietly, seeds, chunksize=_SEEDS_PER_TASK)
        finally:
            pool.shutdown(cancel_futures=True)


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
