"""What the pipeline's benchmark measures: the implementations at every size of params.yaml, and at the training's size
their hand-tuned variants too. `make bench` (benchmarks/bench.py) measures more."""

from pathlib import Path

from pipeline.benchmark.benchmark import Size
from pipeline.benchmark.candidates import launch_floors, lower_bounds
from pipeline.environment import Environment, framework_of
from pipeline.params import Params

ON_THE_HOST = "torch_tensors"  # the lesson that is measured on a GPU and on its host: of the text's claim on GPUs


def default_plan(params: Params, environment: Environment) -> list[Size]:
    plan = []
    for problem in dict.fromkeys(params.implementations.values()):
        names = [name for name, each in params.implementations.items() if each == problem]
        for case in params.benchmark.of(problem):
            sizes = case.model_dump()
            beside = tuned(names, environment) if sizes == params.sizes(problem) else []
            plan.append(Size(problem, sizes, [*candidates(names, environment), *beside]))
    return plan


def candidates(names: list[str], environment: Environment) -> list[str]:
    """The implementations, the baselines, and on a GPU also PyTorch's tensors on the host's CPU."""
    frameworks = dict.fromkeys(framework_of(name) for name in names)
    bounds = dict.fromkeys(bound for each in frameworks for bound in lower_bounds(environment, each))
    cpu = [f"cpu/{name}" for name in names if environment.device != "cpu" and name == ON_THE_HOST]
    return [*names, *bounds, *launch_floors(environment, names), *cpu]


def tuned(names: list[str], environment: Environment) -> list[str]:
    """The hand-tuned variants; of PyTorch on a CPU alone: on a GPU they would run eagerly beside captured lessons."""
    return [
        f"tuned/{name}"
        for name in names
        if Path(f"pipeline/benchmark/tuned/{name}.py").is_file()
        and (environment.device == "cpu" or framework_of(name) != "torch")
    ]
