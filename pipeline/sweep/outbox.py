"""The finished experiments that MLflow does not show yet. A sweep logs them, and the next sweep tries again those that
failed."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from pipeline import files
from pipeline.errors import UserError
from pipeline.git import check_out_results, clone_at, git
from pipeline.sweep import queue
from pipeline.tracking.runs import log_failure
from pipeline.tracking.store import connect

LOGS = Path(".dvc/tmp/sweep")  # the output of each experiment, and its environment.json
OUTBOX = Path("mlruns/outbox")  # a file for each ref: why the experiment failed, or nothing


def add(ref: str, failure: str = "") -> None:
    """Put an experiment into the outbox. If it failed, it will be logged as a failed run."""
    files.write_bytes(OUTBOX / ref, failure.encode())


def log_all() -> bool:
    """Log each experiment of the outbox. Returns whether all could be logged. An experiment that cannot be logged gives
    a warning, and the next is tried. If the store cannot be reached, none is tried.
    """
    succeeded = True
    for path in sorted(OUTBOX.rglob("*"), key=lambda path: path.stat().st_mtime):
        if path.is_file() and not path.name.endswith(files.PART):
            try:
                logged, reason = _log(str(path.relative_to(OUTBOX)), path.read_text(encoding="utf-8")), "see above"
            except Exception as error:  # any error of DVC, git or the disk
                logged, reason = False, str(error)
            if logged:
                path.unlink()
                continue
            remedy = f"The next `make sweep` tries again; rm {shlex.quote(str(path))} discards it."
            print(
                f"WARNING: experiment {path.name} was not logged: {reason.removesuffix('.')}. {remedy}", file=sys.stderr
            )
            succeeded = False
            try:
                connect()
            except UserError:
                break
    return succeeded


def _log(ref: str, failure: str) -> bool:
    name = ref.rpartition("/")[2]
    if failure:
        return log_failure(name, failure)
    if ref not in queue.refs():
        return True  # the user has removed it
    with files.scratch(Path(".dvc/tmp/log", name)) as folder:
        clone = clone_at(git("rev-parse", ref), folder / "clone")
        check_out_results(clone)
        shutil.copy(LOGS / f"{name}.json", clone / files.ENVIRONMENT)
        done = subprocess.run(
            [sys.executable, "-m", "stages.track"],
            cwd=clone,
            env=os.environ | {"DVC_ROOT": str(Path.cwd()), "DVC_EXP_NAME": name},
            check=False,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
        )
    sys.stderr.write(done.stderr)
    return done.returncode == 0 and "WARNING: MLflow" not in done.stderr
