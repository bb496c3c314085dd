"""Child processes: their environment variables, and when they end. Only the standard library is imported, for a quick
start of `dvc`."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1  # as linux/prctl.h has it
# Variables that DVC, a user of MLflow, or this project sets for one run, and that another run must not inherit.
OF_ONE_RUN = ("DVC_ROOT", "DVC_STAGE", "DVC_EXP", "MLFLOW_TRACKING", "MLFLOW_UI", "MLFLOW_LIVE", "PIPELINE_")

# Python's variables change which modules are imported and how. These few do not.
HARMLESS = {"PYTHONDONTWRITEBYTECODE", "PYTHONFAULTHANDLER", "PYTHONPYCACHEPREFIX", "PYTHONUNBUFFERED"}
# Variables that name code to run before a script, or change how a shell reads a script.
OF_SHELLS = {"BASHOPTS", "BASH_ENV", "CDPATH", "ENV", "SHELLOPTS"}
# Where git looks for the repository, as `git rev-parse --local-env-vars` lists them. git sets some of these for hooks
# and for `git rebase --exec`. git's settings (GIT_CONFIG_…) stay: they may hold a user's safe.directory.
OF_REPOSITORIES = {
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_NAMESPACE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
}


def end_with_parent(number: signal.Signals) -> None:
    """Let the kernel send this process a signal when its parent ends. The setting survives an exec, but not a fork."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def without_foreign_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables, without those that would make Python, bash or git use other folders than this checkout."""
    return {
        key: value
        for key, value in variables.items()
        if (not key.startswith("PYTHON") or key in HARMLESS)
        and not key.startswith("BASH_FUNC_")
        and key not in OF_SHELLS | OF_REPOSITORIES
    }


def own_environment() -> dict[str, str]:
    """This process's environment variables for Python in a child process.

    Files are UTF-8 there, whatever the locale. A character that the terminal lacks is shown as `?`.
    """
    terminal = getattr(sys.__stdout__, "encoding", None) or "utf-8"
    return without_foreign_variables(os.environ) | {"PYTHONUTF8": "1", "PYTHONIOENCODING": f"{terminal}:replace"}


def environment_for_another_run() -> dict[str, str]:
    """The same, without the variables of the current run."""
    return {key: value for key, value in own_environment().items() if not key.startswith(OF_ONE_RUN)}


def run_dvc(folder: Path | str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run DVC in another checkout. This needs no lock."""
    return _run(folder, ["-P", "-m", "dvc", *arguments], options)


def run_stage(folder: Path | str, stage: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a stage in another checkout without DVC."""
    return _run(folder, ["-m", f"stages.{stage}", *arguments], options)


def _run(folder: Path | str, arguments: list[str], options: Any) -> subprocess.CompletedProcess[str]:
    command, environment = [sys.executable, *arguments], environment_for_another_run()
    return subprocess.run(
        command, cwd=folder, env=environment, encoding="utf-8", errors="replace", check=False, **options
    )
