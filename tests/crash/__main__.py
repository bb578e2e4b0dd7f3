"""The long crash runs: ``python -m tests.crash`` (make crash)."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.crash import runs, shared, workers
from tests.support.redis_server import RedisServer


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash",
        description="Kill a sidecar with kill -9 at random instants under load, or stop and kill the owner of two that "
        "share a Redis, or somebody of two sidecars with four remote workers; and count what was lost.",
        epilog="example: python -m tests.crash --kills 500 --suspensions 100000",
    )
    parser.add_argument(
        "--journal", choices=["sqlite", "redis", "workers"], default="sqlite", help="which run (default sqlite)"
    )
    parser.add_argument("--kills", type=int, default=500, help="at least so many kills or stops (default 500)")
    parser.add_argument("--suspensions", type=int, default=100_000, help="over at least so many suspensions (100000)")
    parser.add_argument("--rate", type=int, default=800, help="suspensions per second (default 800)")
    parser.add_argument("--seed", type=int, default=None, help="of the random instants (default: another each time)")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else int(time.time())
    print(f"seed {seed}")
    started = time.monotonic()

    def progress(text: str) -> None:
        print(f"{time.monotonic() - started:7.1f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory(prefix="sipnap-crash-") as directory:
        numbers = {"suspensions": arguments.suspensions, "rate": arguments.rate, "seed": seed}
        outcome: runs.Outcome | workers.Outcome
        if arguments.journal == "workers":
            with RedisServer(Path(directory)) as redis:
                chaos = workers.kill_and_stop(redis, faults=arguments.kills, progress=progress, **numbers)
                outcome = asyncio.run(chaos)
        elif arguments.journal == "redis":
            with RedisServer(Path(directory)) as redis:
                run = shared.stop_owners(redis, faults=arguments.kills, progress=progress, **numbers)
                outcome = asyncio.run(run)
        else:
            run = runs.kill_sqlite(Path(directory), kills=arguments.kills, progress=progress, **numbers)
            outcome = asyncio.run(run)
    print(outcome)
    outcome.check()
    return 0


if __name__ == "__main__":
    sys.exit(main())
