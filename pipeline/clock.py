"""The only clock. It synchronizes the device before it reads the time, so it measures work that has ended."""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

KEPT_CALLS = 500

# The parts of a training's time, in the order in which they first occur. The last is the residual.
TIME_BREAKDOWN = {
    "imports": "the interpreter's start, the imports, params.yaml",
    "device_context": "threads, precision, the device's context",
    "read": "reading the data, and checking that they are what was generated",
    "setup": "constructing the implementation: weights to the device",
    "transfer": "placing each batch on the device",
    "compile": "what can be done before a step: a graph's definition and compilation, CUDA graphs",
    "first_steps": "the first step, with what is chosen or allocated once; of PyTorch on a GPU the first two steps",
    "train": "all steps after these",
    "read_back": "losses and weights to host memory",
    "log": "showing the progress",
    "checkpoint": "writing checkpoints of a long training, and resuming from one",
    "predict": "predictions, and the gradient at the initial weights, for the evaluation",
    "save": "writing the results",
    "residual": "everything else: the loop itself, checking that losses are finite",
}


class Stopwatch:
    """Divides the wall-clock time since the process started among the parts, and keeps the seconds a step of timed
    calls. `synchronize` returns when the device is idle. It is called before the clock is read, at the start and at the
    end.
    """

    def __init__(self, synchronize: Callable[[], None] = lambda: None) -> None:
        self.synchronize = synchronize
        self.seconds = dict.fromkeys(TIME_BREAKDOWN, 0.0)
        self.seconds["imports"] = process_seconds()
        self.steps = 0
        self.step_seconds: list[float] = []  # of every `stride`-th call, so that memory stays bounded
        self.stride, self.calls = 1, 0

    @contextmanager
    def measure(self, name: str, *, steps: int = 0) -> Iterator[list[float]]:
        """Add the time of the body to the part `name`, one of TIME_BREAKDOWN. With `steps`, the body is a call of that
        many steps, whose seconds a step are kept.

        Yields a list that holds the seconds when the body has ended.
        """
        with timed(lambda: self.synchronize()) as seconds:  # noqa: PLW0108 (it may be set inside)
            yield seconds
        self.seconds[name] += seconds[0]
        if not steps:
            return
        self.steps += steps
        if self.calls % self.stride == 0:
            self.step_seconds.append(seconds[0] / steps)
            if len(self.step_seconds) == 2 * KEPT_CALLS:
                self.step_seconds, self.stride = self.step_seconds[::2], 2 * self.stride
        self.calls += 1

    def summary(self, batch_size: int) -> dict[str, Any]:
        """Fields of results.Timing, in seconds but for examples_per_second.

        breakdown_seconds add up to wall_seconds, the seconds since the process started. The median and the 95th
        percentile of a step are over each call's seconds per step, without the first call. examples_per_second is
        computed from the median.
        """
        wall = process_seconds()
        breakdown = self.seconds | {"residual": wall - sum(self.seconds.values())}
        pace = self.step_seconds[1:] or self.step_seconds
        median = statistics.median(pace)
        return {
            "breakdown_seconds": breakdown,
            "wall_seconds": wall,
            "step_seconds_median": median,
            "step_seconds_p95": statistics.quantiles(pace, n=20, method="inclusive")[-1] if len(pace) > 1 else median,
            "examples_per_second": batch_size / median,
        }


@contextmanager
def timed(synchronize: Callable[[], None]) -> Iterator[list[float]]:
    """Yields a list that holds, when the body has ended, its seconds, from one idle state of the device to the next."""
    seconds: list[float] = []
    synchronize()
    start = time.perf_counter()
    yield seconds
    synchronize()
    seconds.append(time.perf_counter() - start)


def now() -> float:
    """Seconds on a monotonic clock: setting the system's time does not change it."""
    return time.monotonic()


def timestamp() -> str:
    """The date and time in UTC, as ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def pause(seconds: float) -> None:
    time.sleep(seconds)


def process_seconds() -> float:
    """The seconds since this process was started, to 10 ms. An exec does not reset them."""
    # Field 22 of /proc/PID/stat, see proc(5). The program's name before the last parenthesis may hold spaces.
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def other_processes() -> Iterator[list[float]]:
    """Yields a list that holds, when the body has ended, two averages: how many of the CPUs that this process may use
    were busy with other processes, and how many the host of a virtual machine took away (steal time)."""
    cpus: list[float] = []
    before = _other_seconds()
    with timed(lambda: None) as seconds:
        yield cpus
    cpus += [max(0.0, after - start) / seconds[0] for after, start in zip(_other_seconds(), before, strict=True)]


def disturbances() -> tuple[int, float]:
    """Two counters that only grow: how often another thread took a CPU from a thread of this process (involuntary
    context switches), and how many CPU seconds the host of a virtual machine took away (steal time, to 10 ms)."""
    import resource

    import psutil

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw, getattr(psutil.cpu_times(), "steal", 0.0)


def _other_seconds() -> tuple[float, float]:
    """CPU seconds since the machine started, on the CPUs that this process may use: those of other processes (not this
    one and its children), and those of steal time."""
    import psutil

    usable, every = os.sched_getaffinity(0), psutil.cpu_times(percpu=True)
    cpus = [every[number] for number in usable if number < len(every)]
    # User time includes the time of guests. Neither idle nor iowait is busy.
    busy = sum(cpu.user + cpu.nice + cpu.system + cpu.irq + cpu.softirq for cpu in cpus)
    return busy - sum(os.times()[:4]), sum(cpu.steal for cpu in cpus)
