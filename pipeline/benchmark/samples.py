"""The table of a benchmark's samples: its columns, and the one reader of them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pipeline.benchmark.intervals import Estimate, ratio, spread
from pipeline.benchmark.monitor import disturbance
from pipeline.clock import BUSY
from pipeline.contract import Array
from pipeline.environment import framework_of

LOWER_BOUND, LAUNCH_FLOOR = "lower_bound/", "launch_floor/"
BASELINES = (LOWER_BOUND, LAUNCH_FLOOR)  # what no step can be faster than; not steps themselves
ONCE = ("build/", "capture/")  # measured once in a process
SIZES = ("batch_size", "inputs", "hidden", "outputs", "min_length", "max_length")


class Sample(NamedTuple):
    """A turn: `steps` steps of `candidate` took `seconds`, `replays` of them from a CUDA graph.

    `position` is the turn's place in its round. For the candidate build/NAME it is what a graph costs before its second
    step, once in a process; for capture/NAME `steps` CUDA graphs were captured in that time. min_length and max_length
    are 0, and total_length, the mean sum of the lengths in a batch, is the batch size, where there are no sequences.
    """

    problem: str
    batch_size: int
    inputs: int
    hidden: int
    outputs: int
    min_length: int
    max_length: int
    total_length: float
    candidate: str
    process: int
    round: int
    position: int
    steps: int
    seconds: float
    replays: int


HEADER = ",".join(Sample._fields)


def parts_of(candidate: str) -> tuple[str, str, str]:
    """Its kind, which is empty for an implementation, the name that says its framework, and its option."""
    kind, _, rest = candidate.rpartition("/")
    name, _, option = rest.partition("+")
    return kind, name, option


def framework_of_candidate(candidate: str) -> str:
    return framework_of(parts_of(candidate)[1])


class Case(NamedTuple):
    """A size. `seconds` has, for each candidate and process, the seconds a step of each round (rounds,).

    `trusted` is whether the machine was quiet enough for a ratio to mean something.
    """

    problem: str
    sizes: dict[str, int]
    total_length: float  # of the sequences in a batch; of two_layer the batch size
    seconds: dict[str, dict[int, Array]]
    trusted: bool
    on_gpu: bool
    replayed: frozenset[str] = frozenset()  # the candidates whose steps were executed from a CUDA graph

    @property
    def label(self) -> str:
        """64 × 1000 × 100 × 10, and the lengths where there are some: batch, inputs, hidden, outputs."""
        text = " × ".join(str(self.sizes[key]) for key in SIZES[:4])
        return text + (f", lengths {self.sizes['min_length']} … {self.sizes['max_length']}" if self.has_lengths else "")

    @property
    def has_lengths(self) -> bool:
        return self.sizes["max_length"] > 0

    @property
    def operations(self) -> int:
        """Floating-point operations in the matrix products of a two-layer step: multiplications and additions."""
        batch, inputs, hidden, outputs = (self.sizes[key] for key in SIZES[:4])
        return 2 * batch * hidden * (2 * inputs + 3 * outputs)

    def median(self, candidate: str) -> float:
        return spread(list(self.seconds[candidate].values())).median

    def lower_bound(self, candidate: str) -> str | None:
        """On a CPU the fastest of the libraries that were measured with the candidate. On a GPU the framework's own, at
        the candidate's own precision; of a step on the host beside it, none."""
        shared = [name for name in self.seconds if name.startswith(LOWER_BOUND) and self._shared(name, candidate)]
        if not self.on_gpu:
            return min(shared, key=self.median, default=None)
        kind, name, option = parts_of(candidate)
        own = f"{LOWER_BOUND}{framework_of(name)}{'+tf32' * (option == 'tf32')}"
        return own if own in shared and kind != "cpu" else None

    def launch_floor(self, name: str) -> str | None:
        """Of an implementation that replays CUDA graphs: as many empty kernels as its step has nodes."""
        floor = f"{LAUNCH_FLOOR}{name}"
        return floor if floor in self.seconds else None

    def in_python(self, name: str) -> str:
        """The candidate in which an implementation's Python ran: where its steps were replays, the eager one."""
        eager = f"eager/{name}"
        return eager if name in self.replayed and eager in self.seconds else name

    def ratio(self, above: str, below: str) -> Estimate | None:
        """Of two candidates' times, or None where they were not interleaved, or the machine was too busy."""
        return ratio_between(self, above, self, below)

    def multiple(self, candidate: str) -> Estimate | None:
        """How many times the lower bound a step takes."""
        bound = self.lower_bound(candidate)
        return self.ratio(candidate, bound) if bound else None

    def _shared(self, one: str, other: str) -> list[int]:
        return sorted(self.seconds[one].keys() & self.seconds[other].keys())


class Benchmark(NamedTuple):
    cases: list[Case]
    provenance: dict[str, Any]

    @property
    def doubt(self) -> str:
        """Why no ratio is given, or nothing."""
        others, cpus = self.provenance["cpus_of_other_processes"], self.provenance["cpus"]
        if others > BUSY:
            return f"cannot tell: other processes took {others:.1f} of {cpus} CPUs"
        why = disturbance(self.provenance.get("gpu"))
        return f"cannot tell: {why}" if why else ""

    def of(self, problem: str) -> list[Case]:
        return [case for case in self.cases if case.problem == problem]

    def at(self, problem: str, sizes: Mapping[str, int]) -> Case | None:
        """The case of these sizes, if it was measured."""
        wanted = dict.fromkeys(SIZES, 0) | dict(sizes)
        return next((case for case in self.of(problem) if case.sizes == wanted), None)


def ratio_between(one: Case, above: str, other: Case, below: str) -> Estimate | None:
    """Of candidates in two cases that were interleaved with each other; None as in Case.ratio."""
    if above not in one.seconds or below not in other.seconds or not one.trusted:
        return None
    shared = sorted(one.seconds[above].keys() & other.seconds[below].keys())
    if not shared:
        return None
    return ratio([one.seconds[above][each] for each in shared], [other.seconds[below][each] for each in shared])


def read(rows: Iterable[Mapping[str, str]], provenance: Mapping[str, Any]) -> Benchmark:
    """A benchmark from the rows of its table."""
    found: dict[tuple, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    replayed: dict[tuple, set[str]] = defaultdict(set)
    for row in rows:
        head = (row["problem"], *(int(row[key]) for key in SIZES), float(row["total_length"]))
        pace = float(row["seconds"]) / int(row["steps"])
        found[head][row["candidate"]][int(row["process"])].append(pace)  # rounds are in order in the table
        if int(row["replays"]):
            replayed[head].add(row["candidate"])
    benchmark = Benchmark([], dict(provenance))
    trusted, on_gpu = not benchmark.doubt, provenance["device"] != "cpu"
    for head, candidates in found.items():
        problem, *sizes, total_length = head
        seconds = {
            name: {process: np.array(paces) for process, paces in processes.items()}
            for name, processes in candidates.items()
        }
        at: dict[str, int] = dict(zip(SIZES, sizes, strict=True))
        benchmark.cases.append(Case(problem, at, total_length, seconds, trusted, on_gpu, frozenset(replayed[head])))
    return benchmark
