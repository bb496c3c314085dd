"""NumPy: the CPU, with as many BLAS threads as the environment grants."""

import ctypes
from collections.abc import Iterable
from contextlib import nullcontext as eagerly
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import runtimes
from pipeline.contract import Array, Factors, Implementation, Weights
from pipeline.environment import Environment
from pipeline.errors import UserError
from pipeline.runtimes import Cycle, keep_freed_memory
from pipeline.runtimes import peak_process_bytes as peak_memory_bytes

__all__ = [
    "CPU_ONLY",
    "GRAPHS",
    "Loop",
    "PythonLoop",
    "aligned",
    "eagerly",
    "multiply",
    "peak_memory_bytes",
    "start",
    "synchronize",
    "to_host",
]

CPU_ONLY = True
GRAPHS = ()
ALIGNMENT = 64  # bytes: a cache line


def start(environment: Environment) -> str:
    keep_freed_memory()
    set_blas_threads(environment.threads)
    return "cpu"


def set_blas_threads(threads: int) -> None:
    """Raises UserError where NumPy's BLAS cannot be told."""
    if find_spec("threadpoolctl"):
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads)
        return
    # A GPU machine with torch and NumPy and nothing else: NumPy's own wheels bring OpenBLAS under a name of their own.
    maps = Path("/proc/self/maps").read_text().splitlines()
    libraries = {line.split()[-1] for line in maps if "scipy_openblas" in line}
    if not libraries:
        raise UserError("The number of threads of NumPy's BLAS cannot be set. Install threadpoolctl.")
    for library in libraries:
        loaded = ctypes.CDLL(library)
        for name in ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads"):
            if hasattr(loaded, name):
                getattr(loaded, name)(threads)


def aligned(array: Array) -> Array:
    """A copy that begins at a multiple of ALIGNMENT bytes. NumPy's own memory begins at a multiple of 16."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class PythonLoop(runtimes.Loop):
    """The weights begin at a cache line. Elsewhere AVX-512 reads each piece of them from two lines, and where they lie
    is luck: of two instances of one program one took 330 µs a step and the other 430, as long as a process lasted.
    """

    def __init__(self, implementation: Implementation, names: Iterable[str]) -> None:
        super().__init__(implementation, names)
        for name in self.names:
            setattr(implementation, name, aligned(getattr(implementation, name)))

    def gather(self, losses: list[Any]) -> Array:
        return np.array(losses)

    def weights(self) -> Weights:
        return {name: getattr(self.implementation, name).copy() for name in self.names}


Loop = PythonLoop


def to_host(losses: Array) -> Array:
    return losses


def multiply(batches: list[Factors]) -> Cycle:
    out = {(len(left), right.shape[1]): left @ right for factors in batches for left, right in factors}

    def batch(factors: Factors) -> None:
        for left, right in factors:
            np.matmul(left, right, out=out[len(left), right.shape[1]])

    return Cycle([partial(batch, factors) for factors in batches])


def synchronize() -> None:
    """NumPy's calls return when their work is done."""
