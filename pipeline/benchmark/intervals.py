"""What may be said of the ratio of two candidates' times.

A ratio is taken within each process, where the two were interleaved: the median over rounds of the one's time over the
other's in the same round. The processes are what is independent, so the 95 % confidence interval is Student's t over
their logarithms. (A bootstrap over processes and rounds was tried first. With the three to eight processes that a
benchmark can afford its percentiles covered 81 to 99 % of the time, depending on how much processes differ; Student's t
covers 95 % at any number. tests/test_intervals.py simulates both.)

Written out in NumPy, since a benchmark also runs where there is torch and NumPy and nothing else.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.contract import Array

# The 97.5th percentile of Student's t for 1, 2, 3 … degrees of freedom (Student, 1908); beyond the table the normal's
# is near enough.
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


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
    return Estimate(*(float(np.exp(each)) for each in mean(logarithms)))


def mean(values: Sequence[float]) -> Estimate:
    """Of independent values; of a single one the interval is infinite."""
    found, number = float(np.mean(values)), len(values)
    if number == 1:
        return Estimate(found, -float("inf"), float("inf"))
    quantile = STUDENT[number - 2] if number - 2 < len(STUDENT) else 1.96
    half = quantile * float(np.std(values, ddof=1)) / number**0.5
    return Estimate(found, found - half, found + half)


def verdict(of_times: Estimate) -> str:
    """What the interval of a ratio of times allows to say of the one above: faster, slower, or no difference."""
    if of_times.high < 1:
        return "faster"
    return "slower" if of_times.low > 1 else "no difference"
