"""What came home, shown in MLflow: by one sender, from home. What cannot be sent now is sent by the next sweep."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from pipeline import files
from pipeline.sweep import queue
from pipeline.tracking import view

LOGS = Path(".dvc/tmp/sweep")  # what each experiment printed, and its environment.json
UNDELIVERED = Path("mlruns/undelivered.json")  # by ref what MLflow does not show yet: why it failed, "" if it did not
_WRITING = threading.Lock()  # of UNDELIVERED, by a sweep and its sender


def deliver() -> bool:
    """Send each that is undelivered. Stops at the first that cannot be sent: a warning said why. Returns whether all
    that there were at the start are sent."""
    for ref, failure in _undelivered().items():
        # It may have been removed since.
        sent = view.record_failed_experiment(_name(ref), failure) if failure else ref not in queue.refs() or _sent(ref)
        if not sent:
            return False
        with _WRITING:
            files.write_json(UNDELIVERED, {each: why for each, why in _undelivered().items() if each != ref})
    return True


def remember(ref: str, failure: str = "") -> None:
    """That an experiment is to be delivered, and where it failed, why."""
    with _WRITING:
        files.write_json(UNDELIVERED, _undelivered() | {ref: failure})


def _undelivered() -> dict[str, str]:
    return files.read_json(UNDELIVERED) if UNDELIVERED.exists() else {}


def _name(ref: str) -> str:
    return ref.rpartition("/")[2]


def _sent(ref: str) -> bool:
    """Have `track` send it from a clone that shares this one's objects and cache."""
    name = _name(ref)
    with files.scratch(Path(".dvc/tmp/deliver", name)) as scratch:
        clone = scratch / "clone"
        queue.git("clone", "--quiet", "--shared", "--no-checkout", ".", str(clone))
        queue.git("-C", str(clone), "fetch", "--quiet", str(Path.cwd()), ref)
        queue.git("-C", str(clone), "checkout", "--quiet", "FETCH_HEAD")
        cache = str(Path(".dvc/cache").resolve())
        queue.git("-C", str(clone), "config", "--file", ".dvc/config.local", "cache.dir", cache)
        checkout = [sys.executable, "-P", "-m", "dvc", "checkout", "--force", "--quiet"]
        subprocess.run(checkout, cwd=clone, check=True, capture_output=True)
        shutil.copy(LOGS / f"{name}.json", clone / files.ENVIRONMENT)
        done = subprocess.run(
            [sys.executable, "-m", "stages.track"],
            cwd=clone,
            env=os.environ | {"DVC_ROOT": str(Path.cwd()), "DVC_EXP_NAME": name},
            check=False,
            capture_output=True,
            text=True,
        )
        sys.stderr.write(done.stderr)
        return done.returncode == 0 and "WARNING: MLflow" not in done.stderr
