"""After a stage that failed: its last good outputs, which DVC took away before it started the stage, are there again,
and a training that failed is a run in MLflow, marked so."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import yaml

from pipeline import files
from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.tracking import view


def restore_outputs() -> None:
    """From DVC's cache, what dvc.lock says the stage last left. Without DVC nothing was taken."""
    name, lock = os.environ.get("DVC_STAGE"), Path("dvc.lock")
    if not name or not lock.is_file():
        return
    outputs = yaml.safe_load(lock.read_text())["stages"].get(name, {}).get("outs", [])
    missing = [output["path"] for output in outputs if not Path(output["path"]).exists()]
    if not missing:
        return
    from dvc.api import DVCFileSystem  # half a second

    files = DVCFileSystem(".")
    for path in missing:
        with suppress(FileNotFoundError):  # a fresh clone has the lock, but never had the results
            files.get(path, path, recursive=True)


def main(error: str, stage: str, *arguments: str) -> None:
    restore_outputs()
    if stage == "train" and arguments:
        with suppress(UserError):  # what is wrong with params.yaml or the name is what the stage has just said
            params = load_params()
            problem = params.problem_of(arguments[0])
            view.record_failure(arguments[0], problem, params, files.read_environment(), error)


if __name__ == "__main__":
    main(*sys.argv[1:])
