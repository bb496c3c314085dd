"""What may be said of the ratio of two candidates' times.

A ratio is taken within each process, where the two were interleaved: the median over rounds of the one's time over the
other's in the same round. The processes are what is independent, so the 95 % confidence interval is Student's t over
their logarithms. (A bootstrap over processes and rounds was tried first. With the three to eight processes that a
benchmark can afford its percentiles covered 81 to 99 % of the time, depending on how much processes differ; Student's t
covers 95 % at any number. tests/test_intervals.py simulates both.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.contract import Array


class Estimate(NamedTuple):
    """A figure and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} × ({self.low:.3g} … {self.high:.3g})"


class Spread(NamedTuple):
    median: float
    lower_quartile: float
    upper_quartile: float


def spread(processes: Sequence[Array]) -> Spread:
    """Of all samples together."""
    lower, median, upper = np.quantile(np.concatenate(processes), [0.25, 0.5, 0.75])
    return Spread(float(median), float(lower), float(upper))


def ratio(above: Sequence[Array], below: Sequence[Array]) -> Estimate:
    """Of two candidates' times: for each process their samples (rounds,), in the same order."""
    logarithms = [float(np.median(np.log(one / other))) for one, other in zip(above, below, strict=True)]
    return Estimate(*(float(np.exp(bound)) for bound in mean(logarithms)))


def mean(values: Sequence[float]) -> Estimate:
    """Of independent values; of a single one the interval is infinite."""
    from scipy.special import (
        stdtrit,
    )  # takes 0.3 s, and TensorFlow's interpreter on a GPU, which judges nothing, lacks it

    middle, number = float(np.mean(values)), len(values)
    if number == 1:
        return Estimate(middle, -float("inf"), float("inf"))
    half = float(stdtrit(number - 1, 0.975) * np.std(values, ddof=1)) / number**0.5
    return Estimate(middle, middle - half, middle + half)


def verdict(of_times: Estimate) -> str:
    """What the interval of a ratio of times allows to say of the one above: faster, slower, or no difference."""
    if of_times.high < 1:
        return "faster"
    return "slower" if of_times.low > 1 else "no difference"


def format_ratio(of_times: Estimate) -> str:
    """In a sentence: a step takes … as one of the other."""
    return f"{of_times} as long" + " (no difference)" * (verdict(of_times) == "no difference")
