"""`make bench-gpu`: the PyTorch lessons on a GPU, beside cuBLAS alone, and NumPy and PyTorch on the host, in turn.

Answers: from which size a step is 50 times as fast as NumPy's on the same host; what a step takes at the tutorial's
size; how near the largest comes to its matrix products alone; and what deterministic kernels and TF32 change. Needs a
Python with torch and NumPy, and nothing else: `python -m benchmarks.gpu` where `make bench-gpu` has no Docker.

Leaves every sample in docs/results/DEVICE/NAME.csv, and machine, versions and date beside them. `--device cpu` tries it
out where there is no GPU.
"""

import argparse
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

from pipeline import findings, records
from pipeline.benchmark import benchmark
from pipeline.environment import Environment, available_cpus, cpu_name, enter_interpreter
from pipeline.errors import UserError
from pipeline.statistics import Estimate, ratio, spread, verdict

NAMES = ("torch_tensors", "torch_autograd", "torch_function")
SIZES = [
    (16, 256, 32, 10),
    (64, 1000, 100, 10),
    (256, 1024, 1024, 64),
    (512, 2048, 2048, 256),
    (2048, 4096, 4096, 512),
    (4096, 8192, 8192, 1024),
]
TUTORIAL = SIZES[1]
TUTORIAL_AIM = 40e-6  # seconds a step
FLOOR_AIM = 0.9  # of the floor, at the largest size


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try it out")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each implementation, all sizes together")
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many of the sizes, from the smallest on")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    enter_interpreter("torch")
    environment = _environment(options.device)
    folder = options.output / re.sub(r"[^a-z0-9]+", "-", environment.device_name.lower()).strip("-")
    cases = [_case(*size) for size in SIZES[: options.sizes]]
    print(
        f"{environment.device_name}, host {environment.cpu_name}, {environment.threads} threads, {environment.versions}"
    )
    for name in NAMES:
        measured = _measure(name, cases, options.seconds, environment, folder / f"{name}.csv")
        for line in _answers(name, measured, environment):
            print(line, flush=True)
    name = "torch_autograd"
    for variant, other in (
        ("nondeterministic", replace(environment, deterministic=False)),
        ("tf32", replace(environment, precision="tf32")),
    ):
        default = findings.cases(records.read_rows(folder / f"{name}.csv"))
        changed = _measure(name, cases, options.seconds, other, folder / f"{name}-{variant}.csv")
        for one, two in zip(default, changed, strict=True):
            # TF32 makes the floor faster as well, so there it is no yardstick.
            compared = _plain(two, one) if variant == "tf32" else findings.against(two, one)
            print(f"{name}, {variant}: {one.label}: {findings.times(compared)} as long ({verdict(compared)})")
    facts = asdict(environment) | {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "measured_on": platform.node(),
        "commit": records.git("rev-parse", "HEAD"),
    }
    records.write_json(folder / "machine.json", facts)
    print(f"every sample: {folder}")


def _measure(name: str, cases: list, seconds: float, environment: Environment, file: Path) -> list[findings.Case]:
    samples = list(benchmark(name, "two_layer", cases, seconds=seconds, dtype="float32", environment=environment))
    records.write_samples(file, samples)
    return findings.cases(records.read_rows(file))


def _answers(name: str, measured: list[findings.Case], environment: Environment) -> Iterator[str]:
    for case in measured:
        step = spread(case.seconds["step"]).median
        beside = "".join(
            f", {other} {findings.times(ratio(case.seconds[other], case.seconds['step']))}"
            for other in ("cpu", "numpy_arrays")
            if other in case.seconds
        )
        yield f"{name}: {case.label}: {1e6 * step:.1f} µs a step, {findings.times(case.multiple)} the floor{beside}"
        if tuple(case.sizes.values()) == TUTORIAL:
            aim = f"aim ≤ {1e6 * TUTORIAL_AIM:.0f} µs {_mark(step <= TUTORIAL_AIM)}"
            yield f"{name}: the tutorial's size: {1e6 * step:.1f} µs; {aim}"
    fraction = 1 / measured[-1].multiple.value
    aim = f"aim ≥ {FLOOR_AIM:.0%} {_mark(fraction >= FLOOR_AIM)}"
    yield f"{name}: {fraction:.0%} of the floor's speed at {measured[-1].label}; {aim}"
    if environment.device != "cpu":
        claim = findings.gpu_claim(measured, environment.device)
        yield f"{name}: “{claim.text}” {claim.verdict}: {claim.finding}"


def _plain(one: findings.Case, other: findings.Case) -> Estimate:
    rounds = min(len(one.seconds["step"]), len(other.seconds["step"]))
    return ratio(one.seconds["step"][:rounds], other.seconds["step"][:rounds])


def _mark(met: bool) -> str:
    return "✓" if met else "✗"


def _case(batch_size: int, inputs: int, hidden: int, outputs: int) -> SimpleNamespace:
    return SimpleNamespace(batch_size=batch_size, inputs=inputs, hidden=hidden, outputs=outputs)


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
