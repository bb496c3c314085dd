"""results/NAME/benchmark.csv: how long a step takes, over a range of sizes, beside the floor."""

from pipeline import records
from pipeline.benchmark import benchmark
from pipeline.environment import enter_interpreter, framework_of
from pipeline.findings import cases, times
from pipeline.params import load_params
from pipeline.statistics import spread
from pipeline.timing import BUSY, other_processes
from stages import run


def main(name: str) -> None:
    enter_interpreter(framework_of(name))
    params, environment = load_params(), records.read_environment()
    problem = params.problem_of(name)
    with other_processes() as busy:
        samples = list(
            benchmark(
                name,
                problem,
                params.benchmark.of(problem),
                seconds=params.benchmark.seconds,
                dtype=params.dtype,
                environment=environment,
            )
        )
    records.write_benchmark(name, environment, samples, busy[0])
    for case in cases(records.read_benchmark(name)):
        microseconds = 1e6 * spread(case.seconds["step"]).median
        print(f"{name}: {case.label}: {microseconds:.0f} µs a step, {times(case.multiple)} the floor")
    if busy[0] > BUSY:
        print(f"WARNING: other processes took {busy[0]:.1f} CPUs meanwhile. Do not rely on these times and ratios.")


if __name__ == "__main__":
    run(main)
