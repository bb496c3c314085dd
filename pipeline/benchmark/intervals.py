"""What may be said of the ratio of two candidates' times.

A ratio is taken within each process, where the two are interleaved: the median over rounds of the one's time over the
other's in the same round. The machine is faster in one tenth of a second than in the next, for both candidates alike,
and the pairs cancel that. The ratio of the two fastest rounds, or of their lower quartiles, does not: over 30 processes
it varied up to three times as much (docs/reference/performance.md, tests/test_intervals.py).

The processes are what is independent, so the confidence interval is Student's t over their logarithms. A benchmark goes
on until its headlines are narrow enough, and an interval that is looked at again and again is narrow too early: at the
nominal 95 % it covers the true ratio 92 to 95 % of the time. So the interval is computed at 97 %. With the stopping
rule it then covers at least 95 %; tests/test_intervals.py simulates both. (A bootstrap over processes and rounds covers
81 to 99 %, depending on how much processes differ.)
"""

from collections.abc import Sequence
from math import inf, isinf, log
from typing import NamedTuple

import numpy as np

from pipeline.contract import Array

LEVEL = 0.97  # of a ratio's interval, so that it covers 95 % with the stopping rule
SAME = 0.05  # two times that differ by less are called the same
FASTER, SLOWER, ALIKE, UNKNOWN = "faster", "slower", "the same within 5 %", "cannot tell"


class Estimate(NamedTuple):
    """A figure and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} × ({self.low:.3g} … {self.high:.3g})"

    @property
    def half_width(self) -> float:
        """Of a ratio, on a logarithmic scale: 0.05 is ± 5 %."""
        return inf if self.low <= 0 or isinf(self.high) else log(self.high / self.low) / 2


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
    return geometric_mean(
        [float(np.exp(np.median(np.log(one / other)))) for one, other in zip(above, below, strict=True)]
    )


def geometric_mean(values: Sequence[float]) -> Estimate:
    """Of independent positive values, one for each process of a benchmark."""
    return Estimate(*(float(np.exp(bound)) for bound in mean([log(value) for value in values], LEVEL)))


def mean(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Of independent values; of a single one the interval is infinite."""
    from scipy.special import (
        stdtrit,
    )  # takes 0.3 s, and TensorFlow's interpreter on a GPU, which judges nothing, lacks it

    middle, number = float(np.mean(values)), len(values)
    if number == 1:
        return Estimate(middle, -inf, inf)
    half = float(stdtrit(number - 1, (1 + level) / 2) * np.std(values, ddof=1)) / number**0.5
    return Estimate(middle, middle - half, middle + half)


def verdict(of_times: Estimate) -> str:
    """What the interval of a ratio of times allows to say of the candidate above."""
    if of_times.low >= 1 - SAME and of_times.high <= 1 + SAME:
        return ALIKE
    if of_times.high < 1:
        return FASTER
    return SLOWER if of_times.low > 1 else UNKNOWN


def comparison(of_times: Estimate, other: str) -> str:
    """A sentence: how long a step takes, compared with a step of `other`, and the verdict."""
    return f"A step takes {of_times} as long as {other}: {verdict(of_times)}."
