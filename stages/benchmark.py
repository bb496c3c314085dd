"""results/benchmark.csv: how long a step takes, over a range of sizes, all candidates interleaved."""

from pipeline import files
from pipeline.benchmark import samples
from pipeline.benchmark.benchmark import Effort, benchmark
from pipeline.benchmark.plan import default_plan
from pipeline.params import load_params
from pipeline.provenance import provenance
from pipeline.training.resource_check import check_memory
from stages import run


def main() -> None:
    params, environment = load_params(), files.read_environment()
    check_memory(params)
    effort = Effort(params.benchmark.processes, params.benchmark.rounds, params.benchmark.turn_seconds)
    plan = default_plan(params, environment)
    found, meanwhile = benchmark(plan, effort=effort, dtype=params.dtype, environment=environment, on_process=print)
    where = provenance(environment, environment.device, environment.device_name)
    files.write_rows(files.BENCHMARK, samples.HEADER, found)
    files.write_json(files.BENCHMARK_PROVENANCE, where | meanwhile)
    measured = samples.read(files.read_samples(), files.read_json(files.BENCHMARK_PROVENANCE))
    for case in measured.cases:
        for name in (each for each in params.implementations if each in case.seconds):
            multiple = f", {case.multiple(name)} of the lower bound" if case.multiple(name) else ""
            print(f"{case.label}: {name}: {1e6 * case.median(name):.0f} µs a step{multiple}")
    if measured.doubt:
        print(f"WARNING: how many times the lower bound a step takes: {measured.doubt}.")


if __name__ == "__main__":
    run(main)
