"""Medians, and what may be said of the ratio of two of them.

An interval is the bootstrap's (Efron, 1979, percentile method, 95 %): whole rounds are drawn again, with what each
contestant took in them, so that what slowed a round down counts for both sides. Written out in NumPy, since a benchmark
also runs where there is torch and NumPy and nothing else.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.contract import Array

RESAMPLES = 4000
SEED = 0  # the same samples, the same interval


class Estimate(NamedTuple):
    """A figure, and the interval that holds it in 95 of 100 benchmarks."""

    value: float
    low: float
    high: float


class Spread(NamedTuple):
    median: float
    lower_quartile: float
    upper_quartile: float


def spread(samples: Array) -> Spread:
    lower, median, upper = np.quantile(samples, [0.25, 0.5, 0.75])
    return Spread(float(median), float(lower), float(upper))


def ratio(above: Array, below: Array) -> Estimate:
    """Of the medians of two contestants, whose samples (rounds,) are paired by round."""
    return estimate(lambda above, below: above / below, above, below)


def estimate(function: Callable[..., Array], *contestants: Array) -> Estimate:
    """`function` of the contestants' medians: samples (rounds,) each, those of the same length paired by round."""
    drawn = {
        len(samples): np.random.default_rng(SEED).integers(len(samples), size=(RESAMPLES, len(samples)))
        for samples in contestants
    }
    values = function(*(np.median(samples[drawn[len(samples)]], axis=1) for samples in contestants))
    low, high = np.quantile(values, [0.025, 0.975], method="closest_observation")  # no interpolation with infinity
    return Estimate(float(function(*(np.median(samples) for samples in contestants))), float(low), float(high))


def verdict(seconds_ratio: Estimate) -> str:
    """What an interval of a ratio of times allows to say of the one above: faster, slower, or no difference."""
    if seconds_ratio.high < 1:
        return "faster"
    return "slower" if seconds_ratio.low > 1 else "no difference"
