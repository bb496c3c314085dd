"""Write results/benchmark.csv: how long a step takes at several sizes, with all candidates interleaved."""

from pipeline import files
from pipeline.benchmark import samples
from pipeline.benchmark.benchmark import benchmark
from pipeline.benchmark.plan import BenchmarkConfig, default_plan
from pipeline.params import load_params
from pipeline.provenance import provenance
from pipeline.results import BenchmarkProvenance
from pipeline.training.resource_check import check_memory
from stages import run


def main() -> None:
    params, environment = load_params(), files.read_environment()
    check_memory(params)
    config = BenchmarkConfig(**params.benchmark.model_dump())
    plan = default_plan(params, environment)
    print(f"Timing the implementations in turns, for {config.seconds:.0f} s, or longer on a slow machine", flush=True)
    taken, meanwhile = benchmark(plan, config=config, dtype=params.dtype, environment=environment)
    where = BenchmarkProvenance(**provenance(environment, environment.device, environment.device_name), **meanwhile)
    files.write_rows(files.BENCHMARK, samples.HEADER, taken)
    where.write(files.BENCHMARK_PROVENANCE)
    measured = samples.collect(taken, where)
    for problem in params.used_problems:
        if case := measured.at(problem, params.problems[problem].sizes):
            print(*case.lines(params.names_of(problem)), sep="\n")
    if measured.doubt:
        print(f"WARNING: some ratios are not given: {measured.doubt}.")
    print(f"The benchmark ended after {len(where.processes)} processes: {where.stopped}.")


if __name__ == "__main__":
    run(main)
