"""What the operating system is asked to do for a process."""

import ctypes
import signal

PR_SET_PDEATHSIG = 1  # as linux/prctl.h has it


def end_with_parent(number: signal.Signals) -> None:
    """Have this process sent a signal when its parent ends, however that ends. It outlives an exec, but not a fork."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
