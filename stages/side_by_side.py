"""results/side_by_side/benchmark.csv: the two-layer network in NumPy and PyTorch, step against step in one process."""

from pipeline import records
from pipeline.benchmark import side_by_side
from pipeline.environment import enter_interpreter, framework_of
from pipeline.params import TwoLayerCase, load_params
from pipeline.timing import other_processes
from stages import run

TOGETHER = ("numpy", "torch")  # every interpreter that has the second has the first


def main() -> None:
    enter_interpreter("torch")
    params, environment = load_params(), records.read_environment()
    names = [name for name, problem in params.implementations.items() if problem == "two_layer"]
    with other_processes() as busy:
        samples = list(
            side_by_side(
                [name for name in names if framework_of(name) in TOGETHER],
                "two_layer",
                TwoLayerCase(**params.sizes("two_layer")),
                seconds=params.benchmark.seconds,
                dtype=params.dtype,
                environment=environment,
            )
        )
    records.write_benchmark("side_by_side", environment, samples, busy[0])


if __name__ == "__main__":
    run(main)
