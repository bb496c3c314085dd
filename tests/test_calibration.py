"""`make test-benchmark`: is what the benchmark says true? Real times on this machine, so not part of `make test`.

CALIBRATION is how many comparisons there are; CI makes fewer. All of them are in one benchmark each, as `make bench`
makes it: the same processes, rounds and turns.
"""

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from conftest import HOST, quiet

from benchmarks import problem_of
from benchmarks.bench import ARRAYS, CONFIG, SIZES
from pipeline.benchmark.benchmark import benchmark
from pipeline.benchmark.candidates import Candidate
from pipeline.benchmark.intervals import ratio, verdict
from pipeline.benchmark.plan import BenchmarkConfig, Size
from pipeline.benchmark.samples import collect
from pipeline.contract import Array

pytestmark = pytest.mark.calibration
COMPARISONS = int(os.environ.get("CALIBRATION", "20"))
PROBLEM, SMALL = problem_of("numpy_arrays"), SIZES["small"][1]
NUMPY, SAME, SLOWED = (Candidate("numpy_arrays", kind) for kind in ("", "self", "slowed"))


def compared(count: int) -> tuple[Counter[str], Counter[str]]:
    """What the comparisons say of the same program twice, and of one that is slowed down by 5 %."""
    verdicts: dict[Candidate, list[str]] = {SAME: [], SLOWED: []}
    for seed in range(count):
        plan = [Size(PROBLEM, SMALL, [NUMPY, SAME, SLOWED])]
        taken, meanwhile = benchmark(plan, config=CONFIG, dtype="float32", environment=HOST, seed=seed)
        measured = collect(taken, quiet(**meanwhile))
        for candidate, said in verdicts.items():
            estimate = measured.cases[0].ratio(candidate, NUMPY)
            said.append(verdict(estimate) if estimate else "cannot tell")
            print(f"comparison {seed + 1}: {candidate}: {estimate or measured.doubt}", flush=True)
    return Counter(verdicts[SAME]), Counter(verdicts[SLOWED])


def test_same_program_twice_is_the_same_and_one_slowed_by_5_percent_is_slower():
    same, slowed = compared(COMPARISONS)
    answered = COMPARISONS - same["cannot tell"]
    assert answered > 0, "other processes kept this machine busy throughout: nothing was compared"
    assert same["slower"] + same["faster"] <= max(1, 0.15 * answered), same
    assert slowed["faster"] == 0, slowed
    assert slowed["slower"] >= 0.9 * answered - (COMPARISONS < 20), slowed


def test_beside_a_busy_process_nothing_wrong_is_said():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
        try:
            same, slowed = compared(COMPARISONS // 3)
        finally:
            neighbour.kill()
    assert same["cannot tell"] == same.total() > 0, "it was not noticed that another process took a CPU"
    assert slowed["faster"] == 0


def test_candidates_among_others_are_as_fast_as_alone():
    """Idle threads of a neighbour may take a CPU: OpenBLAS's, as they come, slowed torch down by half."""
    lessons = [Candidate(name) for name in ARRAYS]
    number = max(3, COMPARISONS // 3)  # of two processes an interval is too wide to exclude anything
    alone, among = [], []
    for _ in range(number):  # by turns, since the machine may be slower in one minute than in the next
        alone.append({lesson: paces(lesson)[lesson] for lesson in lessons})
        among.append(paces(*lessons, Candidate("numpy", "matmul"), Candidate("torch", "matmul")))
    for lesson in lessons:
        estimate = ratio([process[lesson] for process in among], [process[lesson] for process in alone])
        print(f"{lesson}: among others {estimate} as long as alone")
        assert estimate.low < 1.1


def paces(*candidates: Candidate) -> dict[Candidate, Array]:
    """In one process, the seconds a step in each round."""
    plan = [Size(PROBLEM, SMALL, list(candidates))]
    taken, _ = benchmark(plan, config=BenchmarkConfig(1, 10, 0.02), dtype="float32", environment=HOST)
    seconds = {candidate: [s.seconds / s.steps for s in taken if s.candidate == candidate] for candidate in candidates}
    return {candidate: np.array(values) for candidate, values in seconds.items()}
