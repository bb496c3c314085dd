"""`make bench-gpu`: the two-layer lessons on a GPU, beside two baselines, NumPy and PyTorch on the host, and variants.

Answers: what a captured step takes at the tutorial's size, beside the matrix products and the launches alone; what
capturing costs and buys; how near the largest size comes to its matrix products alone; at which size a step is 50
times as fast as NumPy's on the same host; and what TF32, deterministic kernels, one graph for all batches and
(`--compile`) `torch.compile` change. Needs a Python with torch and NumPy, and nothing else: `python -m benchmarks.gpu`
where `make bench-gpu` has no Docker. TensorFlow's lesson is measured where there is TensorFlow, in its own interpreter.

Leaves the samples in docs/results/DEVICE. `--device cpu` tries it out where there is no GPU.
"""

import argparse
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.table import columns, heading, mark
from pipeline import files, gpus
from pipeline.benchmark import samples
from pipeline.benchmark.benchmark import Effort, Size, benchmark
from pipeline.benchmark.candidates import Candidate, draw, launch_floors, lower_bounds
from pipeline.benchmark.intervals import spread
from pipeline.benchmark.samples import BASELINES, HEADER, ONCE, Benchmark, Case, Sample
from pipeline.contract import Array, load_problem
from pipeline.environment import Environment, available_cpus, cpu_name, enter_interpreter, versions_of
from pipeline.errors import UserError, out_of_memory
from pipeline.provenance import provenance
from pipeline.report.claims import CLAIMS
from pipeline.report.findings import Run, capture_cost, crossover, times_as_fast_as_numpy

NAMES = ["torch_tensors", "torch_autograd", "torch_function"]
VARIANTS = ["torch_autograd+nondeterministic", "torch_autograd+tf32"]
STATIC = "peers/torch_static_graph+torch_autograd"
COMPILED = "peers/torch_compile"
KEYS = ("batch_size", "inputs", "hidden", "outputs")
SIZES = [
    (16, 256, 32, 10),
    (64, 1000, 100, 10),
    (256, 1024, 1024, 64),
    (512, 2048, 2048, 256),
    (2048, 4096, 4096, 512),
    (4096, 8192, 8192, 1024),
]
EFFORT = Effort(processes=3, rounds=4, turn_seconds=0.05)
TUTORIAL = SIZES[1]
BASELINE_AIM = 1.5  # times the higher of the two baselines, of torch_autograd at the tutorial's size
SHARE_AIM = 0.9  # of the speed of the matrix products alone, at the largest size
PARITY_STEPS = 6  # on two batches: two run as they are, then every step is a replay
PARITY_CHANGE = 0.01  # of the weights in a step, about: many times what float32 can tell apart


def main() -> None:
    options = _options()
    enter_interpreter("torch")
    environment = _environment(options.device)
    effort = Effort(options.processes, options.rounds, EFFORT.turn_seconds)
    sizes = [SIZES[options.only - 1]] if options.only else SIZES[: options.sizes]
    plan = [Size("two_layer", dict(zip(KEYS, each, strict=True)), _candidates(environment)) for each in sizes]
    taken, meanwhile = benchmark(plan, effort=effort, dtype="float32", environment=environment, on_process=print)
    if options.compile:
        taken += _compiled(environment, effort, after=1 + max(each.process for each in taken))
    where = provenance(environment, environment.device, environment.device_name) | meanwhile
    folder = options.output / re.sub(r"[^a-z0-9]+", "-", environment.device_name.lower()).strip("-")
    files.write_rows(folder / "samples.csv", HEADER, taken)
    files.write_json(folder / "machine.json", where)
    measured = samples.read(files.read_samples(folder / "samples.csv"), where)
    parity = [] if options.no_parity else _parity(plan, environment)
    for line in chain(heading(where), _report(measured, taken), parity):
        print(line, flush=True)
    print(f"every sample: {folder}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    number = range(1, len(SIZES) + 1)
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try it out")
    parser.add_argument("--sizes", type=int, choices=number, default=len(SIZES), help="how many, from the smallest")
    parser.add_argument("--only", type=int, choices=number, help="this one of the sizes alone")
    parser.add_argument("--processes", type=int, default=EFFORT.processes, help="fresh ones for each interpreter")
    parser.add_argument("--rounds", type=int, default=EFFORT.rounds, help="turns of each candidate in a process")
    parser.add_argument("--no-parity", action="store_true", help="leave out how far the weights are from float64's")
    parser.add_argument("--compile", action="store_true", help="afterwards torch.compile, at the tutorial's size")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    return parser.parse_args()


def _candidates(environment: Environment) -> list[str]:
    names = [*NAMES, *VARIANTS, *lower_bounds(environment, "torch"), "numpy_arrays"]
    if environment.device != "cpu":
        names += ["lower_bound/torch+tf32", *launch_floors(environment, NAMES), STATIC, "cpu/torch_tensors"]
    if os.environ.get("TENSORFLOW_PYTHON") or find_spec("tensorflow"):
        bounds = lower_bounds(environment, "tensorflow")
        names += ["tensorflow_graph", "tensorflow_graph+no_xla", *(bound for bound in bounds if bound not in names)]
    return names


def _compiled(environment: Environment, effort: Effort, *, after: int) -> list[Sample]:
    """Samples of torch.compile in processes of its own, numbered from `after` on. None, if it fails: it says why."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # or a pool of processes lives on, and counts as other processes
    size = Size("two_layer", dict(zip(KEYS, TUTORIAL, strict=True)), [COMPILED])
    try:
        found, _ = benchmark([size], effort=effort, dtype="float32", environment=environment, on_process=print)
    except UserError as error:
        print(f"torch.compile is left out: {str(error).splitlines()[-1]}")
        return []
    return [each._replace(process=each.process + after) for each in found]


def _report(measured: Benchmark, taken: list[Sample]) -> Iterator[str]:
    yield "The L2 cache is warm: a candidate takes its steps on the same two batches or 16 MB, again and again."
    for case in measured.cases:
        yield from ("", case.label, *_rows(case, measured.doubt))
    yield ""
    tutorial = measured.at("two_layer", dict(zip(KEYS, TUTORIAL, strict=True)))
    for name in NAMES:
        own = [each for each in taken if each.candidate == name]
        replayed = sum(each.replays for each in own) / sum(each.steps for each in own)
        yield f"{name}: {replayed:.0%} of the timed steps were replays of a CUDA graph"
        if tutorial:
            yield from _at_the_tutorials_size(name, tutorial, measured.doubt)
        yield from _at_the_largest_size(name, measured.cases[-1], measured.doubt)
    for other in () if measured.doubt else ("numpy_arrays", "cpu/torch_tensors"):
        if other in measured.cases[-1].seconds:
            beyond = crossover(measured.cases, other, NAMES[0])
            where = f"at {beyond.label} and beyond" if beyond else f"not at {measured.cases[-1].label}"
            yield f"{NAMES[0]}: faster than {other} {where}"
    finding = times_as_fast_as_numpy(CLAIMS[0], Run(measured.cases, tutorial, {}, measured.provenance))
    yield f"“{CLAIMS[0].text}” {finding.verdict}: {finding.text}{f' ({measured.doubt})' if measured.doubt else ''}"


def _at_the_tutorials_size(name: str, case: Case, doubt: str) -> Iterator[str]:
    """A captured step beside its two baselines, what capturing it costs, and what replaying it buys."""
    yield f"{name}: {1e6 * case.median(name):.1f} µs a step at the tutorial's size"
    baselines = [each for each in (case.lower_bound(name), case.launch_floor(name)) if each]
    if case.launch_floor(name):
        higher = max(baselines, key=case.median)
        ratio = case.ratio(name, higher)
        aim = f"; aim ≤ {BASELINE_AIM} {mark(bool(ratio and ratio.value <= BASELINE_AIM))}" if ratio else ""
        yield f"{name}: {ratio or doubt} the higher of its baselines, {higher}{aim}"
    if cost := capture_cost(case, name):
        yield f"{name}: run eagerly a step takes {case.ratio(f'eager/{name}', name) or doubt} as long.{cost}"
    if STATIC.endswith(f"+{name}") and STATIC in case.seconds:
        yield f"{name}: with one graph for all batches a step takes {case.ratio(STATIC, name) or doubt} as long"


def _at_the_largest_size(name: str, case: Case, doubt: str) -> Iterator[str]:
    bound = case.lower_bound(name)
    share = case.ratio(bound, name) if bound else None
    if share is None:
        yield f"{name}: {doubt or 'there is no lower bound'}"
        return
    aim = f"aim ≥ {SHARE_AIM:.0%} {mark(share.value >= SHARE_AIM)}"
    shown = f"{share.value:.0%} ({share.low:.0%} … {share.high:.0%})"
    yield f"{name}: {shown} of the matrix products' speed at {case.label}; {aim}"


def _rows(case: Case, doubt: str) -> Iterator[str]:
    rows = [["", "µs a step", "quartiles", "of the lower bound", "of torch_autograd"]]
    for name, processes in case.seconds.items():
        middle, lower, upper = (f"{1e6 * each:.1f}" for each in spread(list(processes.values())))
        bare = name.startswith((*BASELINES, *ONCE))
        multiple = "" if bare else str(case.multiple(name) or doubt or "–")
        of_autograd = case.ratio(name, "torch_autograd") if not bare and name != "torch_autograd" else None
        rows.append([name, middle, f"{lower} … {upper}", multiple, str(of_autograd or "")])
    return columns(rows)


def _parity(plan: list[Size], environment: Environment) -> Iterator[str]:
    """How far each row's weights are from the float64 reference after a few steps, at each size."""
    yield from ("", f"Parity: relative error, against float64, of the weights' change in {PARITY_STEPS} steps")
    rows = [["", *(" × ".join(map(str, size.sizes.values())) for size in plan)]]
    errors: dict[str, list[str]] = {}
    for size in plan:
        weights, chunk = draw("two_layer", SimpleNamespace(**size.sizes), "float32")
        chunk = {key: array[:2] for key, array in chunk.items()}
        rate, expected = _reference(weights, chunk)
        for name in size.candidates:
            if not name.startswith((*BASELINES, "tensorflow")):
                candidate = Candidate(name, "two_layer", environment, weights, learning_rate=rate)
                candidate.place(chunk)
                with candidate.settings():
                    candidate.run(PARITY_STEPS)
                    found = candidate.loop.weights()
                error = max(_norm(found[key] - expected[key]) / _norm(expected[key] - weights[key]) for key in weights)
                errors.setdefault(name, []).append(f"{error:.1e}")
    yield from columns(rows + [[name, *each] for name, each in errors.items()])


def _reference(weights: Mapping[str, Array], chunk: Mapping[str, Array]) -> tuple[float, dict[str, Array]]:
    """A learning rate at which a step changes the weights by about PARITY_CHANGE; the weights after PARITY_STEPS."""
    problem = load_problem("two_layer")
    expected = {key: array.astype(np.float64) for key, array in weights.items()}
    rate = 0.0
    for step in range(PARITY_STEPS):
        _, gradients = problem.loss_and_gradients(expected, *(each[step % 2] for each in chunk.values()))
        rate = rate or PARITY_CHANGE * min(_norm(expected[key]) / _norm(gradients[key]) for key in expected)
        expected = {key: expected[key] - rate * gradients[key] for key in expected}
    return rate, expected


def _norm(array: Any) -> float:
    return float(np.linalg.norm(array))


def _environment(device: str) -> Environment:
    name, driver = cpu_name(), None
    if device != "cpu":
        found, index = gpus.find(), int(device.partition(":")[2] or 0)
        if gpus.pynvml is None:
            found = found._replace(devices=_as_torch_sees_them())
        if index >= len(found.devices):
            there = ", ".join(each.name for each in found.devices) or found.absence
            raise UserError(
                f"there is no {device}; found: {there}. Run it on a machine with an NVIDIA GPU, or try it out with "
                "--device cpu."
            )
        name, driver = found.devices[index].name, found.driver
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


def _as_torch_sees_them() -> list[gpus.Device]:
    import torch

    count = torch.cuda.device_count()
    return [gpus.Device("", torch.cuda.get_device_name(index)) for index in range(count)]


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"ERROR: {error}")
    except Exception as error:
        if sentence := out_of_memory(error):
            sys.exit(f"ERROR: {sentence}")
        raise
