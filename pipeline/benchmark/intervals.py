"""The ratio of two candidates' times, its confidence interval, and the verdict. In each process, where the two
candidates are interleaved, the ratio is the median over rounds of one time over the other in the same round. The speed
of the machine changes within tenths of a second, for both candidates alike, and the pairs cancel that. The ratio of the
two fastest rounds, or of their lower quartiles, does not: over 30 processes it varied up to three times as much
(docs/reference/performance.md, tests/test_intervals.py). The processes are independent, so the confidence interval is
Student's t over the logarithms of their ratios. A benchmark goes on until its headlines are narrow enough. An interval
that is checked again and again stops too early: at the nominal 95 % it covers the true ratio 92 to 95 % of the time. So
the interval is computed at 97 %. With the stopping rule it then covers at least 95 %; tests/test_intervals.py simulates
both. (A bootstrap over processes and rounds covers 81 to 99 %, depending on how much processes differ.)
"""

from collections.abc import Sequence
from math import inf, isinf, log
from typing import NamedTuple

import numpy as np

from pipeline.contract import Array

LEVEL = 0.97  # nominal, of a ratio's interval: with the stopping rule it covers 95 %
SAME = 0.05  # the verdict is "the same" where two times differ by less
FASTER, SLOWER, ALIKE, UNKNOWN = "faster", "slower", "the same within 5 %", "cannot tell"


class Estimate(NamedTuple):
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} × ({self.low:.3g} … {self.high:.3g})"

    @property
    def half_width(self) -> float:
        """The half width of a ratio's interval, on a logarithmic scale: 0.05 is ± 5 %."""
        return inf if self.low <= 0 or isinf(self.high) else log(self.high / self.low) / 2


class Spread(NamedTuple):
    median: float
    lower_quartile: float
    upper_quartile: float


def spread(processes: Sequence[Array]) -> Spread:
    """The quartiles of all samples together."""
    lower, median, upper = np.quantile(np.concatenate(processes), [0.25, 0.5, 0.75])
    return Spread(float(median), float(lower), float(upper))


def ratio(above: Sequence[Array], below: Sequence[Array]) -> Estimate:
    """The ratio of two candidates' times, from their samples (rounds,) of each process, in the same order."""
    return geometric_mean(
        [float(np.exp(np.median(np.log(one / other)))) for one, other in zip(above, below, strict=True)]
    )


def geometric_mean(values: Sequence[float]) -> Estimate:
    """The geometric mean of independent positive values, one for each process, and its interval."""
    return Estimate(*(float(np.exp(bound)) for bound in mean([log(value) for value in values], LEVEL)))


def mean(values: Sequence[float], level: float = 0.95) -> Estimate:
    """The mean of independent values and its interval, which is infinite for a single value."""
    from scipy.special import (
        stdtrit,
    )  # the import takes 0.3 s, and TensorFlow's interpreter in the GPU image lacks scipy

    middle, number = float(np.mean(values)), len(values)
    if number == 1:
        return Estimate(middle, -inf, inf)
    half = float(stdtrit(number - 1, (1 + level) / 2) * np.std(values, ddof=1)) / number**0.5
    return Estimate(middle, middle - half, middle + half)


def verdict(of_times: Estimate) -> str:
    """The verdict that the interval of a ratio of times allows on its first candidate."""
    if of_times.low >= 1 - SAME and of_times.high <= 1 + SAME:
        return ALIKE
    if of_times.high < 1:
        return FASTER
    return SLOWER if of_times.low > 1 else UNKNOWN


def comparison(of_times: Estimate, other: str) -> str:
    """A sentence: how long a step takes, compared with a step of `other`, and the verdict."""
    return f"A step takes {of_times} as long as {other}: {verdict(of_times)}."
