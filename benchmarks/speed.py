"""`make bench`: how long a step of each lesson takes, beside its target. CPU, float32; never a timed test.

In turn, in a process for each lesson: the floor of a step (its matrix products alone) on NumPy's and on torch's BLAS,
the loop written plainly (benchmarks/plain), the lesson, and the lesson again as `self`, which must come out as no
different. Deterministic kernels are switched on and off in turn too; for TensorFlow, which stays in that mode, by
starting processes in turn.

    python -m benchmarks.speed --only torch_autograd --at small --output samples.json
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from benchmarks import machine
from pipeline.benchmark import ROUNDS, Sample, Steps, draw, floors, in_turn, rounds
from pipeline.contract import Array, Implementation, Weights, load_implementation, load_runtime
from pipeline.environment import Environment, framework_of, resolve
from pipeline.errors import UserError
from pipeline.params import RecurrentCase, TwoLayerCase, load_params
from pipeline.statistics import Estimate, ratio, verdict
from pipeline.timing import other_processes

LEARNING_RATE = 1e-3
PASSES = 4  # there and back, so that who comes before whom counts for both; at the least 20 rounds together
MODES_SECONDS = 12.0  # deterministic kernels on and off, in turn in one process
PAIRS = 6  # of processes, one with deterministic kernels and one without
PAIR_SECONDS = 2.0  # for each of the two
ABBA = ("deterministic", "free", "free", "deterministic")  # so that a drift of the machine counts for both alike


class Size(NamedTuple):
    """`targets` are multiples of the floor for two_layer, seconds for recurrent; `seconds` are for one lesson."""

    problem: str
    case: Any
    label: str
    unit: str
    units: float  # in a second
    seconds: float
    targets: dict[str, float]


SIZES = {
    "small": Size(
        "two_layer",
        TwoLayerCase(batch_size=64, inputs=1000, hidden=100, outputs=10),
        "64 × 1000 × 100 × 10",
        "µs",
        1e6,
        9,
        {
            "numpy_arrays": 1.7,
            "torch_tensors": 1.1,
            "torch_autograd": 1.5,
            "torch_function": 1.6,
            "tensorflow_graph": 1.6,
        },
    ),
    "large": Size(
        "two_layer",
        TwoLayerCase(batch_size=512, inputs=2048, hidden=2048, outputs=256),
        "512 × 2048 × 2048 × 256",
        "ms",
        1e3,
        20,
        {
            "numpy_arrays": 1.15,
            "torch_tensors": 1.05,
            "torch_autograd": 1.1,
            "torch_function": 1.1,
            "tensorflow_graph": 1.1,
        },
    ),
    "recurrent": Size(
        "recurrent",
        RecurrentCase(batch_size=256, inputs=64, hidden=128, outputs=10, min_length=1, max_length=32),
        "256 × 64 × 128 × 10, lengths 1…32",
        "ms",
        1e3,
        24,
        {"torch_loop": 16e-3, "tensorflow_scan": 12e-3},
    ),
}
NAMES = list(dict.fromkeys(name for size in SIZES.values() for name in size.targets))
DETERMINISM = {
    "torch_autograd": "small",
    "tensorflow_graph": "small",
    "torch_loop": "recurrent",
    "tensorflow_scan": "recurrent",
}


class Record(NamedTuple):
    """A turn: so many steps of the lesson, or of what it is compared with, took so many seconds.

    The contestant `traces` takes no turns: its steps are how often a graph was traced.
    """

    name: str
    size: str
    contestant: str
    round: int
    steps: int
    seconds: float


Paces = Mapping[tuple[str, str, str], Array]  # (name, size, contestant): seconds a step (rounds,)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description="The lessons' speed.")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--at", nargs="+", choices=SIZES, default=list(SIZES), metavar="SIZE", help=", ".join(SIZES))
    parser.add_argument("--seconds", type=float, default=1.0, metavar="FACTOR", help="times the usual seconds")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="every sample, with the machine's facts")
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--modes", nargs="+", choices=sorted(set(ABBA)), default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        found = resolve(load_params())
    except UserError as error:
        sys.exit(f"ERROR: {error}")
    environment = replace(found, device="cpu", device_name=found.cpu_name, driver=None)
    if arguments.one:
        measured = _measure(arguments.one, arguments.at, arguments.modes, arguments.seconds, environment)
        print(json.dumps(list(measured)))
        return
    with other_processes() as others:
        records = list(_measure_all(arguments.only, arguments.at, arguments.seconds))
    if arguments.output:
        machine.keep(arguments.output, environment, others[0], "samples.csv", records)
    print("\n".join([*machine.heading(environment, others[0]), *_report(records)]))


def _measure_all(names: Sequence[str], sizes: Sequence[str], factor: float) -> Iterator[Record]:
    for name in names:
        if own := [size for size in sizes if name in SIZES[size].targets]:
            yield from _in_a_process(name, own, factor)
    for name, size in DETERMINISM.items():
        if name in names and size in sizes:
            if framework_of(name) == "torch":
                yield from _in_a_process(name, [size], factor, "deterministic", "free")
            else:
                for process in range(2 * PAIRS):
                    for record in _in_a_process(name, [size], factor, ABBA[process % 4]):
                        yield record._replace(round=process // 2)


def _in_a_process(name: str, sizes: Sequence[str], factor: float, *modes: str) -> list[Record]:
    print("measuring", name, *sizes, *modes, end=" … ", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "benchmarks.speed", "--one", name, "--at", *sizes, "--seconds", str(factor)]
    command += ["--modes", *modes] if modes else []
    with other_processes() as others:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(f"other processes took {others[0]:.2f} CPUs", file=sys.stderr)
    if done.returncode:
        sys.exit(f"{done.stderr}ERROR: {name} could not be measured.")
    return [Record(*fields) for fields in json.loads(done.stdout)]


def _measure(
    name: str, sizes: Sequence[str], modes: Sequence[str], factor: float, environment: Environment
) -> Iterator[Record]:
    """The samples of a lesson: beside what it is compared with, or in `modes` against itself."""
    if modes:
        environment = replace(environment, deterministic=modes[0] == "deterministic")
    for size in sizes:
        for sample in _samples(name, SIZES[size], modes, factor, environment):
            yield Record(name, size, *sample)


def _samples(name: str, size: Size, modes: Sequence[str], factor: float, environment: Environment) -> Iterator[Sample]:
    runtime = load_runtime(name)
    device = runtime.start(environment)
    weights, batches = draw(size.problem, size.case, "float32")

    def create(implementation: type[Implementation], batches: Mapping[str, Array]) -> Implementation:
        created = implementation(weights, learning_rate=LEARNING_RATE, device=device)
        created.load(batches)
        return created

    def create_lesson(batches: Mapping[str, Array]) -> Implementation:
        return runtime.prepare(create(load_implementation(size.problem, name), batches))

    lesson = create_lesson(batches)
    step = rounds(lesson, batches)
    passes, seconds = PASSES, size.seconds
    if len(modes) == 1:
        passes, seconds = 1, PAIR_SECONDS
        contestants = {modes[0]: step}
    elif modes:
        seconds = MODES_SECONDS
        contestants = {mode: _in_mode(mode, step, runtime, environment) for mode in modes}
    else:
        plain = create(import_module(f"benchmarks.plain.{name}").Implementation, batches)
        contestants = floors(framework_of(name), environment, size.problem, weights, batches)
        contestants |= {"plain": rounds(plain, batches), "step": step, "self": step}
        if size is SIZES["small"]:
            contestants |= _handovers(weights, batches)
        if "lengths" in batches:
            longest = batches | {"lengths": np.full_like(batches["lengths"], size.case.max_length)}
            contestants["longest"] = rounds(create_lesson(longest), longest)
    for index in range(passes):
        order = list(contestants)[:: -1 if index % 2 else 1]
        turns = {contestant: contestants[contestant] for contestant in order}
        for sample in in_turn(turns, seconds=factor * seconds / passes, synchronize=runtime.synchronize):
            yield sample._replace(round=index * ROUNDS + sample.round)
    if "longest" in contestants and framework_of(name) == "tensorflow":
        yield Sample("traces", 0, _traces(lesson, batches), 0.0)


def _in_mode(mode: str, step: Steps, runtime: ModuleType, environment: Environment) -> Steps:
    environment = replace(environment, deterministic=mode == "deterministic")

    def run(steps: int) -> None:
        runtime.start(environment)
        step(steps)

    return run


def _handovers(weights: Weights, batches: Mapping[str, Array]) -> dict[str, Steps]:
    """The two large products of a step; in `handed` the one reads the weights that the other has just written.

    Half of them come out of the other core's cache: measured, nothing to 40 % on top, from one minute of a virtual
    machine to the next. The floor, whose weights stay as they are, does not pay for it; a step does.
    """
    import torch

    x = torch.from_numpy(batches["x"][0])
    written, unwritten = (torch.tensor(weights["w1"]) for _ in range(2))
    h = x.mm(written)

    def products(read: torch.Tensor) -> Steps:
        def run(steps: int) -> None:
            for _ in range(steps):
                torch.mm(x, read, out=h)
                written.addmm_(x.T, h, alpha=-1e-12)  # 0 would leave out the product

        return run

    return {"handed": products(written), "apart": products(unwritten)}


def _traces(lesson: Any, batches: Mapping[str, Array]) -> int:
    """How often the lesson's graph has been traced when it has seen examples of another length too."""
    half = batches["x"].shape[2] // 2
    lesson.load({**batches, "x": batches["x"][:, :, :half], "lengths": np.minimum(batches["lengths"], half)})
    lesson.train(1)
    return lesson.graph.experimental_get_tracing_count()


def _report(records: Sequence[Record]) -> Iterator[str]:
    paces = _paces(record for record in records if record.contestant != "traces")
    for key, size in SIZES.items():
        if names := [name for name in size.targets if (name, key, "step") in paces]:
            yield from ("", f"{size.label}, {size.unit} a step", *_table(key, names, paces), *_notes(key, names, paces))
    yield from (
        f"{each.name}: traced {each.steps} × for all lengths." for each in records if each.contestant == "traces"
    )
    checks, modes = (
        [(name, key) for name, key, contestant in paces if contestant == wanted] for wanted in ("self", "deterministic")
    )
    if checks:
        yield from ("", "The checker: a lesson against itself, of which 1 in 20 may differ by chance")
        yield from machine.columns([*(_check_row(name, key, paces) for name, key in checks), _check_all(checks, paces)])
    if modes:
        yield from ("", "Deterministic kernels: a step with them, a step without, the one over the other")
        yield from machine.columns([_mode_row(name, key, paces) for name, key in modes])


def _paces(records: Iterable[Record]) -> Paces:
    """Seconds a step, the median of each round: where a round is a pair of processes, each has many samples."""
    by_round: dict[tuple[str, str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        by_round[record[:3]][record.round].append(record.seconds / record.steps)
    return {key: np.array([np.median(each) for each in found.values()]) for key, found in by_round.items()}


def _table(key: str, names: Sequence[str], paces: Paces) -> Iterator[str]:
    size = SIZES[key]
    rows = [["", "floor", "", "plain", "× floor", "ours", "× floor", "× own BLAS", "target", "", "ours / plain", ""]]
    for name in names:
        fastest = _fastest(name, key, paces)
        floor, plain, ours = (paces[name, key, contestant] for contestant in (fastest, "plain", "step"))
        own, target = _own(name, key, paces), size.targets[name]
        rows.append(
            [
                name,
                _time(floor, size),
                fastest.removeprefix("floor_"),
                _time(plain, size),
                f"{ratio(plain, floor).value:.2f}",
                _time(ours, size),
                machine.interval(ratio(ours, floor)),
                f"{ratio(ours, own).value:.2f}" if own is not None else "–",
                f"≤ {target * size.units:g} ms" if size.problem == "recurrent" else f"≤ {target:g} ×",
                "✓" if _figure(name, key, paces).value <= target else "✗",
                *_compared(ours, plain),
            ]
        )
    return machine.columns(rows)


def _notes(key: str, names: Sequence[str], paces: Paces) -> Iterator[str]:
    size = SIZES[key]
    for name in names:
        figure, target = _figure(name, key, paces), size.targets[name]
        if figure.value > target:
            yield f"✗ {name}: {_reason(name, key, paces)}{' (the interval holds the target)' * (figure.low <= target)}."
        if (name, key, "longest") in paces:
            case, longest = size.case, ratio(paces[name, key, "longest"], paces[name, key, "step"])
            share = 2 * case.max_length / (case.min_length + case.max_length)
            yield f"{name}: all lengths {case.max_length}, sum {share:.2f} ×: {machine.interval(longest)} × the step."

    handed = {
        name: ratio(paces[name, key, "handed"], paces[name, key, "apart"])
        for name in names
        if (name, key, "handed") in paces
    }
    if handed:
        yield "Products of weights just updated, over those of weights at rest (1: handing them over costs nothing):"
        yield "  " + ", ".join(f"{name} {machine.interval(found)}" for name, found in handed.items())


def _reason(name: str, key: str, paces: Paces) -> str:
    size, figure, own = SIZES[key], _figure(name, key, paces), _own(name, key, paces)
    if size.problem == "recurrent":
        return f"{figure.value * size.units:.1f} ({figure.low * size.units:.1f}–{figure.high * size.units:.1f}) ms"
    if own is not None and ratio(paces[name, key, "step"], own).value <= size.targets[name]:
        slower = ratio(own, paces[name, key, _fastest(name, key, paces)])
        return f"{framework_of(name)}'s BLAS takes {machine.interval(slower)} × the floor for the products alone"
    beside = (
        f", {machine.interval(ratio(paces[name, key, 'step'], own))} × its own BLAS's products"
        if own is not None
        else ""
    )
    return f"{machine.interval(figure)} × the floor{beside}"


def _figure(name: str, key: str, paces: Paces) -> Estimate:
    """What the target is for: a step's seconds, or its multiple of the floor."""
    ours = paces[name, key, "step"]
    below = np.ones_like(ours) if SIZES[key].problem == "recurrent" else paces[name, key, _fastest(name, key, paces)]
    return ratio(ours, below)


def _fastest(name: str, key: str, paces: Paces) -> str:
    return min(("floor_numpy", "floor_torch"), key=lambda floor: np.median(paces[name, key, floor]))


def _own(name: str, key: str, paces: Paces) -> Array | None:
    """The floor on the framework's own BLAS; TensorFlow's is not measured."""
    return paces.get((name, key, f"floor_{framework_of(name)}"))


def _check_row(name: str, key: str, paces: Paces) -> list[str]:
    return [name, SIZES[key].label, *_compared(paces[name, key, "self"], paces[name, key, "step"])]


def _check_all(checks: Sequence[tuple[str, str]], paces: Paces) -> list[str]:
    """One comparison of all of them together, each in its own unit."""
    selves, steps = ([paces[*check, contestant] for check in checks] for contestant in ("self", "step"))
    units = [np.median([*pair]) for pair in zip(selves, steps, strict=True)]
    together = (
        np.concatenate([pace / unit for pace, unit in zip(pool, units, strict=True)]) for pool in (selves, steps)
    )
    return ["all", "together", *_compared(*together)]


def _mode_row(name: str, key: str, paces: Paces) -> list[str]:
    size = SIZES[key]
    deterministic, free = (paces[name, key, mode] for mode in ("deterministic", "free"))
    turns = "turns in one process" if framework_of(name) == "torch" else "processes each"
    times = [f"{_time(pace, size)} {size.unit}" for pace in (deterministic, free)]
    return [name, size.label, *times, *_compared(deterministic, free), f"{len(free)} {turns}"]


def _compared(above: Array, below: Array) -> list[str]:
    found = ratio(above, below)
    return [machine.interval(found), verdict(found)]


def _time(pace: Array, size: Size) -> str:
    return f"{np.median(pace) * size.units:.{0 if size.unit == 'µs' else 1}f}"


if __name__ == "__main__":
    main()
