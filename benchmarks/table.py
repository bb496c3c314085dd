"""How the benchmarks' figures are printed: what they were taken on, and rows in columns."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.benchmark.monitor import sentence


def heading(where: Mapping[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{framework} {version}" for framework, version in where["versions"].items())
    device = f"{where['device_name']}, host " if where["device"] != "cpu" else ""
    yield f"{device}{where['cpu_name']}, {where['threads']} threads, float32; {versions}"
    yield (
        f"Other processes took {where['cpus_of_other_processes']:.2f} of {where['cpus']} CPUs meanwhile, "
        f"a virtual machine's host {where['stolen_cpus']:.2f}"
    )
    if where["gpu"]:
        yield f"The GPU meanwhile: {sentence(where['gpu'])}"
    if where["variables"]:
        yield f"Set in the environment: {' '.join(f'{key}={value}' for key, value in where['variables'].items())}"


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def mark(met: bool) -> str:
    return "✓" if met else "✗"
