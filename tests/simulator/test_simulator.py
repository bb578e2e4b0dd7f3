"""The simulator in its short form, and the proof that it finds what is broken.

``SIPNAP_SEEDS=10000`` runs more seeds, ``SIPNAP_SEED=4711`` one only; `python -m tests.simulator --seed 4711` tells
what happened in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulator.mutations import MUTATIONS
from tests.simulator.run import Outcome, run

SEEDS = int(os.environ.get("SIPNAP_SEEDS", "300"))
ONLY_SEED = os.environ.get("SIPNAP_SEED")
MUTATION_SEEDS = 300


def report(outcome: Outcome) -> str:
    violations = "\n  ".join(outcome.violations)
    return f"seed {outcome.seed} (replay: python -m tests.simulator --seed {outcome.seed}):\n  {violations}"


@pytest.mark.timeout(60 + SEEDS // 10)
def test_every_promise_is_kept_under_every_seed() -> None:
    seeds = [int(ONLY_SEED)] if ONLY_SEED else range(1, SEEDS + 1)
    print(f"seeds {seeds[0]} to {seeds[-1]}")
    naps = resumed = 0
    for seed in seeds:
        outcome = run(seed)
        assert not outcome.violations, report(outcome)
        naps += outcome.naps
        resumed += outcome.resumed
    if not ONLY_SEED:
        assert naps > 5 * len(seeds), "the load is there"
        assert resumed > naps / 2, "and most of it comes through"


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_rule_is_found(name: str) -> None:
    with MUTATIONS[name]():
        for seed in range(1, MUTATION_SEEDS + 1):
            outcome = run(seed)
            if outcome.violations:
                print(f"found by {report(outcome)}")
                return
    pytest.fail(f"{name} was not found by {MUTATION_SEEDS} seeds")


def test_a_seed_gives_the_same_run_again() -> None:
    for seed in range(1, 20):
        assert list(run(seed, with_logs=True).story()) == list(run(seed, with_logs=True).story())


def test_a_seed_gives_the_same_run_in_another_process() -> None:
    command = [sys.executable, "-m", "tests.simulator", "--seed", "17"]
    outputs = {
        subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": hash_seed}, cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE, check=True, timeout=30,
        ).stdout
        for hash_seed in ("1", "2")
    }  # fmt: skip
    assert len(outputs) == 1
    assert b"seed 17: " in outputs.pop()


def test_seeds_run_in_several_processes() -> None:
    command = [sys.executable, "-m", "tests.simulator", "--seeds", "60", "--jobs", "2"]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, check=True, timeout=60)
    assert b"60 of 60 seeds" in ended.stderr
    assert b" 0 failed" in ended.stderr
