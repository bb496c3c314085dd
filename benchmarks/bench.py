"""`make bench`: every lesson beside the lower bound, its hand-tuned variant, and what a user might write instead.

All candidates of a size are interleaved (pipeline/benchmark/benchmark.py). Leaves the samples in results/bench.csv,
where the report finds them too, and with --output in a folder of docs/results.

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

from benchmarks.table import columns, heading, mark
from pipeline import files
from pipeline.benchmark import samples
from pipeline.benchmark.benchmark import Effort, Size, benchmark
from pipeline.benchmark.intervals import ratio
from pipeline.benchmark.plan import tuned
from pipeline.benchmark.samples import HEADER, Benchmark, Case, Sample
from pipeline.clock import BUSY
from pipeline.contract import Array
from pipeline.environment import Environment, resolve
from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.provenance import provenance

EFFORT = Effort(processes=12, rounds=6, turn_seconds=0.02)
SIZES = {
    "small": ("two_layer", {"batch_size": 64, "inputs": 1000, "hidden": 100, "outputs": 10}),
    "large": ("two_layer", {"batch_size": 512, "inputs": 2048, "hidden": 2048, "outputs": 256}),
    "recurrent": (
        "recurrent",
        {"batch_size": 256, "inputs": 64, "hidden": 128, "outputs": 10, "min_length": 1, "max_length": 32},
    ),
    "full": (  # no padding: what the loops cost when both have the same work
        "recurrent",
        {"batch_size": 256, "inputs": 64, "hidden": 128, "outputs": 10, "min_length": 32, "max_length": 32},
    ),
}
LESSONS = {
    "two_layer": ["numpy_arrays", "torch_tensors", "torch_autograd", "torch_function", "tensorflow_graph"],
    "recurrent": ["torch_loop", "tensorflow_scan"],
}
MODULES = [f"peers/torch_module+{option}" for option in ("plain", "foreach", "fused")]
PEERS = {
    "two_layer": [*MODULES, "peers/tensorflow_keras+train_on_batch", "peers/tensorflow_keras+fit"],
    "recurrent": ["peers/torch_examples", "peers/tensorflow_examples"],
}
BEST_MODULE = "the best torch_module"
FASTEST = "the fastest lesson"
JAX = "peers/numpy_jax"  # with `make bench PEERS=1`
if find_spec("jax"):
    PEERS["two_layer"].append(JAX)
# The same lines without the allocator's setting: a process of its own, which patches it away before a runtime starts.
BY_DEFAULT = (
    "from pipeline import runtimes; runtimes.keep_freed_memory = lambda: None;"
    "from pipeline.benchmark.benchmark import main; main()"
)


class Goal(NamedTuple):
    """A step of `lesson` should take at most `most` times as long as one of `beside`."""

    size: str
    lesson: str
    beside: str
    most: float | None = None  # None: reported, not judged


GOALS = [
    *(
        Goal(size, name, f"tuned/{name}", most)
        for size, goals in {
            "small": (1.10, 1.35, 1.12, 1.12, 1.05),
            "large": (1.15, 1.15, 1.05, 1.05, 1.05),
        }.items()
        for name, most in zip(LESSONS["two_layer"], goals, strict=True)
    ),
    *(Goal("recurrent", name, f"tuned/{name}", 1.05) for name in LESSONS["recurrent"]),
    Goal("small", "torch_autograd", BEST_MODULE, 0.80),
    Goal("large", "torch_autograd", BEST_MODULE, 1.05),
    Goal("small", "tensorflow_graph", "peers/tensorflow_keras+train_on_batch", 0.35),
    Goal("small", "tensorflow_graph", "peers/tensorflow_keras+fit", 0.15),
    Goal("large", "tensorflow_graph", "peers/tensorflow_keras+train_on_batch"),
    Goal("large", "tensorflow_graph", "peers/tensorflow_keras+fit"),
    Goal("small", FASTEST, JAX, 0.80),
    Goal("large", FASTEST, JAX),
    Goal("recurrent", "torch_loop", "peers/torch_examples", 0.04),
    Goal("recurrent", "tensorflow_scan", "peers/tensorflow_examples", 0.04),
    Goal("recurrent", "tensorflow_scan", "torch_loop"),
    Goal("full", "tensorflow_scan", "torch_loop"),
    Goal("small", "torch_autograd", "torch_autograd+nondeterministic"),
]
WITHOUT = "numpy_arrays without the allocator's setting"
ALLOCATOR_GOALS: dict[str, float | None] = {"small": 0.65, "large": None}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description="The lessons' speed on the CPU.")
    parser.add_argument("--at", nargs="+", choices=SIZES, default=list(SIZES), metavar="SIZE", help=", ".join(SIZES))
    parser.add_argument("--processes", type=int, default=EFFORT.processes, metavar="N", help="fresh ones")
    parser.add_argument("--effort", type=float, default=1.0, metavar="FACTOR", help="times the usual rounds")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="also keep samples and machine there")
    arguments = parser.parse_args()
    effort = EFFORT._replace(processes=arguments.processes, rounds=max(1, round(arguments.effort * EFFORT.rounds)))
    try:
        found = resolve(load_params())
        environment = replace(found, device="cpu", device_name=found.cpu_name, driver=None)
        taken, meanwhile = benchmark(
            plan(arguments.at, environment), effort=effort, dtype="float32", environment=environment, on_process=say
        )
        allocator = {key: list(_allocator(key, effort, environment)) for key in ALLOCATOR_GOALS if key in arguments.at}
    except UserError as error:
        sys.exit(f"ERROR: {error}")
    where = provenance(environment, "cpu", environment.cpu_name) | meanwhile
    for table, facts in _places(arguments.output):
        files.write_rows(table, HEADER, taken)
        files.write_json(facts, where)
    measured = samples.read(files.read_samples(files.BENCH), where)
    print("\n".join(report(measured, arguments.at, allocator)))


def plan(sizes: list[str], environment: Environment) -> list[Size]:
    """Every candidate at each of the sizes."""
    found = []
    for key in sizes:
        problem, case = SIZES[key]
        names = LESSONS[problem]
        modes = [goal.beside for goal in GOALS if goal.size == key and "+" in goal.beside and "/" not in goal.beside]
        bounds = ["lower_bound/numpy", "lower_bound/torch"]
        beside = [] if key == "full" else [*tuned(names, environment), *PEERS[problem], *modes]
        found.append(Size(problem, case, [*names, *bounds, *beside]))
    return found


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _places(output: Path | None) -> Iterator[tuple[Path, Path]]:
    yield files.BENCH, files.BENCH_PROVENANCE
    if output:
        yield output / "samples.csv", output / "machine.json"


Pairs = list[tuple[list[Sample], list[Sample], float]]  # and the CPUs that other processes took


def _allocator(
    key: str, effort: Effort, environment: Environment
) -> Iterator[tuple[list[Sample], list[Sample], float]]:
    """NumPy's lesson with the allocator's setting, and without: in processes that alternate."""
    problem, case = SIZES[key]
    only = [Size(problem, case, ["numpy_arrays"])]
    for _ in range(effort.processes):
        one = effort._replace(processes=1)
        kept, meanwhile = benchmark(only, effort=one, dtype="float32", environment=environment)
        default, then = benchmark(
            only, effort=one, dtype="float32", environment=environment, program=["-c", BY_DEFAULT]
        )
        yield kept, default, max(each["cpus_of_other_processes"] for each in (meanwhile, then))


def report(measured: Benchmark, sizes: list[str], allocator: Mapping[str, Pairs]) -> Iterator[str]:
    yield from heading(measured.provenance)
    for key in sizes:
        problem, sizes_of = SIZES[key]
        (case,) = (case for case in measured.of(problem) if case.sizes.items() >= sizes_of.items())
        yield from ("", f"{case.label}: a step of each lesson, and how many times the lower bound it takes")
        yield from columns(_lower_bounds(case, problem, measured.doubt))
        yield from ("", f"{case.label}: a step of a lesson over one of what is beside it")
        rows = [row for goal in GOALS if goal.size == key for row in _row(goal, case, measured.doubt)]
        if key in allocator:
            rows.append(_allocator_row(allocator[key], ALLOCATOR_GOALS[key]))
        yield from columns(rows)


def _lower_bounds(case: Case, problem: str, doubt: str) -> list[list[str]]:
    unit, factor = ("ms", 1e3) if case.median("lower_bound/numpy") > 1e-3 else ("µs", 1e6)
    rows = [["", f"{unit} a step", "× lower bound", "its library", "× own library"]]
    for name in LESSONS[problem]:
        bound, own = case.lower_bound(name) or "", f"lower_bound/{name.partition('_')[0]}"
        rows.append(
            [
                name,
                f"{case.median(name) * factor:.3g}",
                str(case.ratio(name, bound) or doubt),
                bound.partition("/")[2],
                str(case.ratio(name, own) or doubt) if own in case.seconds else "–",
            ]
        )
    return rows


def _row(goal: Goal, case: Case, doubt: str) -> Iterator[list[str]]:
    lesson, beside = goal.lesson, goal.beside
    if beside == BEST_MODULE:
        beside = min(MODULES, key=case.median)
    if beside not in case.seconds:  # JAX, which was not asked for
        return
    if lesson == FASTEST:
        lesson = min(LESSONS[case.problem], key=case.median)
    found = case.ratio(lesson, beside)
    met = "" if goal.most is None or found is None else mark(found.value <= goal.most)
    yield [lesson, beside, str(found or doubt), f"≤ {goal.most:.2f}" if goal.most else "", met]


def _allocator_row(pairs: Pairs, most: float | None) -> list[str]:
    found = ratio([_paces(kept) for kept, _, _ in pairs], [_paces(default) for _, default, _ in pairs])
    if max(others for _, _, others in pairs) > BUSY:
        return ["numpy_arrays", WITHOUT, "cannot tell", "", ""]
    goal, met = (f"≤ {most:.2f}", mark(found.value <= most)) if most else ("", "")
    return ["numpy_arrays", WITHOUT, str(found), goal, met]


def _paces(taken: list[Sample]) -> Array:
    return np.array([each.seconds / each.steps for each in taken])


if __name__ == "__main__":
    main()
