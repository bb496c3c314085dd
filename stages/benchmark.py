"""results/benchmark.csv: how long a step takes, over a range of sizes, all candidates interleaved."""

from pipeline import files
from pipeline.benchmark import samples
from pipeline.benchmark.benchmark import benchmark
from pipeline.benchmark.candidates import Candidate
from pipeline.benchmark.plan import BenchmarkConfig, default_plan
from pipeline.params import load_params
from pipeline.provenance import provenance
from pipeline.results import BenchmarkProvenance
from pipeline.training.resource_check import check_memory
from stages import run


def main() -> None:
    params, environment = load_params(), files.read_environment()
    check_memory(params)
    config = BenchmarkConfig(params.benchmark.processes, params.benchmark.rounds, params.benchmark.turn_seconds)
    plan = default_plan(params, environment)
    taken, meanwhile = benchmark(plan, config=config, dtype=params.dtype, environment=environment, on_process=print)
    where = BenchmarkProvenance(**provenance(environment, environment.device, environment.device_name), **meanwhile)
    files.write_rows(files.BENCHMARK, samples.HEADER, taken)
    where.write(files.BENCHMARK_PROVENANCE)
    measured = samples.collect(taken, where)
    for case in measured.cases:
        for lesson in (candidate for candidate in map(Candidate, params.implementations) if candidate in case.seconds):
            multiple = f", {case.multiple(lesson)} the matrix products alone" if case.multiple(lesson) else ""
            print(f"{case.label}: {lesson}: {1e6 * case.median(lesson):.0f} µs a step{multiple}")
    if measured.doubt:
        print(f"WARNING: how many times the matrix products alone a step takes: {measured.doubt}.")


if __name__ == "__main__":
    run(main)
