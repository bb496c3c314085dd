"""`make bench`: every lesson beside the matrix products alone, its hand-tuned variant, and programs that a user might
write instead. All candidates of a size are interleaved (pipeline/benchmark/benchmark.py). The samples go to
results/bench.csv, which the report also reads, and with --output to a folder of docs/results.

    python -m benchmarks.bench --at small --processes 3
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import heading, keep, mark, problem_of
from pipeline import files
from pipeline.benchmark.benchmark import benchmark
from pipeline.benchmark.candidates import MATMUL, Candidate
from pipeline.benchmark.intervals import ratio
from pipeline.benchmark.plan import BenchmarkConfig, Pair, Size, matmul_baselines, tuned
from pipeline.benchmark.samples import Benchmark, Case, Sample, collect, disturbance
from pipeline.contract import Array
from pipeline.environment import Environment, resolve
from pipeline.errors import shown_to_the_user
from pipeline.params import load_params
from pipeline.provenance import provenance
from pipeline.results import BenchmarkProvenance
from pipeline.text import columns

CONFIG = BenchmarkConfig(processes=4, rounds=16, turn_seconds=0.008, seconds=400, process_seconds=9)
ALLOCATOR_PROCESSES = 6
ARRAYS = ["numpy_arrays", "torch_tensors", "torch_autograd", "torch_function", "tensorflow_graph"]
LOOPS = ["torch_loop", "tensorflow_scan"]
SEQUENCES = {"batch_size": 256, "inputs": 64, "hidden": 128, "outputs": 10}
SIZES = {
    "small": (ARRAYS, {"batch_size": 64, "inputs": 1000, "hidden": 100, "outputs": 10}),
    "large": (ARRAYS, {"batch_size": 512, "inputs": 2048, "hidden": 2048, "outputs": 256}),
    "lengths": (LOOPS, SEQUENCES | {"min_length": 1, "max_length": 32}),
    "full": (LOOPS, SEQUENCES | {"min_length": 32, "max_length": 32}),  # no padding: both loops have the same work
}
MODULES = [f"peers/torch_module+{option}" for option in ("plain", "foreach", "fused")]
JAX = "peers/numpy_jax"  # with `make bench PEERS=1`
PEERS = {
    "small": [*MODULES, "peers/tensorflow_keras+train_on_batch", "peers/tensorflow_keras+fit", JAX],
    "lengths": ["peers/torch_examples", "peers/tensorflow_examples"],
}
PEERS["large"] = PEERS["small"]
WITHIN_TORCH, WITHIN = 0.03, 0.05  # the half width that an interval should have
BEST_MODULE = "the best torch_module"
FASTEST = "the fastest lesson"
# The same lines without the allocator's setting: a separate process, which removes the setting before a runtime starts.
BY_DEFAULT = (
    "from pipeline import runtimes; runtimes.keep_freed_memory = lambda: None;"
    "from pipeline.benchmark.process import main; main()"
)


class Goal(NamedTuple):
    """A step of `lesson` should take at most `most` times as long as a step of `beside`."""

    size: str
    lesson: str
    beside: str
    most: float | None = None  # None: reported, not judged


TUNED = {"small": (1.10, 1.35, 1.10, 1.10, 1.10), "large": (1.10, 1.10, 1.10, 1.10, 1.10), "lengths": (1.10, 1.10)}
GOALS = [
    *(
        Goal(size, name, f"tuned/{name}", most)
        for size, goals in TUNED.items()
        for name, most in zip(SIZES[size][0], goals, strict=True)
    ),
    Goal("small", "torch_autograd", BEST_MODULE, 0.85),
    Goal("large", "torch_autograd", BEST_MODULE, 1.05),
    Goal("small", "tensorflow_graph", "peers/tensorflow_keras+train_on_batch", 0.35),
    Goal("small", "tensorflow_graph", "peers/tensorflow_keras+fit", 0.17),
    Goal("large", "tensorflow_graph", "peers/tensorflow_keras+train_on_batch"),
    Goal("large", "tensorflow_graph", "peers/tensorflow_keras+fit"),
    Goal("small", FASTEST, JAX, 0.80),
    Goal("large", FASTEST, JAX),
    Goal("lengths", "torch_loop", "peers/torch_examples", 0.04),
    Goal("lengths", "tensorflow_scan", "peers/tensorflow_examples", 0.04),
    Goal("lengths", "tensorflow_scan", "torch_loop"),
    Goal("full", "tensorflow_scan", "torch_loop", 1.10),
    Goal("small", "torch_autograd", "torch_autograd+nondeterministic"),
]
WITHOUT = "numpy_arrays without the allocator's setting"
ALLOCATOR_GOALS: dict[str, float | None] = {"small": 0.65, "large": None}
Pairs = list[tuple[list[Sample], list[Sample]]]  # with the setting, without it: only undisturbed processes


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description="The lessons' speed on the CPU.")
    parser.add_argument("--at", nargs="+", choices=SIZES, default=list(SIZES), metavar="SIZE", help=", ".join(SIZES))
    parser.add_argument("--processes", type=int, default=CONFIG.processes, metavar="N", help="of each size, at least")
    parser.add_argument("--rounds", type=int, default=CONFIG.rounds, metavar="N", help="in each process, at most")
    parser.add_argument("--seconds", type=float, default=CONFIG.seconds, help="after which it stops")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="also write samples and machine to this folder")
    arguments = parser.parse_args()
    config = replace(CONFIG, processes=arguments.processes, rounds=arguments.rounds, seconds=arguments.seconds)
    resolved = resolve(load_params())
    environment = replace(resolved, device="cpu", device_name=resolved.cpu_name, driver=None)
    sizes = plan(arguments.at, environment)
    taken, meanwhile = benchmark(
        sizes, config=config, dtype="float32", environment=environment, on_process=print_progress
    )
    allocator = {key: list(_allocator(key, environment)) for key in ALLOCATOR_GOALS if key in arguments.at}
    where = BenchmarkProvenance(**provenance(environment, "cpu", environment.cpu_name), **meanwhile)
    keep(taken, where, files.BENCH, files.BENCH_PROVENANCE)
    if arguments.output:
        keep(taken, where, arguments.output / "samples.csv", arguments.output / "machine.json")
    print("\n".join(report(collect(taken, where), arguments.at, allocator)))


def print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def plan(keys: list[str], environment: Environment) -> list[Size]:
    """Every candidate at each of the sizes."""
    plan = []
    for key in keys:
        names, sizes = SIZES[key]
        peers = [peer for peer in PEERS.get(key, []) if peer != JAX or find_spec("jax")]
        variants = [goal.beside for goal in GOALS if goal.size == key and "+" in goal.beside and "/" not in goal.beside]
        products = map(str, matmul_baselines(environment, "numpy"))
        texts = [*names, *products, *peers, *variants]
        beside = tuned(names, environment) if key in PEERS else []
        chosen = list(dict.fromkeys([*map(Candidate.parse, texts), *beside]))
        plan.append(Size(problem_of(names[0]), sizes, chosen, list(_pairs(key, chosen))))
    return plan


def _pairs(key: str, chosen: list[Candidate]) -> Iterator[Pair]:
    """The goals that a size is measured for: those whose candidates are in the plan."""
    for goal in GOALS:
        above, below = Candidate.parse(goal.lesson), Candidate.parse(goal.beside)
        if goal.size == key and {above, below} <= {*chosen}:
            yield Pair(above, below, WITHIN_TORCH if above.framework == below.framework == "torch" else WITHIN)


def _allocator(key: str, environment: Environment) -> Iterator[tuple[list[Sample], list[Sample]]]:
    """NumPy's lesson with the allocator's setting, and without: in processes that alternate."""
    only = [Size(problem_of("numpy_arrays"), SIZES[key][1], [Candidate("numpy_arrays")])]
    one = replace(CONFIG, processes=1, rounds=6 * CONFIG.rounds, process_seconds=1, seconds=0)
    for _ in range(ALLOCATOR_PROCESSES):
        kept, meanwhile = benchmark(only, config=one, dtype="float32", environment=environment)
        default, then = benchmark(
            only, config=one, dtype="float32", environment=environment, program=["-c", BY_DEFAULT]
        )
        processes = [*meanwhile["processes"], *then["processes"]]
        threads, cpus = environment.threads, meanwhile["cpus"]
        if not any(disturbance(process, threads=threads, cpus=cpus) for process in processes):
            yield kept, default


def report(measured: Benchmark, keys: list[str], allocator: Mapping[str, Pairs]) -> Iterator[str]:
    yield from heading(measured)
    for key in keys:
        names, sizes = SIZES[key]
        case = measured.at(problem_of(names[0]), sizes)
        assert case, "every size of the plan is measured"  # noqa: S101
        yield from ("", f"{case.label}: a step of each lesson, and how many times the matrix products alone it takes")
        yield columns(_multiples(case, names))
        yield from ("", f"{case.label}: a step of a lesson over one of what is beside it")
        rows = [row for goal in GOALS if goal.size == key for row in _row(goal, case, names)]
        if key in allocator:
            rows.append(_allocator_row(allocator[key], ALLOCATOR_GOALS[key]))
        yield columns(rows)


def _multiples(case: Case, names: list[str]) -> list[list[object]]:
    unit, factor = ("ms", 1e3) if case.median(Candidate("numpy", MATMUL)) > 1e-3 else ("µs", 1e6)
    rows: list[list[object]] = [["", f"{unit} a step", "× products alone", "by", "× own library's"]]
    for lesson in map(Candidate, names):
        products, framework_products = case.matmul(lesson), Candidate(lesson.framework, MATMUL)
        of_own = case.ratio(lesson, framework_products) or case.doubt if framework_products in case.seconds else "–"
        rows.append(
            [
                lesson,
                f"{case.median(lesson) * factor:.3g}",
                case.multiple(lesson) or case.doubt,
                products.name if products else "",
                of_own,
            ]
        )
    return rows


def _row(goal: Goal, case: Case, names: list[str]) -> Iterator[list[object]]:
    beside = Candidate.parse(goal.beside)
    if goal.beside == BEST_MODULE:
        beside = min(map(Candidate.parse, MODULES), key=case.median)
    if beside not in case.seconds:  # JAX was not asked for
        return
    lesson = min(map(Candidate, names), key=case.median) if goal.lesson == FASTEST else Candidate(goal.lesson)
    estimate = case.ratio(lesson, beside)
    met = "" if goal.most is None or estimate is None else mark(estimate.value <= goal.most)
    yield [lesson, beside, estimate or case.doubt, f"≤ {goal.most:.2f}" if goal.most else "", met]


def _allocator_row(pairs: Pairs, most: float | None) -> list[object]:
    if len(pairs) < 2:
        return ["numpy_arrays", WITHOUT, "cannot tell: other processes used the machine", "", ""]
    estimate = ratio([_paces(kept) for kept, _ in pairs], [_paces(default) for _, default in pairs])
    goal, met = (f"≤ {most:.2f}", mark(estimate.value <= most)) if most else ("", "")
    return ["numpy_arrays", WITHOUT, estimate, goal, met]


def _paces(taken: list[Sample]) -> Array:
    """The median of a process. Processes with and without the setting are not interleaved."""
    return np.array([np.median([sample.seconds / sample.steps for sample in taken])])


if __name__ == "__main__":
    with shown_to_the_user():
        main()
