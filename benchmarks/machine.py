"""What a measurement was taken on, what else the machine was doing meanwhile, and how the figures are shown."""

import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pipeline import records
from pipeline.environment import Environment
from pipeline.statistics import Estimate

BLAS_VARIABLES = ("OPENBLAS_", "MKL_", "OMP_")


def keep(folder: Path, environment: Environment, others: float, file: str, samples: Sequence[NamedTuple]) -> None:
    """Leave every sample in `file` of the folder, and machine, date, commit and versions in machine.json."""
    facts = {
        "measured_on": platform.node(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": records.git("rev-parse", "HEAD"),
        "environment": asdict(environment),
        "variables": _blas_variables(),
        "cpus_of_other_processes": round(others, 2),
    }
    records.write_json(folder / "machine.json", facts)
    records.write_rows(folder / file, ",".join(samples[0]._fields), samples)


def heading(environment: Environment, others: float) -> Iterator[str]:
    versions = ", ".join(f"{framework} {version}" for framework, version in environment.versions.items())
    yield f"{environment.cpu_name}, {environment.threads} threads, float32; {versions}"
    yield f"Other processes took {others:.2f} CPUs meanwhile"
    if variables := " ".join(f"{key}={value}" for key, value in _blas_variables().items()):
        yield f"Set in the environment, and with it the floor: {variables}"


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def interval(found: Estimate) -> str:
    return f"{found.value:.2f} ({found.low:.2f}–{found.high:.2f})"


def percent(share: Estimate) -> str:
    return f"{share.value:.0%} ({share.low:.0%}–{share.high:.0%})"


def _blas_variables() -> dict[str, str]:
    """As this process was given them: pipeline/__init__.py sets one of its own."""
    entries = (entry.partition("=") for entry in Path("/proc/self/environ").read_text().split("\0"))
    return {key: value for key, _, value in sorted(entries) if key.startswith(BLAS_VARIABLES)}
