"""`make bench-gpu`: the two-layer lessons on a GPU, beside two baselines, NumPy and PyTorch on the host, and variants.

It measures how long a captured step takes at the tutorial's size, beside the matrix products and the launches alone;
what capturing costs and saves; how close the largest size comes to its matrix products alone; at which size a step is
50 times as fast as NumPy's on the same host; and the effects of TF32, deterministic kernels, one graph for all batches
and (`--compile`) `torch.compile`. Without Docker, `python -m benchmarks.gpu` needs a Python with torch, NumPy, scipy,
psutil, threadpoolctl and nvidia-ml-py. TensorFlow's lesson is measured if TensorFlow is installed, in its own
interpreter. The samples go to docs/results/DEVICE. `--device cpu` tries it out without a GPU.
"""

import argparse
import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import heading, keep, mark, problem_of
from pipeline import gpus
from pipeline.benchmark.benchmark import benchmark
from pipeline.benchmark.candidates import BASELINES, Candidate
from pipeline.benchmark.intervals import spread
from pipeline.benchmark.plan import BenchmarkConfig, Size, launch_floors, matmul_baselines
from pipeline.benchmark.runner import Runner, draw
from pipeline.benchmark.samples import Benchmark, Case, Sample, collect
from pipeline.contract import Array, load_problem
from pipeline.environment import Environment, enter_interpreter, versions_of
from pipeline.errors import UserError, shown_to_the_user
from pipeline.provenance import provenance
from pipeline.report.findings import CLAIMS, Run, capture_cost, crossover, times_as_fast_as_numpy
from pipeline.results import BenchmarkProvenance
from pipeline.running.machine import available_cpus, cpu_name
from pipeline.text import columns

NAMES = ["torch_tensors", "torch_autograd", "torch_function"]
PROBLEM = problem_of(NAMES[0])
NUMPY, HOST = Candidate("numpy_arrays"), Candidate("torch_tensors", "cpu")
VARIANTS = [Candidate("torch_autograd", option=option) for option in ("nondeterministic", "tf32")]
STATIC = Candidate("torch_static_graph", "peers", "torch_autograd")
COMPILED = Candidate("torch_compile", "peers")
KEYS = ("batch_size", "inputs", "hidden", "outputs")
SIZES = [
    (16, 256, 32, 10),
    (64, 1000, 100, 10),
    (256, 1024, 1024, 64),
    (512, 2048, 2048, 256),
    (2048, 4096, 4096, 512),
    (4096, 8192, 8192, 1024),
]
CONFIG = BenchmarkConfig(processes=3, rounds=8, turn_seconds=0.05, seconds=0)
TUTORIAL = SIZES[1]
BASELINE_AIM = 1.5  # the goal for torch_autograd at the tutorial's size, as a multiple of the higher baseline
SHARE_AIM = 0.9  # the goal at the largest size, as a share of the speed of the matrix products alone
PARITY_STEPS = 6  # on two batches: the first two steps run eagerly, then every step is a replay
PARITY_CHANGE = 0.01  # of the weights in a step, about: many times the resolution of float32


def main() -> None:
    options = _options()
    enter_interpreter("torch")
    environment = _environment(options.device)
    config = replace(CONFIG, processes=options.processes, rounds=options.rounds)
    sizes = [SIZES[options.only - 1]] if options.only else SIZES[: options.sizes]
    plan = [Size(PROBLEM, dict(zip(KEYS, numbers, strict=True)), _candidates(environment)) for numbers in sizes]
    taken, meanwhile = benchmark(plan, config=config, dtype="float32", environment=environment, on_process=print)
    if options.compile:
        taken += _compiled(environment, config, after=1 + max(sample.process for sample in taken))
    where = BenchmarkProvenance(**provenance(environment, environment.device, environment.device_name), **meanwhile)
    folder = options.output / re.sub(r"[^a-z0-9]+", "-", environment.device_name.lower()).strip("-")
    keep(taken, where, folder / "samples.csv", folder / "machine.json")
    measured = collect(taken, where)
    parity = [] if options.no_parity else _parity(plan, environment)
    for line in chain(heading(measured), _report(measured, taken), parity):
        print(line, flush=True)
    print(f"every sample: {folder}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    number = range(1, len(SIZES) + 1)
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try it out")
    parser.add_argument("--sizes", type=int, choices=number, default=len(SIZES), help="sizes, from the smallest")
    parser.add_argument("--only", type=int, choices=number, help="measure only this one of the sizes")
    parser.add_argument("--processes", type=int, default=CONFIG.processes, help="new processes for each interpreter")
    parser.add_argument("--rounds", type=int, default=CONFIG.rounds, help="turns of each candidate in a process")
    parser.add_argument("--no-parity", action="store_true", help="leave out the weights' difference from float64")
    parser.add_argument("--compile", action="store_true", help="then measure torch.compile at the tutorial's size")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    return parser.parse_args()


def _candidates(environment: Environment) -> list[Candidate]:
    chosen = [*map(Candidate, NAMES), *VARIANTS, *matmul_baselines(environment, "torch"), NUMPY]
    if environment.device != "cpu":
        chosen += [Candidate.parse("matmul/torch+tf32"), *launch_floors(environment, NAMES), STATIC, HOST]
    if os.environ.get("TENSORFLOW_PYTHON") or find_spec("tensorflow"):
        chosen += [Candidate("tensorflow_graph"), Candidate("tensorflow_graph", option="no_xla")]
        chosen += [baseline for baseline in matmul_baselines(environment, "tensorflow") if baseline not in chosen]
    return chosen


def _compiled(environment: Environment, config: BenchmarkConfig, *, after: int) -> list[Sample]:
    """Samples of torch.compile in processes of its own, numbered from `after` on. None, if it fails: it says why."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of processes that would keep running
    size = Size(PROBLEM, dict(zip(KEYS, TUTORIAL, strict=True)), [COMPILED])
    try:
        samples, _ = benchmark([size], config=config, dtype="float32", environment=environment, on_process=print)
    except UserError as error:
        print(f"torch.compile is left out: {str(error).splitlines()[-1]}")
        return []
    return [sample._replace(process=sample.process + after) for sample in samples]


def _report(measured: Benchmark, taken: list[Sample]) -> Iterator[str]:
    yield "The L2 cache is warm: a candidate takes its steps on the same two batches or 16 MB, again and again."
    for case in measured.cases:
        yield from ("", case.label, *_rows(case))
    yield ""
    tutorial = measured.at(PROBLEM, dict(zip(KEYS, TUTORIAL, strict=True)))
    largest = measured.cases[-1]
    for lesson in map(Candidate, NAMES):
        lesson_samples = [sample for sample in taken if sample.candidate == lesson]
        replayed = sum(sample.replays for sample in lesson_samples) / sum(sample.steps for sample in lesson_samples)
        yield f"{lesson}: {replayed:.0%} of the timed steps were replays of a CUDA graph"
        if tutorial:
            yield from _at_the_tutorials_size(lesson, tutorial)
        yield from _at_the_largest_size(lesson, largest)
    for other in () if largest.doubt else (NUMPY, HOST):
        if other in largest.seconds:
            beyond = crossover(measured.cases, other, Candidate(NAMES[0]))
            where = f"at {beyond.label} and beyond" if beyond else f"not at {largest.label}"
            yield f"{NAMES[0]}: faster than {other} {where}"
    finding = times_as_fast_as_numpy(CLAIMS[0], Run(measured.cases, tutorial, {}, {}, measured.provenance))
    yield f"“{CLAIMS[0].text}” {finding.verdict}: {finding.text}{f' ({measured.doubt})' if measured.doubt else ''}"


def _at_the_tutorials_size(lesson: Candidate, case: Case) -> Iterator[str]:
    """A captured step beside its two baselines, the cost of capturing it, and the gain of replaying it."""
    yield f"{lesson}: {1e6 * case.median(lesson):.1f} µs a step at the tutorial's size"
    products, floor, eager = case.matmul(lesson), case.launch_floor(lesson.name), Candidate(lesson.name, "eager")
    if floor:
        higher = max([products, floor] if products else [floor], key=case.median)
        ratio = case.ratio(lesson, higher)
        aim = f"; aim ≤ {BASELINE_AIM} {mark(ratio.value <= BASELINE_AIM)}" if ratio else ""
        yield f"{lesson}: {ratio or case.doubt} the higher of its baselines, {higher}{aim}"
    if cost := capture_cost(case, lesson.name):
        yield f"{lesson}: run eagerly a step takes {case.ratio(eager, lesson) or case.doubt} as long.{cost}"
    if STATIC.option == lesson.name and STATIC in case.seconds:
        one_graph = case.ratio(STATIC, lesson) or case.doubt
        yield f"{lesson}: with one graph for all batches a step takes {one_graph} as long"


def _at_the_largest_size(lesson: Candidate, case: Case) -> Iterator[str]:
    products = case.matmul(lesson)
    share = case.ratio(products, lesson) if products else None
    if share is None:
        yield f"{lesson}: {case.doubt or 'the matrix products alone were not measured'}"
        return
    aim = f"aim ≥ {SHARE_AIM:.0%} {mark(share.value >= SHARE_AIM)}"
    shown = f"{share.value:.0%} ({share.low:.0%} … {share.high:.0%})"
    yield f"{lesson}: {shown} of the matrix products' speed at {case.label}; {aim}"


def _rows(case: Case) -> Iterator[str]:
    autograd = Candidate("torch_autograd")
    rows: list[list[object]] = [["", "µs a step", "quartiles", "× products alone", "of torch_autograd"]]
    for candidate, processes in case.seconds.items():
        middle, lower, upper = (f"{1e6 * figure:.1f}" for figure in spread(list(processes.values())))
        multiple = case.multiple(candidate) or case.doubt or "–" if candidate.is_step else ""
        of_autograd = case.ratio(candidate, autograd) if candidate.is_step and candidate != autograd else None
        rows.append([candidate, middle, f"{lower} … {upper}", multiple, of_autograd or ""])
    yield columns(rows)


def _parity(plan: list[Size], environment: Environment) -> Iterator[str]:
    """How far each row's weights are from the float64 reference after a few steps, at each size."""
    yield from ("", f"Parity: relative error, against float64, of the weights' change in {PARITY_STEPS} steps")
    rows: list[list[object]] = [["", *(" × ".join(map(str, size.sizes.values())) for size in plan)]]
    errors: dict[Candidate, list[str]] = {}
    for size in plan:
        weights, chunk = draw(PROBLEM, SimpleNamespace(**size.sizes), "float32")
        chunk = {key: array[:2] for key, array in chunk.items()}
        rate, expected = _reference(weights, chunk)
        for candidate in size.candidates:
            if candidate.kind not in BASELINES and candidate.framework != "tensorflow":
                runner = Runner(candidate, PROBLEM, environment, weights, learning_rate=rate)
                runner.place(chunk)
                with runner.settings():
                    runner.run(PARITY_STEPS)
                    trained = runner.loop.weights()
                error = max(
                    _norm(trained[key] - expected[key]) / _norm(expected[key] - weights[key]) for key in weights
                )
                errors.setdefault(candidate, []).append(f"{error:.1e}")
    yield columns([*rows, *([candidate, *texts] for candidate, texts in errors.items())])


def _reference(weights: Mapping[str, Array], chunk: Mapping[str, Array]) -> tuple[float, dict[str, Array]]:
    """A learning rate at which a step changes the weights by about PARITY_CHANGE; the weights after PARITY_STEPS."""
    problem = load_problem(PROBLEM)
    expected = {key: array.astype(np.float64) for key, array in weights.items()}
    rate = 0.0
    for step in range(PARITY_STEPS):
        _, gradients = problem.loss_and_gradients(expected, *(array[step % 2] for array in chunk.values()))
        rate = rate or PARITY_CHANGE * min(_norm(expected[key]) / _norm(gradients[key]) for key in expected)
        expected = {key: expected[key] - rate * gradients[key] for key in expected}
    return rate, expected


def _norm(array: Any) -> float:
    return float(np.linalg.norm(array))


def _environment(device: str) -> Environment:
    name, driver = cpu_name(), None
    if device != "cpu":
        cuda, index = gpus.find(), int(device.partition(":")[2] or 0)
        if index >= len(cuda.devices):
            names = ", ".join(gpu.name for gpu in cuda.devices) or cuda.absence
            raise UserError(
                f"There is no {device}; found: {names}. Run it on a machine with an NVIDIA GPU, or try it out with "
                "--device cpu."
            )
        name, driver = cuda.devices[index].name, cuda.driver
    return Environment(
        device=device,
        device_name=name,
        cpu_name=cpu_name(),
        driver=driver,
        threads=available_cpus(),
        precision="highest",
        deterministic=True,
        python=platform.python_version(),
        versions=versions_of({"torch"}),
    )


if __name__ == "__main__":
    with shown_to_the_user():
        main()
