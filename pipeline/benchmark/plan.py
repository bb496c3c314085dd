"""What is measured, and how thoroughly. The pipeline measures the implementations at every size of params.yaml, and at
the training's size their hand-tuned variants too. `make bench` (benchmarks/bench.py) measures more."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from pipeline.benchmark.candidates import LAUNCH_FLOOR, MATMUL, Candidate
from pipeline.environment import Environment, framework_of

if TYPE_CHECKING:
    from pipeline.params import Params

ON_THE_HOST = "torch_tensors"  # on a GPU this lesson is also measured on the host: the text claims something of both


class Size(NamedTuple):
    """A problem at given sizes (batch_size and the problem's own), and the candidates.

    Each implementation whose steps are graphs brings its lines run eagerly, eager/NAME, and what the graph costs:
    build/NAME, or of CUDA graphs capture/NAME.
    """

    problem: str
    sizes: dict[str, int]
    candidates: list[Candidate]


@dataclass(frozen=True)
class BenchmarkConfig:
    processes: int
    rounds: int
    turn_seconds: float  # the timed part of a turn, or one step where that takes longer


def default_plan(params: Params, environment: Environment) -> list[Size]:
    plan = []
    for problem in params.used_problems:
        names, section = params.names_of(problem), params.problems[problem]
        for sizes in section.cases:
            beside = tuned(names, environment) if sizes == section.sizes else []
            plan.append(Size(problem, sizes, [*candidates(names, environment), *beside]))
    return plan


def candidates(names: list[str], environment: Environment) -> list[Candidate]:
    """The implementations, the baselines, and on a GPU also PyTorch's tensors on the host's CPU."""
    frameworks = dict.fromkeys(map(framework_of, names))
    products = dict.fromkeys(
        baseline for framework in frameworks for baseline in matmul_baselines(environment, framework)
    )
    cpu = [Candidate(name, "cpu") for name in names if environment.device != "cpu" and name == ON_THE_HOST]
    return [*map(Candidate, names), *products, *launch_floors(environment, names), *cpu]


def matmul_baselines(environment: Environment, framework: str) -> list[Candidate]:
    """On a CPU every library that may be fastest; on a GPU, or in an interpreter of its own, the framework's."""
    if environment.device == "cpu" and Candidate(framework).python == Candidate("numpy").python:
        return [Candidate(name, MATMUL) for name in ("numpy", "torch") if find_spec(name)]
    return [Candidate(framework, MATMUL)]


def launch_floors(environment: Environment, names: list[str]) -> list[Candidate]:
    """Of the implementations whose steps are captured, where the nodes of a CUDA graph can be counted."""
    captured = [name for name in names if framework_of(name) == "torch" and environment.device != "cpu"]
    return [Candidate(name, LAUNCH_FLOOR) for name in captured if find_spec("cuda")]


def tuned(names: list[str], environment: Environment) -> list[Candidate]:
    """The hand-tuned variants; of PyTorch on a CPU alone: on a GPU they would run eagerly beside captured lessons."""
    on_cpu = environment.device == "cpu"
    return [
        Candidate(name, "tuned")
        for name in names
        if find_spec(f"pipeline.benchmark.tuned.{name}") and (on_cpu or framework_of(name) != "torch")
    ]
