"""The intervals of a ratio cover the true ratio as often as they should: a simulation with the stopping rule of the
benchmark."""

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY

from benchmarks.bench import CONFIG, WITHIN_TORCH
from pipeline.benchmark.benchmark import LEAST_PROCESSES
from pipeline.benchmark.intervals import LEVEL, Estimate, comparison, geometric_mean, mean, ratio, spread, verdict
from pipeline.benchmark.process import LEAST_ROUNDS
from pipeline.contract import Array

DEFAULT = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["benchmark"]
ROUNDS = {"dvc repro": DEFAULT["rounds"], "make bench": CONFIG.rounds, "the fewest": LEAST_ROUNDS}
MOST_PROCESSES = 12


def simulated(
    generator: np.random.Generator, processes: int, rounds: int, *, between: float, within: float, true: float
) -> tuple[list[Array], list[Array]]:
    """Two candidates' times: `true` is their ratio, which differs between processes, and each round adds its noise.

    A slow tenth of a second of the machine, up to three times as slow, affects both.
    """
    drift = np.exp(generator.uniform(0, np.log(3), (processes, rounds)))
    process_means = np.exp(between * generator.standard_normal((processes, 1)))
    above = true * process_means * drift * np.exp(within * generator.standard_normal((processes, rounds)))
    below = drift * np.exp(within * generator.standard_normal((processes, rounds)))
    return list(above), list(below)


def stopped(above: list[Array], below: list[Array], within: float) -> Estimate:
    """The interval at which a benchmark stops: as soon as it is narrow enough, or when no process is left."""
    for count in range(LEAST_PROCESSES, len(above)):
        estimate = ratio(above[:count], below[:count])
        if estimate.half_width <= np.log(1 + within):
            return estimate
    return ratio(above, below)


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize(("between", "within"), [(0.0, 0.05), (0.01, 0.02), (0.05, 0.02), (0.2, 0.1)])
def test_interval_covers_the_true_ratio_with_the_stopping_rule(rounds: str, between: float, within: float):
    generator, trials, covered = np.random.default_rng(0), 600, 0
    for _ in range(trials):
        times = simulated(generator, MOST_PROCESSES, ROUNDS[rounds], between=between, within=within, true=1.5)
        estimate = stopped(*times, within=0.05)
        covered += estimate.low <= 1.5 <= estimate.high
    assert covered / trials >= 0.935  # at least 95 %, less what 600 trials may be off


def test_stopping_rule_would_make_a_95_percent_interval_cover_too_little():
    """The reason for LEVEL: with processes that differ by 6 %, a benchmark stops anywhere from the fourth process to
    the last."""
    generator, trials = np.random.default_rng(0), 4000
    covered = dict.fromkeys((0.95, LEVEL), 0)
    for _ in range(trials):
        logs = 0.06 * generator.standard_normal(MOST_PROCESSES)
        for level in covered:
            looks = [mean(list(logs[:count]), level) for count in range(LEAST_PROCESSES, MOST_PROCESSES + 1)]
            estimate = next((look for look in looks if look.high - look.value <= 0.05), looks[-1])
            covered[level] += estimate.low <= 0 <= estimate.high
    assert covered[0.95] / trials < 0.94
    assert 0.945 <= covered[LEVEL] / trials <= 0.97


def test_ratio_of_the_fastest_rounds_varies_more_where_the_machine_drifts():
    """The reason for the median over rounds of paired ratios: the fastest round of one candidate may be in a fast tenth
    of a second, and that of the other may not."""
    generator = np.random.default_rng(0)
    statistics = {
        "paired median": lambda above, below: np.median(np.log(above / below)),
        "fastest": lambda above, below: np.log(above.min() / below.min()),
        "lower quartile": lambda above, below: np.log(np.quantile(above, 0.25) / np.quantile(below, 0.25)),
    }
    ratios = {name: [] for name in statistics}
    for above, below in zip(
        *simulated(generator, 500, ROUNDS["dvc repro"], between=0, within=0.05, true=1), strict=True
    ):
        independent = np.exp(generator.uniform(0, np.log(1.3), len(above)))  # what a turn of its own has of the drift
        for name, statistic in statistics.items():
            ratios[name].append(statistic(above * independent, below))
    deviations = {name: np.std(values) for name, values in ratios.items()}
    assert deviations["paired median"] < 0.7 * deviations["fastest"]
    assert deviations["paired median"] < 0.7 * deviations["lower quartile"]


def test_bootstrap_over_processes_and_rounds_would_not_cover():
    """The reason for Student's interval: a bootstrap covers too rarely or too often, depending on how much processes
    differ."""
    generator, trials, resamples = np.random.default_rng(0), 400, 400
    processes, rounds = DEFAULT["processes"], ROUNDS["dvc repro"]
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


def test_verdict_slower_is_given_only_with_a_planted_slowdown():
    generator = np.random.default_rng(1)
    slower = dict.fromkeys((1.0, 1.1), 0)
    for true in slower:
        for _ in range(200):
            times = simulated(generator, MOST_PROCESSES, CONFIG.rounds, between=0.01, within=0.02, true=true)
            slower[true] += verdict(stopped(*times, within=WITHIN_TORCH)) == "slower"
    assert slower[1.1] >= 198
    assert slower[1.0] <= 4


def test_verdict_follows_from_the_interval():
    assert verdict(Estimate(0.9, 0.8, 0.95)) == "faster"
    assert verdict(Estimate(1.2, 1.1, 1.3)) == "slower"
    assert verdict(Estimate(0.9, 0.8, 1.1)) == "cannot tell"
    assert verdict(Estimate(1.0, 0.96, 1.04)) == "the same within 5 %"
    assert verdict(Estimate(1.03, 1.01, 1.05)) == "the same within 5 %"
    assert verdict(Estimate(1.03, 1.01, 1.06)) == "slower"
    assert comparison(Estimate(1.2, 1.1, 1.3), "the other") == (
        "A step takes 1.2 × (1.1 … 1.3) as long as the other: slower."
    )


def test_interval_of_few_values_is_that_of_student():
    """The 97.5th percentile of 2, 30 and 31 degrees of freedom (Student, 1908)."""
    assert mean([1.0, 2.0, 3.0]).high == pytest.approx(2 + 4.303 / 3**0.5, abs=1e-3)
    for number, quantile in ((31, 2.0423), (32, 2.0395)):
        values = np.arange(float(number))
        half = quantile * values.std(ddof=1) / number**0.5
        assert mean([*values]).high == pytest.approx(values.mean() + half, abs=1e-3)
    single = ratio([np.array([2.0, 2.0])], [np.array([1.0, 1.0])])
    assert single == (2.0, 0.0, float("inf"))
    assert (verdict(single), single.half_width) == ("cannot tell", float("inf"))


def test_geometric_mean_has_an_interval_symmetric_in_logarithms():
    estimate = geometric_mean([1.0, 4.0])
    assert estimate.value == pytest.approx(2)
    assert np.log(estimate.high / 2) == pytest.approx(np.log(2 / estimate.low)) == pytest.approx(estimate.half_width)


def test_spread_is_the_median_and_the_quartiles():
    assert spread([np.arange(3.0), np.arange(3.0, 5.0)]) == (2.0, 1.0, 3.0)
