"""What the pipeline's benchmark measures: the implementations at every size of params.yaml, and at the training's size
their hand-tuned variants too. `make bench` (benchmarks/bench.py) measures more."""

from pathlib import Path

from pipeline.environment import Environment, framework_of
from pipeline.measuring.benchmark import Size
from pipeline.measuring.candidates import lower_bounds
from pipeline.params import Params


def default_plan(params: Params, environment: Environment) -> list[Size]:
    plan = []
    for problem in dict.fromkeys(params.implementations.values()):
        names = [name for name, each in params.implementations.items() if each == problem]
        for case in params.benchmark.of(problem):
            sizes = case.model_dump()
            beside = tuned(names) if sizes == params.sizes(problem) else []
            plan.append(Size(problem, sizes, [*candidates(names, environment), *beside]))
    return plan


def candidates(names: list[str], environment: Environment) -> list[str]:
    """The implementations, the lower bounds, and on a GPU also PyTorch on the host's CPU."""
    frameworks = dict.fromkeys(framework_of(name) for name in names)
    bounds = dict.fromkeys(bound for each in frameworks for bound in lower_bounds(environment, each))
    on_gpu = environment.device != "cpu"
    cpu = [f"cpu/{name}" for name in names if on_gpu and framework_of(name) == "torch"]
    return [*names, *bounds, *cpu]


def tuned(names: list[str]) -> list[str]:
    return [f"tuned/{name}" for name in names if Path(f"benchmarks/tuned/{name}.py").is_file()]
