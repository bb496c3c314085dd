"""`make test-benchmark`: is what the benchmark says true? Real times on this machine, so not part of `make test`.

HONESTY is how many comparisons there are; CI makes fewer. All of them are in one benchmark each, as `make bench` makes
it: the same processes, rounds and turns.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import HOST

from benchmarks.bench import EFFORT, LESSONS, SIZES
from pipeline.benchmark import samples
from pipeline.benchmark.benchmark import Effort, Size, benchmark
from pipeline.benchmark.intervals import ratio, verdict
from pipeline.contract import Array

pytestmark = pytest.mark.honesty
COMPARISONS = int(os.environ.get("HONESTY", "20"))
PROBLEM, SMALL = SIZES["small"]
SAME, SLOWED = "self/numpy_arrays", "slowed/numpy_arrays"


def compared(count: int) -> Iterator[dict[str, str]]:
    """What each comparison says of the same program twice, and of one that is slowed down by 5 %."""
    for seed in range(count):
        plan = [Size(PROBLEM, SMALL, ["numpy_arrays", SAME, SLOWED])]
        taken, meanwhile = benchmark(plan, effort=EFFORT, dtype="float32", environment=HOST, seed=seed)
        rows = ({key: str(value) for key, value in each._asdict().items()} for each in taken)
        measured = samples.read(rows, {"device": "cpu"} | meanwhile)
        (case,) = measured.cases
        found = {}
        for candidate in (SAME, SLOWED):
            estimate = case.ratio(candidate, "numpy_arrays")
            found[candidate] = verdict(estimate) if estimate else "cannot tell"
            print(f"comparison {seed + 1}: {candidate}: {estimate or measured.doubt}", flush=True)
        yield found


def test_the_same_program_twice_and_one_that_is_slowed_by_5_percent():
    found = list(compared(COMPARISONS))
    same, slowed = (Counter(each[candidate] for each in found) for candidate in (SAME, SLOWED))
    told = COMPARISONS - same["cannot tell"]
    assert told > 0, "other processes kept this machine busy throughout: nothing was compared"
    assert same["slower"] + same["faster"] <= max(1, 0.15 * told), same
    assert slowed["faster"] == 0, slowed
    assert slowed["slower"] >= 0.9 * told - (COMPARISONS < 20), slowed


@contextmanager
def busy_neighbour() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_beside_a_busy_process_nothing_wrong_is_said():
    with busy_neighbour():
        found = list(compared(COMPARISONS // 3))
    same, slowed = (Counter(each[candidate] for each in found) for candidate in (SAME, SLOWED))
    assert same["cannot tell"] == len(found) > 0, "it was not noticed that another process took a CPU"
    assert slowed["faster"] == 0


def paces(candidate: str, beside: list[str]) -> list[Array]:
    plan = [Size(PROBLEM, SMALL, [candidate, *beside])]
    taken, _ = benchmark(plan, effort=Effort(1, 10, 0.02), dtype="float32", environment=HOST)
    return [np.array([each.seconds / each.steps for each in taken if each.candidate == candidate])]


@pytest.mark.parametrize("name", LESSONS["two_layer"])
def test_a_candidate_among_others_is_as_fast_as_alone(name: str):
    """Idle threads of a neighbour may take a CPU: OpenBLAS's, as they come, slowed torch down by half."""
    beside = [other for other in [*LESSONS["two_layer"], "lower_bound/numpy", "lower_bound/torch"] if other != name]
    alone, among = [], []
    for _ in range(max(2, COMPARISONS // 3)):
        alone += paces(name, [])
        among += paces(name, beside)
    found = ratio(among, alone)
    print(f"{name}: among others {found} as long as alone")
    assert found.low < 1.1
