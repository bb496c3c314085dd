"""NumPy: on the CPU, with the number of BLAS threads in the environment."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline import runtimes
from pipeline.contract import Array, Factors, Implementation, Weights
from pipeline.runtimes import Cycle

ALIGNMENT = 64  # bytes: a cache line


def aligned(array: Array) -> Array:
    """A copy that begins at a multiple of ALIGNMENT bytes. NumPy's own memory begins at a multiple of 16."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class PythonLoop(runtimes.Loop):
    """A loop whose weights begin at a cache line. At other addresses, AVX-512 reads each vector from two cache lines,
    and the addresses are random: one process took 330 µs a step, another process of the same program 430 µs.
    """

    def __init__(self, implementation: Implementation, names: Iterable[str], device: str) -> None:
        super().__init__(implementation, names, device)
        for name in self.names:
            setattr(implementation, name, aligned(getattr(implementation, name)))

    def gather(self, losses: list[Any]) -> Array:
        return np.array(losses)

    def to_host(self, losses: Array) -> Array:
        return losses

    def weights(self) -> Weights:
        return {name: getattr(self.implementation, name).copy() for name in self.names}


class Runtime(runtimes.Runtime):
    """NumPy's calls return when their work is done, so there is nothing to synchronize."""

    cpu_only = True
    python_loop = PythonLoop

    def apply(self) -> None:
        super().apply()
        threadpool_limits(self.environment.threads)

    def multiply(self, batches: list[Factors]) -> Cycle:
        out = {(len(left), right.shape[1]): left @ right for factors in batches for left, right in factors}

        def batch(factors: Factors) -> None:
            for left, right in factors:
                np.matmul(left, right, out=out[len(left), right.shape[1]])

        return Cycle([partial(batch, factors) for factors in batches])
