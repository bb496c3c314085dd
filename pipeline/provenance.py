"""What a measurement was taken on, when, and from which commit: the one place that says so, for a training's timing as
for a benchmark."""

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
    # dvc.lock changes with every stage that ran; what else has changed is not what the commit says.
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
        # In a sweep with SHARE others ran beside it.
        "measured_on": platform.node() + ", shared" * (os.environ.get("PIPELINE_SWEEP") == "shared"),
        "run_began": current_run() or now,
        # Where the files travelled without .git, PIPELINE_COMMIT says which commit they are.
        "commit": os.environ.get("PIPELINE_COMMIT")
        or git("rev-parse", "HEAD", default="unknown") + " with changes" * bool(changed),
    }


def begin_run() -> None:
    """Note that a run of the pipeline begins now. Nothing depends on it but what is said of restored measurements."""
    if RUN.parent.is_dir():
        write_json(RUN, {"began": timestamp()})


def current_run() -> str | None:
    return read_json(RUN)["began"] if RUN.is_file() else None
