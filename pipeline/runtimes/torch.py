"""PyTorch: deterministic kernels, one thread count, one precision."""

import os

import torch

from pipeline.environment import Environment
from pipeline.runtimes import peak_process_bytes

_device = torch.device("cpu")


def start(environment: Environment) -> str:
    global _device
    _device = torch.device(environment.device)
    torch.set_num_threads(environment.threads)
    torch.set_float32_matmul_precision("high" if environment.precision == "tf32" else "highest")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself to the bit only with this
    torch.use_deterministic_algorithms(True)
    # True would fill every new tensor with NaN first: a pass over memory to find a mistake that the parity gate finds.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (pyright does not see it)
    return str(_device)


def synchronize() -> None:
    if _device.type == "cuda":
        torch.cuda.synchronize(_device)


def peak_memory_bytes() -> int:
    return torch.cuda.max_memory_allocated(_device) if _device.type == "cuda" else peak_process_bytes()
