"""The plan of a benchmark: which candidates are measured, and how precisely. The pipeline measures the implementations
at every size of params.yaml, and at the training's size also the other candidate of each headline. `make bench`
(benchmarks/bench.py) measures more."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

from pipeline.benchmark.candidates import LAUNCH_FLOOR, MATMUL, Candidate
from pipeline.benchmark.headlines import HEADLINES
from pipeline.contract import load_problem
from pipeline.environment import Environment, framework_of
from pipeline.runtimes.xla import xla_pays

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.params import Params

ON_THE_HOST = "torch_tensors"  # on a GPU this lesson is also measured on the host's CPU, because the text compares both


class Pair(NamedTuple):
    """Two candidates whose ratio should be known to ± `within`: 0.05 is 5 %."""

    above: Candidate
    below: Candidate
    within: float


class Size(NamedTuple):
    """A problem at given sizes (batch_size and the sizes of the problem), and the candidates. A benchmark goes on until
    the ratio of each of `pairs` is precise enough. For each implementation whose steps are graphs, its lines run
    eagerly (eager/NAME) and the cost of the graph (build/NAME, or capture/NAME for CUDA graphs) are measured too.
    """

    problem: str
    sizes: dict[str, int]
    candidates: list[Candidate]
    pairs: list[Pair] = []  # noqa: RUF012 (never changed)


@dataclass(frozen=True)
class BenchmarkConfig:
    processes: int  # for each network; fewer for a network without a headline if there is no time
    rounds: int  # in a process, at most
    turn_seconds: float  # of the timed part of a turn, which is at least one step
    seconds: float  # after which no process is started beyond the least number
    process_seconds: float = 2.5  # of all rounds of a process, about: slow candidates take fewer rounds


def default_plan(params: Params, environment: Environment) -> list[Size]:
    plan = []
    for problem in params.used_problems:
        names, section = params.names_of(problem), params.problems[problem]
        for sizes in section.cases:
            chosen, pairs = candidates(names, environment), []
            if sizes == section.sizes:
                chosen += variants(problem, sizes, names, environment)
                pairs = headline_pairs(chosen, environment)
            plan.append(Size(problem, sizes, chosen, pairs))
    return plan


def headline_pairs(chosen: list[Candidate], environment: Environment) -> list[Pair]:
    """The headlines whose candidates are measured and interleaved, in one interpreter."""
    return [
        Pair(above, below, within)
        for _, above, below, within, on_gpu in HEADLINES
        if above in chosen
        and (below in chosen or below.kind == "eager")
        and above.python == below.python
        and (environment.device != "cpu" or not on_gpu)
    ]


def candidates(names: list[str], environment: Environment) -> list[Candidate]:
    """The implementations, the baselines, and on a GPU also PyTorch's tensors on the host's CPU."""
    frameworks = dict.fromkeys(map(framework_of, names))
    products = dict.fromkeys(
        baseline for framework in frameworks for baseline in matmul_baselines(environment, framework)
    )
    cpu = [Candidate(name, "cpu") for name in names if environment.device != "cpu" and name == ON_THE_HOST]
    return [*map(Candidate, names), *products, *launch_floors(environment, names), *cpu]


def variants(problem: str, sizes: dict[str, int], names: list[str], environment: Environment) -> Iterable[Candidate]:
    """The implementations with one idea left out: the other candidate of their headline."""
    module, sized = load_problem(problem), SimpleNamespace(**sizes)
    weights = sum(prod(shape) for shape in module.weight_shapes(sized).values())
    for candidate in (headline.below for headline in HEADLINES if headline.below.name in names):
        if candidate.kind == "padded":
            yield candidate
        if candidate.option == "no_xla" and xla_pays(weights, on_gpu=environment.device != "cpu"):
            yield candidate


def matmul_baselines(environment: Environment, framework: str) -> list[Candidate]:
    """On a CPU every library that may be the fastest; on a GPU, or with separate interpreters, the framework's own."""
    if environment.device == "cpu" and Candidate(framework).python == Candidate("numpy").python:
        return [Candidate(name, MATMUL) for name in ("numpy", "torch", "tensorflow") if find_spec(name)]
    return [Candidate(framework, MATMUL)]


def launch_floors(environment: Environment, names: list[str]) -> list[Candidate]:
    """The launch floors of implementations whose steps are captured, if the nodes of a CUDA graph can be counted."""
    captured = [name for name in names if framework_of(name) == "torch" and environment.device != "cpu"]
    return [Candidate(name, LAUNCH_FLOOR) for name in captured if find_spec("cuda")]


def tuned(names: list[str], environment: Environment) -> list[Candidate]:
    """The hand-tuned variants. Those of PyTorch only on a CPU: on a GPU they would run eagerly beside captured
    lessons."""
    on_cpu = environment.device == "cpu"
    return [
        Candidate(name, "tuned")
        for name in names
        if find_spec(f"pipeline.benchmark.tuned.{name}") and (on_cpu or framework_of(name) != "torch")
    ]
