"""What the measurements say: multiples of the floor, break-even, crossover, loops, and the claims of the text.

Nothing is measured here and nothing drawn: samples in, statements out. A statement of the kind "faster" or "from this
size on" rests on an interval (pipeline/statistics.py), not on two medians.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pipeline.contract import Array
from pipeline.statistics import Estimate, estimate, ratio, verdict

GPU_CLAIM = 50.0  # times as fast as NumPy
ALIKE = 0.1  # two sums of lengths that differ by less are taken to be the same


class Case(NamedTuple):
    """A size of a benchmark: seconds per step (rounds,) of each contestant; `build` is seconds for a graph."""

    sizes: dict[str, int]
    total_length: float  # of the sequences in a batch; of two_layer the batch size
    seconds: dict[str, Array]

    @property
    def label(self) -> str:
        return label(self.sizes)

    @property
    def floor(self) -> str:
        """The contestant that the floor is taken from: the fastest of the libraries at hand."""
        floors = [name for name in self.seconds if name.startswith("floor_")]
        return min(floors, key=lambda name: float(np.median(self.seconds[name])))

    @property
    def multiple(self) -> Estimate:
        """Of the floor, that a step takes."""
        return ratio(self.seconds["step"], self.seconds[self.floor])


class Claim(NamedTuple):
    text: str  # as the lessons' text has it
    verdict: str  # holds | does not hold | partly | not answered here
    finding: str


def label(sizes: Mapping[str, int]) -> str:
    """64 × 1000 × 100 × 10, and the lengths where there are some: batch, inputs, hidden, outputs."""
    text = " × ".join(str(sizes[key]) for key in ("batch_size", "inputs", "hidden", "outputs"))
    if "max_length" in sizes:
        text += f", lengths {sizes['min_length']} … {sizes['max_length']}"
    return text


def cases(rows: Iterable[Mapping[str, str]]) -> list[Case]:
    """The cases in the rows of a benchmark.csv, in their order."""
    found: dict[tuple, tuple[dict[str, int], float, dict[str, list[float]]]] = {}
    for row in rows:
        sizes = {key: int(row[key]) for key in row if key in _SIZES}
        _, _, seconds = found.setdefault(tuple(sizes.values()), (sizes, float(row["total_length"]), {}))
        seconds.setdefault(row["contestant"], []).append(float(row["seconds"]) / int(row["steps"]))
    return [
        Case(sizes, total, {name: np.array(samples) for name, samples in seconds.items()})
        for sizes, total, seconds in found.values()
    ]


_SIZES = ("batch_size", "inputs", "hidden", "outputs", "min_length", "max_length")


def operations(sizes: Mapping[str, int]) -> int:
    """Floating-point operations in the matrix products of a two-layer step: multiplications and additions."""
    batch, inputs, hidden, outputs = (sizes[key] for key in _SIZES[:4])
    return 2 * batch * hidden * (2 * inputs + 3 * outputs)


def break_even(case: Case) -> Estimate:
    """After how many steps a graph has paid back what it costs before its second step; infinite where it never does."""
    return estimate(_break_even, *(case.seconds[name] for name in ("build", "eager", "step")))


def _break_even(build: Array, eager: Array, step: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(eager > step, (build - step) / (eager - step), np.inf)


def steps(count: Estimate) -> str:
    """A break-even in words."""
    if not np.isfinite(count.value):
        return "never"
    high = f"{count.high:.0f}" if np.isfinite(count.high) else "never"
    return f"{count.value:.0f} steps ({count.low:.0f} … {high})"


def times(estimate: Estimate) -> str:
    """A ratio and its interval in words."""
    return f"{estimate.value:.3g} × ({estimate.low:.3g} … {estimate.high:.3g})"


def crossover(measured: list[Case], contestant: str, factor: float = 1.0) -> tuple[Case | None, Case, Estimate]:
    """From which case on a step is `factor` times as fast as `contestant`, or None; and the best case with its ratio.

    The lower end of the interval must be over the factor, in that case and in every later one.
    """
    ratios = [(case, ratio(case.seconds[contestant], case.seconds["step"])) for case in measured]
    reached = None
    for case, of_seconds in reversed(ratios):
        if of_seconds.low < factor:
            break
        reached = case
    best, highest = max(ratios, key=lambda pair: pair[1].value)
    return reached, best, highest


def loops(measured: list[Case]) -> list[str]:
    """What a recurrent step's time follows: the sum of the lengths at the same longest, or the longest at the same sum.

    Says nothing of either where the benchmark has no two cases that differ in it alone.
    """
    said = []
    pairs = [(a, b) for a in measured for b in measured]
    same_sum = [
        (a, b)
        for a, b in pairs
        if a.sizes["max_length"] < b.sizes["max_length"] and abs(b.total_length / a.total_length - 1) < ALIKE
    ]
    same_longest = [
        (a, b)
        for a, b in pairs
        if a.sizes["max_length"] == b.sizes["max_length"] and a.total_length * (1 + ALIKE) < b.total_length
    ]
    if same_longest:
        a, b = max(same_longest, key=lambda pair: pair[1].total_length)
        said.append(
            f"{b.total_length / a.total_length:.2g} times the sum of lengths at the same longest "
            f"({a.sizes['max_length']}) takes {_as_long(_between(b, a))}"
        )
    if same_sum:
        a, b = max(same_sum, key=lambda pair: pair[1].total_length)
        said.append(
            f"{b.sizes['max_length'] / a.sizes['max_length']:.2g} times the longest at the same sum "
            f"(about {a.total_length:.0f}) takes {_as_long(_between(b, a))}"
        )
    return said


def _between(above: Case, below: Case) -> Estimate:
    """The ratio of two cases' steps. They were not measured in turn, so both are taken in their own floor's time."""

    def normalised(step: Array, floor: Array, other_step: Array, other_floor: Array) -> Array:
        return (step / floor) / (other_step / other_floor)

    in_floors = estimate(
        normalised,
        above.seconds["step"],
        above.seconds[above.floor],
        below.seconds["step"],
        below.seconds[below.floor],
    )
    floors = float(np.median(above.seconds[above.floor]) / np.median(below.seconds[below.floor]))
    return Estimate(*(value * floors for value in in_floors))


def against(one: Case, other: Case) -> Estimate:
    """The ratio of two implementations' steps at one size, each measured against the floor in its own process."""
    return _between(one, other)


def claims(
    benchmarks: Mapping[str, list[Case]], side_by_side: Case, comparison: Mapping[str, Any], device: str
) -> list[Claim]:
    """The claims of the text that figures can decide, of those whose implementations were run.

    `side_by_side` has the implementations themselves as contestants, in turn in one process.
    """
    rows, at = comparison["implementations"], side_by_side.seconds
    found = []
    if "torch_tensors" in benchmarks:
        found.append(gpu_claim(benchmarks["torch_tensors"], device))
    if {"numpy_arrays", "torch_tensors"} <= at.keys():
        found.append(
            Claim(
                "A PyTorch Tensor is conceptually identical to a NumPy array.",
                _same(rows, "numpy_arrays", "torch_tensors"),
                f"Both compute the reference's curve (largest differences {_curve(rows, 'numpy_arrays')} and "
                f"{_curve(rows, 'torch_tensors')}); a step in tensors takes "
                f"{_compared(at['torch_tensors'], at['numpy_arrays'], 'a step in arrays')}.",
            )
        )
    if {"torch_autograd", "torch_tensors"} <= at.keys():
        found.append(
            Claim(
                "Automatic differentiation computes the backward pass that was written by hand.",
                _same(rows, "torch_autograd", "torch_tensors"),
                f"Its gradient is off by {rows['torch_autograd']['gradient_relative_error']:.1e} of the float64 "
                f"reference, by hand it is {rows['torch_tensors']['gradient_relative_error']:.1e}; a step takes "
                f"{_compared(at['torch_autograd'], at['torch_tensors'], 'one by hand')}.",
            )
        )
    if {"torch_function", "torch_autograd"} <= at.keys():
        found.append(
            Claim(
                "We can define our own autograd operator by its forward and its backward function.",
                _same(rows, "torch_function", "torch_autograd"),
                f"The gradient is off by {rows['torch_function']['gradient_relative_error']:.1e}; a step with our own "
                f"relu takes {_compared(at['torch_function'], at['torch_autograd'], 'one with its own')}.",
            )
        )
    if "tensorflow_graph" in benchmarks:
        found.append(_graph(benchmarks["tensorflow_graph"]))
    if {"torch_loop", "tensorflow_scan"} <= benchmarks.keys():
        found.append(_loops(benchmarks, rows))
    return found


def gpu_claim(measured: list[Case], device: str) -> Claim:
    text = "GPUs often provide speedups of 50x or greater."
    if device == "cpu":
        return Claim(text, "not answered here", "This run had no CUDA device. make gpu runs all of it on one.")
    reached, best, highest = crossover(measured, "numpy_arrays", GPU_CLAIM)
    words = [
        f"The GPU beats {whom} {f'from {since.label} on' if since else f'at no size up to {measured[-1].label}'}."
        for whom, since in (
            ("NumPy on this host", crossover(measured, "numpy_arrays")[0]),
            ("PyTorch on this host", crossover(measured, "cpu")[0]),
        )
    ]
    if reached:
        words.append(f"{GPU_CLAIM:.0f} × over NumPy is reached from {reached.label} on, at best {times(highest)}.")
    else:
        words.append(f"{GPU_CLAIM:.0f} × over NumPy is not reached up to {measured[-1].label}:")
        words.append(f"at best {times(highest)}, at {best.label}.")
    return Claim(text, "holds" if reached else "does not hold", " ".join(words))


def _graph(measured: list[Case]) -> Claim:
    counts = [(case, break_even(case)) for case in measured]
    kept = [bool(np.isfinite(count.high)) for _, count in counts]
    words = "; ".join(
        f"at {case.label} {'after ' * bool(np.isfinite(count.value))}{steps(count)}" for case, count in counts
    )
    return Claim(
        "A static graph's up-front cost is amortised as the same graph is run over and over.",
        "holds" if all(kept) else "partly" if any(kept) else "does not hold",
        f"Building, tracing and compiling it is paid back against the same lines run eagerly: {words}.",
    )


def _loops(benchmarks: Mapping[str, list[Case]], rows: Mapping[str, Any]) -> Claim:
    said = {name: loops(benchmarks[name]) for name in ("torch_loop", "tensorflow_scan")}
    words = "; ".join(f"{name}: {' and '.join(each)}" for name, each in said.items() if each)
    return Claim(
        "A loop over time can be part of the graph, or be the host language's own.",
        _same(rows, "torch_loop", "tensorflow_scan"),
        f"Both compute the same, and pay for different things. {words}.",
    )


def _same(rows: Mapping[str, Any], *names: str) -> str:
    return "does not hold" if any(rows[name]["breaches"] for name in names) else "holds"


def _curve(rows: Mapping[str, Any], name: str) -> str:
    return f"{rows[name]['loss_curve_relative_difference']:.1e}"


def _compared(one: Array, other: Array, whom: str) -> str:
    return _as_long(ratio(one, other), f" as {whom}")


def _as_long(seconds_ratio: Estimate, as_whom: str = "") -> str:
    return f"{times(seconds_ratio)} as long{as_whom}" + ", no difference" * (verdict(seconds_ratio) == "no difference")
