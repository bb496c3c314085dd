"""NumPy: the CPU, with as many BLAS threads as the environment grants."""

from threadpoolctl import threadpool_limits

from pipeline.environment import Environment
from pipeline.runtimes import peak_process_bytes as peak_memory_bytes

__all__ = ["peak_memory_bytes", "start", "synchronize"]


def start(environment: Environment) -> str:
    threadpool_limits(environment.threads)
    return environment.device_of("numpy")[0]


def synchronize() -> None:
    """NumPy's calls return when their work is done."""
