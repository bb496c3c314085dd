"""The only clock. Everything that is timed is timed here, around work that has really ended."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up wall-clock seconds under names, and keeps the seconds per step of each call of `train`.

    `synchronize` returns when the device is idle: it is called before the clock is read, at both ends.
    """

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.synchronize = synchronize
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: list[tuple[int, float]] = []  # (steps, seconds), in order

    @contextmanager
    def measure(self, name: str, *, steps: int = 0) -> Iterator[None]:
        self.synchronize()
        start = time.perf_counter()
        yield
        self.synchronize()
        seconds = time.perf_counter() - start
        self.seconds[name] += seconds
        if steps:
            self.calls.append((steps, seconds))

    def summary(self, batch_size: int) -> dict[str, float]:
        """The timing keys of timing.json, in seconds but for the last.

        setup      constructing the implementation: weights to the device, and the graph's definition where there is one
        transfer   placing the blocks of batches on the device
        compile    what the first call of `train` took beyond its steps at the median pace: compilation, warm-up
        train      all calls of `train`, without what is under compile
        step       median and 95th percentile, over the calls after the first, of a call's seconds per step
        examples   per second, at the median step
        """
        pace = [seconds / steps for steps, seconds in self.calls[1:]] or [self.calls[0][1] / self.calls[0][0]]
        median = statistics.median(pace)
        first_steps, first_seconds = self.calls[0]
        compile_seconds = max(0.0, first_seconds - first_steps * median)
        return {
            "setup_seconds": self.seconds["setup"],
            "transfer_seconds": self.seconds["transfer"],
            "compile_seconds": compile_seconds,
            "train_seconds": self.seconds["train"] - compile_seconds,
            "step_seconds_median": median,
            "step_seconds_p95": statistics.quantiles(pace, n=20, method="inclusive")[-1] if len(pace) > 1 else median,
            "examples_per_second": batch_size / median,
        }
