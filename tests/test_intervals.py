"""What may be said of a ratio: intervals that cover what they claim, by simulation, with the processes really used."""

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY

from benchmarks.bench import CONFIG
from pipeline.benchmark.intervals import Estimate, format_ratio, mean, ratio, spread, verdict
from pipeline.contract import Array

DEFAULT = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["benchmark"]
USED = {"dvc repro": (DEFAULT["processes"], DEFAULT["rounds"]), "make bench": (CONFIG.processes, CONFIG.rounds)}


def simulated(
    generator: np.random.Generator, processes: int, rounds: int, *, between: float, within: float, true: float
) -> tuple[list[Array], list[Array]]:
    """Two candidates' times: `true` is their ratio, which differs between processes, and each round adds its noise.

    A slow minute of the machine, up to three times as slow, is slow for both.
    """
    drift = np.exp(generator.uniform(0, np.log(3), (processes, rounds)))
    own = np.exp(between * generator.standard_normal((processes, 1)))
    above = true * own * drift * np.exp(within * generator.standard_normal((processes, rounds)))
    below = drift * np.exp(within * generator.standard_normal((processes, rounds)))
    return list(above), list(below)


@pytest.mark.parametrize("used", USED)
@pytest.mark.parametrize(("between", "within"), [(0.0, 0.05), (0.01, 0.02), (0.05, 0.02), (0.2, 0.1)])
def test_interval_covers_what_it_claims(used: str, between: float, within: float):
    generator, trials, covered = np.random.default_rng(0), 4000, 0
    for _ in range(trials):
        found = ratio(*simulated(generator, *USED[used], between=between, within=within, true=1.5))
        covered += found.low <= 1.5 <= found.high
    assert 0.93 <= covered / trials <= 0.97


def test_bootstrap_over_processes_and_rounds_would_not():
    """Why the interval is Student's: the bootstrap covers too little or too much, as processes differ or do not."""
    generator, trials, resamples = np.random.default_rng(0), 400, 400
    processes, rounds = USED["dvc repro"]
    coverage = dict.fromkeys((0.0, 0.05), 0.0)
    for between in coverage:
        for _ in range(trials):
            above, below = simulated(generator, processes, rounds, between=between, within=0.02, true=1.5)
            logarithms = np.log(np.array(above) / np.array(below))
            chosen = generator.integers(processes, size=(resamples, processes, 1))
            drawn = logarithms[chosen, generator.integers(rounds, size=(resamples, processes, rounds))]
            low, high = np.quantile(np.median(drawn, axis=2).mean(axis=1), [0.025, 0.975])
            coverage[between] += (low <= np.log(1.5) <= high) / trials
    assert coverage[0.05] < 0.9
    assert coverage[0.0] > coverage[0.05] + 0.08


def test_planted_difference_of_5_percent_is_found_and_none_is_not():
    generator = np.random.default_rng(1)
    slower = dict.fromkeys((1.0, 1.05), 0)
    for true in slower:
        for _ in range(200):
            times = simulated(generator, *USED["make bench"], between=0.01, within=0.02, true=true)
            slower[true] += verdict(ratio(*times)) == "slower"
    assert slower[1.05] >= 180
    assert slower[1.0] <= 12


def test_faster_is_said_only_when_the_interval_excludes_one():
    assert verdict(Estimate(0.9, 0.8, 0.95)) == "faster"
    assert verdict(Estimate(1.2, 1.1, 1.3)) == "slower"
    assert verdict(Estimate(0.9, 0.8, 1.1)) == "no difference"
    assert format_ratio(Estimate(1.2, 1.1, 1.3)) == "1.2 × (1.1 … 1.3) as long"
    assert format_ratio(Estimate(0.9, 0.8, 1.1)) == "0.9 × (0.8 … 1.1) as long (no difference)"


def test_students_interval_of_few_values():
    """The 97.5th percentile of two and of 30 degrees of freedom (Student, 1908)."""
    assert mean([1.0, 2.0, 3.0]).high == pytest.approx(2 + 4.303 / 3**0.5, abs=1e-3)
    values = np.arange(31.0)
    assert mean([*values]).high == pytest.approx(15 + 2.042 * values.std(ddof=1) / 31**0.5, abs=1e-2)
    single = ratio([np.array([2.0, 2.0])], [np.array([1.0, 1.0])])
    assert single == (2.0, 0.0, float("inf"))
    assert verdict(single) == "no difference"


def test_quartiles():
    assert spread([np.arange(3.0), np.arange(3.0, 5.0)]) == (2.0, 1.0, 3.0)
