"""Child processes: what they inherit, and when they end."""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1  # as linux/prctl.h has it
# What DVC, a user of MLflow, or this project sets for one run, and another run must not inherit.
OF_ONE_RUN = ("DVC_ROOT", "DVC_STAGE", "DVC_EXP", "MLFLOW_TRACKING", "MLFLOW_UI", "MLFLOW_LIVE", "PIPELINE_")


def end_with_parent(number: signal.Signals) -> None:
    """Have this process sent a signal when its parent ends, however that ends. It outlives an exec, but not a fork."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def environment_for_another_run() -> dict[str, str]:
    """This process's environment variables, without those of its own run."""
    return {key: value for key, value in os.environ.items() if not key.startswith(OF_ONE_RUN)}
