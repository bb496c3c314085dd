"""What may be said of a ratio: intervals that cover what they claim, by simulation, at the effort really used."""

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY

from benchmarks.bench import EFFORT
from pipeline.benchmark.intervals import STUDENT, Estimate, ratio, spread, verdict
from pipeline.contract import Array

DEFAULT = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["benchmark"]
EFFORTS = {"dvc repro": (DEFAULT["processes"], DEFAULT["rounds"]), "make bench": (EFFORT.processes, EFFORT.rounds)}
TRIALS = 4000


def simulated(
    generator: np.random.Generator, processes: int, rounds: int, between: float, within: float, true: float
) -> tuple[list[Array], list[Array]]:
    """Two candidates' times: `true` is their ratio, which differs between processes, and each round adds its noise.

    A slow minute of the machine, up to three times as slow, is slow for both.
    """
    drift = np.exp(generator.uniform(0, np.log(3), (processes, rounds)))
    own = np.exp(between * generator.standard_normal((processes, 1)))
    above = true * own * drift * np.exp(within * generator.standard_normal((processes, rounds)))
    below = drift * np.exp(within * generator.standard_normal((processes, rounds)))
    return list(above), list(below)


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize(("between", "within"), [(0.0, 0.05), (0.01, 0.02), (0.05, 0.02), (0.2, 0.1)])
def test_the_interval_covers_what_it_claims(effort: str, between: float, within: float):
    processes, rounds = EFFORTS[effort]
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(TRIALS):
        found = ratio(*simulated(generator, processes, rounds, between, within, true=1.5))
        covered += found.low <= 1.5 <= found.high
    assert 0.93 <= covered / TRIALS <= 0.97


def test_a_bootstrap_over_processes_and_rounds_would_not():
    """Why the interval is Student's: the bootstrap covers too little or too much, as processes differ or do not."""
    generator, trials, resamples = np.random.default_rng(0), 400, 400
    processes, rounds = EFFORTS["dvc repro"]
    coverage = {}
    for between in (0.0, 0.05):
        covered = 0
        for _ in range(trials):
            above, below = simulated(generator, processes, rounds, between, 0.02, true=1.5)
            logarithms = np.log(np.array(above) / np.array(below))
            chosen = generator.integers(processes, size=(resamples, processes, 1))
            drawn = logarithms[chosen, generator.integers(rounds, size=(resamples, processes, rounds))]
            low, high = np.quantile(np.median(drawn, axis=2).mean(axis=1), [0.025, 0.975])
            covered += low <= np.log(1.5) <= high
        coverage[between] = covered / trials
    assert coverage[0.05] < 0.9
    assert coverage[0.0] > coverage[0.05] + 0.08


def test_a_planted_difference_of_5_percent_is_found_and_none_is_not():
    processes, rounds = EFFORTS["make bench"]
    generator = np.random.default_rng(1)
    found = {
        true: sum(
            verdict(ratio(*simulated(generator, processes, rounds, 0.01, 0.02, true))) == "slower" for _ in range(200)
        )
        for true in (1.0, 1.05)
    }
    assert found[1.05] >= 180
    assert found[1.0] <= 12


def test_faster_is_said_only_when_the_interval_excludes_one():
    assert verdict(Estimate(0.9, 0.8, 0.95)) == "faster"
    assert verdict(Estimate(1.2, 1.1, 1.3)) == "slower"
    assert verdict(Estimate(0.9, 0.8, 1.1)) == "no difference"


def test_one_process_allows_no_interval():
    found = ratio([np.array([2.0, 2.0])], [np.array([1.0, 1.0])])
    assert found == (2.0, 0.0, float("inf"))
    assert verdict(found) == "no difference"


def test_quartiles():
    assert spread([np.arange(3.0), np.arange(3.0, 5.0)]) == (2.0, 1.0, 3.0)


def test_students_percentiles_fall_towards_the_normals():
    assert list(STUDENT) == sorted(STUDENT, reverse=True)
    generator = np.random.default_rng(0)
    for freedom in (1, 2, 4, 9, 29):
        drawn = generator.standard_t(freedom, size=400_000)
        assert np.mean(np.abs(drawn) <= STUDENT[freedom - 1]) == pytest.approx(0.95, abs=0.002)
