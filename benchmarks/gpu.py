"""`make bench-gpu`: the two-layer lessons on a GPU, beside cuBLAS alone, NumPy and PyTorch on the host, and variants.

Answers: what a captured step takes at the tutorial's size; how near the largest comes to its matrix products alone; at
which size a step is 50 times as fast as NumPy's on the same host; and what TF32, deterministic kernels and
`torch.compile` change. Needs a Python with torch and NumPy, and nothing else: `python -m benchmarks.gpu` where `make
bench-gpu` has no Docker. TensorFlow's lesson is measured where there is TensorFlow, in its own interpreter.

Leaves the samples in docs/results/DEVICE. `--device cpu` tries it out where there is no GPU.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.table import columns, heading, mark
from pipeline import files
from pipeline.contract import load_problem
from pipeline.environment import Environment, available_cpus, cpu_name, enter_interpreter
from pipeline.errors import UserError
from pipeline.measuring import samples
from pipeline.measuring.benchmark import Effort, Size, benchmark
from pipeline.measuring.candidates import Candidate, draw, lower_bounds
from pipeline.measuring.samples import HEADER, Benchmark, Case
from pipeline.provenance import beside, provenance
from pipeline.showing.claims import CLAIMS
from pipeline.showing.findings import Run, crossover, times_as_fast_as_numpy

NAMES = ["torch_tensors", "torch_autograd", "torch_function"]
VARIANTS = ["torch_autograd+nondeterministic", "torch_autograd+tf32"]
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
EFFORT = Effort(processes=3, rounds=6, turn_seconds=0.02)
TUTORIAL = SIZES[1]
TUTORIAL_AIM = 25e-6  # seconds a step
SHARE_AIM = 0.9  # of the speed of the matrix products alone, at the largest size
PARITY_STEPS = 8  # more than are taken before a graph is replayed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try it out")
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many of the sizes, from the smallest")
    parser.add_argument("--processes", type=int, default=EFFORT.processes, help="fresh ones for each interpreter")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    enter_interpreter("torch")
    environment = _environment(options.device)
    effort = EFFORT._replace(processes=options.processes)
    sizes = SIZES[: options.sizes]
    plan = [Size("two_layer", dict(zip(KEYS, each, strict=True)), _candidates(environment)) for each in sizes]
    taken, others = benchmark(plan, effort=effort, dtype="float32", environment=environment, on_process=print)
    where = provenance(environment, environment.device, environment.device_name)
    where |= beside(others)
    folder = options.output / re.sub(r"[^a-z0-9]+", "-", environment.device_name.lower()).strip("-")
    files.write_rows(folder / "samples.csv", HEADER, taken)
    files.write_json(folder / "machine.json", where)
    replayed = {
        name: sum(each.replays for each in taken if each.candidate == name)
        / sum(each.steps for each in taken if each.candidate == name)
        for name in NAMES
    }
    measured = samples.read(files.read_samples(folder / "samples.csv"), where)
    for line in chain(heading(where), _report(measured, replayed), _parity(plan, environment)):
        print(line, flush=True)
    print(f"every sample: {folder}")


def _candidates(environment: Environment) -> list[str]:
    names = [*NAMES, *VARIANTS, *lower_bounds(environment, "torch"), "numpy_arrays"]
    if environment.device != "cpu":
        names += [f"cpu/{name}" for name in NAMES]
    if os.environ.get("TENSORFLOW_PYTHON") or find_spec("tensorflow"):
        bounds = lower_bounds(environment, "tensorflow")
        names += ["tensorflow_graph", *(bound for bound in bounds if bound not in names)]
    return names + [COMPILED] * _can_compile(environment)


def _can_compile(environment: Environment) -> bool:
    smallest = Size("two_layer", dict(zip(KEYS, SIZES[0], strict=True)), [COMPILED])
    try:
        benchmark([smallest], effort=Effort(1, 1, 0.001), dtype="float32", environment=environment)
    except UserError as error:
        print(f"torch.compile is left out: {str(error).splitlines()[-1]}")
        return False
    return True


def _report(measured: Benchmark, replayed: Mapping[str, float]) -> Iterator[str]:
    """`replayed` is the share of each candidate's timed steps that were replays of a CUDA graph."""
    yield "The L2 cache is warm: a candidate takes its steps on the same two batches or 16 MB, again and again."
    for case in measured.cases:
        yield from ("", case.label, *_rows(case, measured.doubt))
    yield ""
    tutorial = measured.at("two_layer", dict(zip(KEYS, TUTORIAL, strict=True)))
    largest = measured.cases[-1]
    for name in NAMES:
        yield f"{name}: {replayed[name]:.0%} of the timed steps were replays of a CUDA graph"
        if tutorial:
            step = tutorial.median(name)
            aim = f"aim ≤ {1e6 * TUTORIAL_AIM:.0f} µs {mark(step <= TUTORIAL_AIM)}"
            yield f"{name}: {1e6 * step:.1f} µs a step at the tutorial's size; {aim}"
        if multiple := largest.multiple(name):
            share = 1 / multiple.value
            aim = f"aim ≥ {SHARE_AIM:.0%} {mark(share >= SHARE_AIM)}"
            yield f"{name}: {share:.0%} of the matrix products' speed at {largest.label}; {aim}"
        for other in ("numpy_arrays", f"cpu/{name}"):
            if other in largest.seconds:
                beyond = crossover(measured.cases, other, name)
                where = f"at {beyond.label} and beyond" if beyond else f"not at the largest size, {largest.label}"
                yield f"{name}: faster than {other} {where}"
    finding = times_as_fast_as_numpy(CLAIMS[0], Run(measured.cases, tutorial, {}, measured.provenance["device"]))
    yield f"“{CLAIMS[0].text}” {finding.verdict}: {finding.text}"


def _rows(case: Case, doubt: str) -> Iterator[str]:
    rows = [["", "µs a step", "of the lower bound", "of torch_autograd"]]
    for name in case.seconds:
        multiple = "" if name.startswith(("lower_bound/", "build/")) else str(case.multiple(name) or doubt)
        of_autograd = case.ratio(name, "torch_autograd") if name != "torch_autograd" else ""
        rows.append([name, f"{1e6 * case.median(name):.1f}", multiple, str(of_autograd or "")])
    return columns(rows)


def _parity(plan: list[Size], environment: Environment) -> Iterator[str]:
    """How far each row's weights are from the float64 reference after a few steps, at each size."""
    yield from ("", f"Parity: relative error, against float64, of the weights' change in {PARITY_STEPS} steps")
    rows = [["", *(" × ".join(map(str, size.sizes.values())) for size in plan)]]
    errors: dict[str, list[str]] = {}
    for size in plan:
        weights, chunk = draw("two_layer", SimpleNamespace(**size.sizes), "float32")
        chunk = {key: array[:2] for key, array in chunk.items()}
        expected: Any = weights
        for step in range(PARITY_STEPS):
            _, gradients = load_problem("two_layer").loss_and_gradients(
                expected, *(each[step % 2] for each in chunk.values())
            )
            expected = {key: expected[key] - 1e-3 * gradients[key] for key in expected}
        for name in size.candidates:
            if not name.startswith(("lower_bound/", "tensorflow")):
                candidate = Candidate(name, "two_layer", environment, weights)
                candidate.place(chunk)
                candidate.run(PARITY_STEPS)
                found = candidate.loop.weights()
                error = max(
                    float(np.linalg.norm(found[key] - expected[key]) / np.linalg.norm(expected[key] - weights[key]))
                    for key in weights
                )
                errors.setdefault(name, []).append(f"{error:.1e}")
    yield from columns(rows + [[name, *each] for name, each in errors.items()])


def _environment(device: str) -> Environment:
    name, driver = cpu_name(), None
    if device != "cpu":
        index = device.partition(":")[2] or "0"
        query = ["nvidia-smi", f"--id={index}", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        try:
            name, driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().split(", ")
        except (OSError, subprocess.CalledProcessError):
            raise UserError(
                f"no NVIDIA GPU answers as {device} (asked: {' '.join(query[:2])}). "
                "Run it on a machine with one, or try it out with --device cpu."
            ) from None
    return Environment(
        device=device,
        device_name=name,
        cpu_name=cpu_name(),
        driver=driver,
        threads=available_cpus(),
        precision="highest",
        deterministic=True,
        python=platform.python_version(),
        versions={package: version(package) for package in ("numpy", "torch")},
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"ERROR: {error}")
