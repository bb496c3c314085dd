"""One module per framework for what is no maths: devices, threads, determinism, synchronising. All offer the same:

start(environment) -> str      set the framework up; returns its own name for the device
synchronize()                  return when the device has done all that was asked of it
peak_memory_bytes() -> int     the most memory in use so far: the device's for CUDA, else the process's
"""

from pathlib import Path


def peak_process_bytes() -> int:
    """The most memory that this process has had resident, mapped files included."""
    # Not resource.getrusage: its figure is inherited across exec, so a small stage would report its parent's peak.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
