"""`make test-benchmark`: does the benchmark find known slowdowns? It takes real times, so it is not part of `make
test`. CALIBRATION is the number of comparisons; CI makes SHORT. Each is a benchmark with the rounds, turns and stopping
rule of `make bench`. OUTPUT names a file for the power curve: docs/results/calibration.csv.
"""

import csv
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import HOST, REPOSITORY, quiet

from benchmarks import problem_of
from benchmarks.bench import ARRAYS, CONFIG, SIZES, WITHIN_TORCH
from pipeline.benchmark.benchmark import benchmark
from pipeline.benchmark.candidates import Candidate
from pipeline.benchmark.intervals import ratio, verdict
from pipeline.benchmark.plan import BenchmarkConfig, Pair, Size
from pipeline.benchmark.samples import collect
from pipeline.contract import Array

SHORT = 15
COMPARISONS = int(os.environ.get("CALIBRATION", "40"))
PROBLEM, SMALL = problem_of("numpy_arrays"), SIZES["small"][1]
NUMPY, SAME = Candidate("numpy_arrays"), Candidate("numpy_arrays", "self")
PLANTED = {0: SAME} | {percent: Candidate("numpy_arrays", "slowed", str(percent)) for percent in (2, 5, 10)}
COMPARED = replace(CONFIG, seconds=30.0)
PUBLISHED = REPOSITORY / "docs/results/calibration.csv"
UNKNOWN = "cannot tell"


def curve(count: int, *, on_line: Path | None = None) -> dict[int, Counter[str]]:
    """The verdicts on a program and its copy, and on a program that is slowed down by a number of per cent."""
    verdicts = {percent: Counter[str]() for percent in PLANTED}
    rows = []
    for seed in range(count):
        pairs = [Pair(candidate, NUMPY, WITHIN_TORCH) for candidate in PLANTED.values()]
        plan = [Size(PROBLEM, SMALL, [NUMPY, *PLANTED.values()], pairs)]
        taken, meanwhile = benchmark(plan, config=COMPARED, dtype="float32", environment=HOST, seed=seed)
        (case,) = collect(taken, quiet(**meanwhile)).cases
        for percent, candidate in PLANTED.items():
            estimate = case.ratio(candidate, NUMPY)
            word = verdict(estimate) if estimate else case.doubt
            verdicts[percent][word if estimate else "disturbed"] += 1
            rows.append(
                (seed, percent, word, *(f"{figure:.4f}" for figure in estimate or ()), len(meanwhile["processes"]))
            )
            print(f"comparison {seed + 1}, {percent} % slower: {estimate or ''} {word}", flush=True)
    if on_line:
        with on_line.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [("comparison", "planted_percent", "verdict", "ratio", "low", "high", "processes"), *rows]
            )
    return verdicts


def faults(verdicts: Mapping[int, Mapping[str, int]]) -> list[str]:
    """The faults of a power curve. Of 40 comparisons, at most 2 may call the same program different, and at least 36
    must find 5 %. A slowdown of 10 % must always be found, and no slowed program may be called faster."""
    same, five, ten = (Counter(verdicts[percent]) for percent in (0, 5, 10))
    answered = same.total() - same["disturbed"]
    results = []
    if not answered:
        results.append("other processes kept this machine busy throughout: nothing was compared")
    if same["slower"] + same["faster"] > max(1, answered // 20):
        results.append(f"the same program was called different: {same}")
    if answered - five["slower"] > max(3, answered // 10):
        results.append(f"a slowdown of 5 % was missed: {five}")
    if answered - ten["slower"] > 0:
        results.append(f"a slowdown of 10 % was missed: {ten}")
    if any(verdicts[percent].get("faster") for percent in (5, 10)):
        results.append("what was slowed down was called faster")
    return results


def simulated(generator: np.random.Generator, number: int, *, wrong: float, power: float, power_10: float) -> bool:
    """Whether a simulated power curve with these true rates has a fault."""
    different, five, ten = (int(generator.binomial(number, rate)) for rate in (wrong, power, power_10))
    return bool(
        faults(
            {
                0: {"slower": different, UNKNOWN: number - different},
                5: {"slower": five, UNKNOWN: number - five},
                10: {"slower": ten, UNKNOWN: number - ten},
            }
        )
    )


@pytest.mark.parametrize("number", [SHORT, 40])
@pytest.mark.parametrize(
    ("rates", "caught"),
    [
        ({"wrong": 0.3, "power": 0.97, "power_10": 1.0}, True),
        ({"wrong": 0.01, "power": 0.5, "power_10": 1.0}, True),
        ({"wrong": 0.01, "power": 0.97, "power_10": 0.8}, True),
        ({"wrong": 0.005, "power": 0.97, "power_10": 1.0}, False),
    ],
)
def test_short_form_catches_wrong_verdicts_and_missed_slowdowns(number: int, rates: dict[str, float], caught: bool):
    """A simulation: CI's rule fails for a bad benchmark, and rarely for a good one."""
    generator, trials = np.random.default_rng(0), 2000
    rate = sum(simulated(generator, number, **rates) for _ in range(trials)) / trials
    assert rate > 0.95 if caught else rate < 0.03


@pytest.mark.calibration
def test_power_curve_is_within_its_limits():
    output = os.environ.get("OUTPUT")
    verdicts = curve(COMPARISONS, on_line=Path(output) if output else None)
    for percent, words in verdicts.items():
        print(f"{percent} % slower: {', '.join(f'{word} {count}' for word, count in words.most_common())}")
    assert faults(verdicts) == []


@pytest.mark.calibration
def test_benchmark_beside_a_busy_process_gives_no_verdict():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
        try:
            verdicts = curve(max(1, COMPARISONS // SHORT))
        finally:
            neighbour.kill()
    assert verdicts[0]["disturbed"] == verdicts[0].total() > 0, "it was not noticed that another process took a CPU"
    assert not any(words["faster"] for words in verdicts.values())


@pytest.mark.calibration
def test_interleaved_candidates_are_as_fast_as_alone():
    """Idle threads of another candidate may take a CPU: OpenBLAS's default settings made torch take half as long
    again."""
    lessons = [Candidate(name) for name in ARRAYS]
    number = max(4, COMPARISONS // 8)
    alone, among = [], []
    for _ in range(number):  # in turns, because the speed of the machine changes from minute to minute
        alone.append({lesson: paces(lesson)[lesson] for lesson in lessons})
        among.append(paces(*lessons, Candidate("numpy", "matmul"), Candidate("torch", "matmul")))
    for lesson in lessons:
        estimate = ratio([process[lesson] for process in among], [process[lesson] for process in alone])
        print(f"{lesson}: among others {estimate} as long as alone")
        assert estimate.low < 1.1


def paces(*candidates: Candidate) -> dict[Candidate, Array]:
    """The seconds a step in the median round of one process."""
    plan = [Size(PROBLEM, SMALL, list(candidates))]
    config = BenchmarkConfig(1, 40, 0.02, seconds=0)
    taken, meanwhile = benchmark(plan, config=config, dtype="float32", environment=HOST)
    (case,) = collect(taken, quiet(**meanwhile)).cases
    return {candidate: np.array([case.median(candidate)]) for candidate in candidates}
