"""NumPy: the CPU, with as many BLAS threads as the environment grants."""

import os
from collections.abc import Callable
from itertools import cycle, islice

import numpy as np

from pipeline.contract import Array, Factors, Implementation
from pipeline.environment import Environment
from pipeline.runtimes import peak_process_bytes as peak_memory_bytes

__all__ = ["eagerly", "multiply", "peak_memory_bytes", "prepare", "start", "synchronize", "to_host"]

eagerly = None


def start(environment: Environment) -> str:
    if environment.threads != len(os.sched_getaffinity(0)):  # which are those that BLAS takes unless told
        from threadpoolctl import threadpool_limits

        threadpool_limits(environment.threads)
    return environment.device_of("numpy")[0]


def prepare(implementation: Implementation) -> Implementation:
    return implementation


def to_host(array: Array) -> Array:
    return array


def multiply(batches: list[Factors]) -> Callable[[int], None]:
    out = {(len(left), right.shape[1]): left @ right for factors in batches for left, right in factors}

    def steps(count: int) -> None:
        for factors in islice(cycle(batches), count):
            for left, right in factors:
                np.matmul(left, right, out=out[len(left), right.shape[1]])

    return steps


def synchronize() -> None:
    """NumPy's calls return when their work is done."""
