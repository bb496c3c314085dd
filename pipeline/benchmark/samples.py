"""The table of a benchmark's samples, and the times and ratios at each size that follow from it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import numpy as np

from pipeline import files
from pipeline.benchmark.candidates import LAUNCH_FLOOR, MATMUL, Candidate
from pipeline.benchmark.intervals import Estimate, ratio, spread
from pipeline.benchmark.monitor import disturbed_gpu, merged
from pipeline.contract import Array, load_problem
from pipeline.errors import UserError
from pipeline.results import BenchmarkProvenance, Conditions


class Sample(NamedTuple):
    """A turn: `steps` steps of `candidate` took `seconds`, `replays` of them from a CUDA graph.

    `size` is format_size's text, `position` the turn's place in its round. A disturbed turn is followed by the turn
    that repeats it, in the same round. `switches` are the involuntary context switches, `stolen` the seconds of steal
    time. For build/NAME, once in a process, `seconds` is the cost of a graph before its second step. For capture/NAME,
    `steps` CUDA graphs were captured in `seconds`.
    """

    problem: str
    size: str
    candidate: Candidate
    process: int
    round: int
    position: int
    steps: int
    seconds: float
    replays: int
    switches: int
    stolen: float

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Self:
        numbers: dict[str, Any] = {
            key: int(row[key]) for key in ("process", "round", "position", "steps", "replays", "switches")
        }
        numbers |= {key: float(row[key]) for key in ("seconds", "stolen")}
        return cls(row["problem"], row["size"], Candidate.parse(row["candidate"]), **numbers)


HEADER = ",".join(Sample._fields)
BUSY = 0.1  # the share of the CPUs that others may take in a valid measurement


def format_size(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{key}={value}" for key, value in sizes.items())


def parse_size(text: str) -> dict[str, int]:
    return {key: int(value) for key, value in (part.split("=") for part in text.split())}


def network(problem: str, sizes: Mapping[str, int]) -> tuple[Any, ...]:
    """The batch size and the weights' shapes. Sizes that agree in these are interleaved, so that the others, such as
    the lengths of sequences, can be compared."""
    shapes = load_problem(problem).weight_shapes(SimpleNamespace(**sizes))
    return problem, sizes["batch_size"], *shapes.items()


class Case(NamedTuple):
    """The samples at one size. `seconds` has, for each candidate and process, the seconds a step of each round
    (rounds,). `disturbed` has the reason for each process that was disturbed, whose times are invalid. They are left
    out of `seconds` where at least two processes were not disturbed. `replayed` are the candidates whose steps were
    executed from a CUDA graph.
    """

    problem: str
    sizes: dict[str, int]
    seconds: dict[Candidate, dict[int, Array]]
    disturbed: Mapping[int, str]
    on_gpu: bool
    replayed: frozenset[Candidate] = frozenset()

    @property
    def label(self) -> str:
        """64 × 1000 × 100 × 10: batch, inputs, hidden, outputs; and after them each min_X and max_X as a range."""
        ranges = [key.removeprefix("min_") for key in self.sizes if key.startswith("min_")]
        ends = {f"{end}_{name}" for name in ranges for end in ("min", "max")}
        text = " × ".join(str(value) for key, value in self.sizes.items() if key not in ends)
        return text + "".join(f", {name}s {self.sizes[f'min_{name}']} … {self.sizes[f'max_{name}']}" for name in ranges)

    @property
    def operations(self) -> float:
        """Floating-point operations in the matrix products of a step."""
        return load_problem(self.problem).operations(SimpleNamespace(**self.sizes))

    @property
    def sequence_total(self) -> float | None:
        """The expected sum of the lengths in a batch, where there are sequences."""
        total = getattr(load_problem(self.problem), "sequence_total", None)
        return total(SimpleNamespace(**self.sizes)) if total else None

    def median(self, candidate: Candidate) -> float:
        return spread(list(self.seconds[candidate].values())).median

    def matmul(self, candidate: Candidate) -> Candidate | None:
        """The candidate for the matrix products alone. On a CPU it is the fastest library that was measured with the
        candidate. On a GPU it is the framework's own, at the candidate's precision; None for a candidate that is
        measured on the host's CPU."""
        shared = [other for other in self.seconds if other.kind == MATMUL and self._shared(other, candidate)]
        if not self.on_gpu:
            return min(shared, key=self.median, default=None)
        framework_products = Candidate(candidate.framework, MATMUL, "tf32" * (candidate.option == "tf32"))
        return framework_products if framework_products in shared and candidate.kind != "cpu" else None

    def launch_floor(self, name: str) -> Candidate | None:
        """For an implementation that replays CUDA graphs, the candidate of as many empty kernels as its step has
        nodes."""
        floor = Candidate(name, LAUNCH_FLOOR)
        return floor if floor in self.seconds else None

    def in_python(self, name: str) -> Candidate:
        """The candidate in which an implementation's Python ran: the eager one if the steps were replays."""
        lesson, eager = Candidate(name), Candidate(name, "eager")
        return eager if lesson in self.replayed and eager in self.seconds else lesson

    def lines(self, names: Iterable[str]) -> Iterator[str]:
        """A row for each measured implementation: how long a step takes."""
        for lesson in map(Candidate, names):
            if lesson in self.seconds:
                multiple = self.multiple(lesson)
                more = f"  {multiple} the matrix products alone" if multiple else ""
                yield f"{lesson.name:18}{1e6 * self.median(lesson):6.0f} µs a step{more}"

    @property
    def doubt(self) -> str:
        """Why a ratio is not given; empty where all are given."""
        processes = {process for processes in self.seconds.values() for process in processes}
        reasons = [self.disturbed[process] for process in sorted(processes & self.disturbed.keys())]
        return f"cannot tell: {reasons[0]}" if reasons else ""

    def ratio(self, above: Candidate, below: Candidate) -> Estimate | None:
        """The ratio of two candidates' times, or None where they were not interleaved or their processes were
        disturbed."""
        return ratio_between(self, above, self, below)

    def multiple(self, candidate: Candidate) -> Estimate | None:
        """A step's time as a multiple of the matrix products alone (the metric times_matrix_products in MLflow)."""
        products = self.matmul(candidate) if candidate in self.seconds else None
        return self.ratio(candidate, products) if products else None

    def _shared(self, one: Candidate, other: Candidate) -> list[int]:
        return sorted(self.seconds[one].keys() & self.seconds[other].keys())


class Benchmark(NamedTuple):
    """All cases of a benchmark. `disturbed` has the reason for each process that was disturbed. Of all `turns`,
    `retaken` were repeated."""

    cases: list[Case]
    provenance: BenchmarkProvenance
    disturbed: Mapping[int, str] = {}
    turns: int = 0
    retaken: int = 0

    @property
    def doubt(self) -> str:
        """Why some ratio is not given; empty where all are given."""
        return next((case.doubt for case in self.cases if case.doubt), "")

    @property
    def gpu(self) -> dict[str, Any] | None:
        """The summary of the GPU in its worst process."""
        return merged([process.gpu for process in self.provenance.processes])

    @property
    def measured(self) -> list[BenchmarkProvenance]:
        """Its provenance, if anything was measured."""
        return [self.provenance] if self.cases else []

    def of(self, problem: str) -> list[Case]:
        return [case for case in self.cases if case.problem == problem]

    def at(self, problem: str, sizes: Mapping[str, int]) -> Case | None:
        """The case at these sizes, if it was measured."""
        return next((case for case in self.of(problem) if case.sizes == dict(sizes)), None)


def ratio_between(one: Case, above: Candidate, other: Case, below: Candidate) -> Estimate | None:
    """The ratio of two candidates at two sizes that were interleaved; None as in Case.ratio."""
    if above not in one.seconds or below not in other.seconds:
        return None
    shared = sorted(one.seconds[above].keys() & other.seconds[below].keys())
    if not shared or one.disturbed.keys() & shared:
        return None
    return ratio([one.seconds[above][number] for number in shared], [other.seconds[below][number] for number in shared])


def disturbance(process: Conditions, *, threads: int, cpus: int) -> str:
    """Why the times of a process are invalid; empty if they are valid. Others may use CPUs that the process leaves
    idle."""
    others, stolen = process.cpus_of_other_processes, process.stolen_cpus
    if others - max(0, cpus - threads) > BUSY * threads:
        return f"other processes took {others:.1f} of {cpus} CPUs"
    if stolen > BUSY * cpus:
        return f"the host of this virtual machine took {stolen:.1f} of {cpus} CPUs (steal time)"
    return disturbed_gpu(process.gpu)


def collect(samples: Iterable[Sample], provenance: BenchmarkProvenance) -> Benchmark:
    """The benchmark from its samples, which are in the order in which they were taken."""
    disturbed = {
        number: reason
        for number, process in enumerate(provenance.processes)
        if (reason := disturbance(process, threads=provenance.threads, cpus=provenance.cpus))
    }
    samples = list(samples)
    rounds = len({sample[:5] for sample in samples})
    cases = cases_of(samples, disturbed, on_gpu=provenance.device != "cpu")
    return Benchmark(cases, provenance, disturbed, turns=len(samples), retaken=len(samples) - rounds)


def cases_of(samples: Iterable[Sample], disturbed: Mapping[int, str], *, on_gpu: bool) -> list[Case]:
    paces: dict[tuple[str, str], Any] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    replayed: dict[tuple[str, str], set[Candidate]] = defaultdict(set)
    for sample in samples:
        head = (sample.problem, sample.size)
        # The last turn of a round counts: the turns before it were disturbed.
        paces[head][sample.candidate][sample.process][sample.round] = sample.seconds / sample.steps
        if sample.replays:
            replayed[head].add(sample.candidate)
    cases = []
    for (problem, size), candidates in paces.items():
        seconds = {}
        for candidate, processes in candidates.items():
            quiet = processes.keys() - disturbed.keys()
            kept = quiet if len(quiet) > 1 else processes.keys()
            seconds[candidate] = {number: np.array([*processes[number].values()]) for number in sorted(kept)}
        cases.append(Case(problem, parse_size(size), seconds, disturbed, on_gpu, frozenset(replayed[problem, size])))
    return cases


def read(table: Path = files.BENCHMARK, provenance: Path = files.BENCHMARK_PROVENANCE) -> Benchmark:
    """The benchmark from its two files. If both are empty, the benchmark was left out. Raises UserError when one is
    missing or damaged."""
    if all(path.exists() and not path.stat().st_size for path in (table, provenance)):
        return _left_out()
    rows, facts = files.read_samples(table), BenchmarkProvenance.read(provenance)
    try:
        return collect(map(Sample.from_row, rows), facts)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        remedy = "`dvc repro benchmark`" if table == files.BENCHMARK else "`make bench`"
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{table} is damaged ({reason}). Delete it, and run {remedy} if you need it.") from None


def _left_out() -> Benchmark:
    """A benchmark without samples, on the machine of environment.json. It has no time, host and commit."""
    facts = {key: value for key, value in vars(files.read_environment()).items() if key != "driver"}
    facts |= dict.fromkeys(("measured_at", "measured_on", "run_began", "commit"), "")
    facts |= {"variables": {}, "cpus": 0, "processes": []}
    reason = (
        "it was left out (make sweep SHARE=… does, since nothing can be timed beside others; dvc repro measures it)"
    )
    return Benchmark([], BenchmarkProvenance(**facts, stopped=reason))
