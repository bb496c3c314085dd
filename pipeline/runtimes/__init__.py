"""One module per framework for what is no maths: devices, threads, determinism, and what makes a step faster without
changing it. All offer the same:

start(environment) -> str       set the framework up, with the device's context; returns its own name for the device
prepare(implementation)         the implementation, in the form in which its steps run fastest here
eagerly                         a context in which graphs run as the Python they were traced from; None without graphs
to_host(array) -> Array         what `train` returned, in host memory
multiply(batches) -> function   steps(n) computes the matrix products of n batches, round and round: the floor of a step
synchronize()                   return when the device has done all that was asked of it
peak_memory_bytes() -> int      the most memory in use so far: the device's for CUDA, else the process's
"""

from pathlib import Path


def peak_process_bytes() -> int:
    """The most memory that this process has had resident, mapped files included."""
    # Not resource.getrusage: its figure is inherited across exec, so a small stage would report its parent's peak.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
