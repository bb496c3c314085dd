"""The provenance of a measurement: machine, time and commit. Trainings and benchmarks use it."""

import os
import platform
from pathlib import Path
from typing import Any

from pipeline.clock import timestamp
from pipeline.environment import Environment
from pipeline.files import read_json, write_json
from pipeline.git import git

RUN = Path(".dvc/tmp/run.json")  # when the current run of the pipeline began; written by its first stage


def provenance(environment: Environment, device: str, device_name: str) -> dict[str, Any]:
    """The fields of results.Provenance."""
    # Every stage changes dvc.lock, so that file does not count as a change of the commit.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", default="")
    now = timestamp()
    return {
        "device": device,
        "device_name": device_name,
        "cpu_name": environment.cpu_name,
        "threads": environment.threads,
        "precision": environment.precision,
        "deterministic": environment.deterministic,
        "python": environment.python,
        "versions": environment.versions,
        "variables": environment.variables,
        "measured_at": now,
        # In a sweep with SHARE other experiments ran at the same time.
        "measured_on": platform.node() + ", shared" * (os.environ.get("PIPELINE_SWEEP") == "shared"),
        "run_began": current_run() or now,
        # Without .git, as in an image, PIPELINE_COMMIT names the commit of the files.
        "commit": os.environ.get("PIPELINE_COMMIT")
        or git("rev-parse", "HEAD", default="unknown") + " with changes" * bool(changed),
    }


def begin_run() -> None:
    """Record that a run of the pipeline begins now. The report uses it to mark measurements of earlier runs."""
    if RUN.parent.is_dir():
        write_json(RUN, {"began": timestamp()})


def current_run() -> str | None:
    return read_json(RUN)["began"] if RUN.is_file() else None
