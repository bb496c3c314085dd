"""Benchmarks that are run by hand, besides the pipeline's benchmark. This file writes their samples and prints
results."""

from collections.abc import Iterator
from pathlib import Path

import pipeline  # before NumPy: the import sets how long OpenBLAS's idle threads spin
from pipeline import files
from pipeline.benchmark.monitor import sentence
from pipeline.benchmark.samples import HEADER, Benchmark, Sample
from pipeline.results import BenchmarkProvenance


def problem_of(lesson: str) -> str:
    """The folder of a lesson."""
    (file,) = Path(pipeline.__file__).parent.glob(f"lessons/*/{lesson}.py")
    return file.parent.name


def keep(samples: list[Sample], where: BenchmarkProvenance, table: Path, facts: Path) -> None:
    files.write_rows(table, HEADER, samples)
    where.write(facts)


def heading(measured: Benchmark) -> Iterator[str]:
    """The machine and the method of the samples."""
    where = measured.provenance
    versions = ", ".join(f"{framework} {version}" for framework, version in where.versions.items())
    device = f"{where.device_name}, host " if where.device != "cpu" else ""
    yield f"{device}{where.cpu_name}, {where.threads} threads, float32; {versions}"
    others = max(process.cpus_of_other_processes for process in where.processes)
    stolen = max(process.stolen_cpus for process in where.processes)
    yield (
        f"{len(where.processes)} processes; in the worst, other processes took {others:.2f} of {where.cpus} CPUs, and "
        f"a virtual machine's host {stolen:.2f}. It stopped: {where.stopped}."
    )
    if measured.gpu:
        yield f"The GPU meanwhile: {sentence(measured.gpu)}"
    if where.variables:
        yield f"Set in the environment: {' '.join(f'{key}={value}' for key, value in where.variables.items())}"


def mark(met: bool) -> str:
    return "✓" if met else "✗"
