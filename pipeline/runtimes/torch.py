"""PyTorch: deterministic kernels, one thread count, one precision; on a GPU, steps captured as CUDA graphs."""

import os
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch

from pipeline.contract import Array, Batches, Factors, Implementation, Weights
from pipeline.environment import Environment
from pipeline.runtimes import peak_process_bytes

eagerly = None
_device = torch.device("cpu")


def start(environment: Environment) -> str:
    global _device
    _device = torch.device(environment.device)
    torch.set_num_threads(environment.threads)
    torch.set_float32_matmul_precision("high" if environment.precision == "tf32" else "highest")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself to the bit only with this
    # What use_deterministic_algorithms does, without its import of the compiler's settings, which takes half a second.
    torch.set_deterministic_debug_mode("error" if environment.deterministic else "default")
    # True would fill every new tensor with NaN first: a pass over memory to find a mistake that the parity gate finds.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (pyright does not see it)
    torch.empty(1, device=_device)  # makes the device's context
    return str(_device)


def prepare(implementation: Implementation) -> Any:
    return CudaGraphs(implementation) if _device.type == "cuda" else implementation


class CudaGraphs:
    """An implementation whose calls of `train` are recorded, and replayed when the same call comes again.

    A small step is bound by its launches, some 5 µs each from Python where the arithmetic takes less than one; a graph
    launches all kernels of a call at once. A call repeats when it starts at the same batch of the same block with the
    same number of steps. The first time it runs as it is, which is also the warm-up that recording needs; the second
    time it is recorded; so data that streams through, whose calls do not come again, pays nothing.
    """

    def __init__(self, implementation: Implementation) -> None:
        self.implementation = implementation
        self.seen: set[tuple[int, int]] = set()
        self.graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, torch.Tensor, int]] = {}

    @property
    def next(self) -> int:
        return self.implementation.next

    def load(self, batches: Batches) -> None:
        self.implementation.load(batches)
        self.seen.clear()
        self.graphs.clear()  # they read from where the last block was

    def train(self, steps: int) -> torch.Tensor:
        call = (self.implementation.next, steps)
        if steps == 0 or call not in self.seen:
            self.seen.add(call)
            return self.implementation.train(steps)
        if call not in self.graphs:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):  # records, executes nothing
                losses = self.implementation.train(steps)
            self.graphs[call] = graph, losses, self.implementation.next
        graph, losses, self.implementation.next = self.graphs[call]
        graph.replay()
        return losses.clone()  # the next replay overwrites the graph's own

    def predict(self, *inputs: Array) -> Array:
        return self.implementation.predict(*inputs)

    def weights(self) -> Weights:
        return self.implementation.weights()


def to_host(array: Any) -> Array:
    return array.cpu().numpy()


def multiply(batches: list[Factors]) -> Callable[[int], None]:
    on_device = [
        [(torch.as_tensor(left).to(_device), torch.as_tensor(right).to(_device)) for left, right in factors]
        for factors in batches
    ]
    out = {(len(left), right.shape[1]): left.mm(right) for factors in on_device for left, right in factors}

    def batch(factors: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for left, right in factors:
            torch.mm(left, right, out=out[len(left), right.shape[1]])

    calls = [partial(batch, factors) for factors in on_device]
    if _device.type == "cuda":  # the floor is the arithmetic, not its launches
        calls = [_captured(call).replay for call in calls]

    def steps(count: int) -> None:
        for call in islice(cycle(calls), count):
            call()

    return steps


def _captured(call: Callable[[], None]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def synchronize() -> None:
    if _device.type == "cuda":
        torch.cuda.synchronize(_device)


def peak_memory_bytes() -> int:
    return torch.cuda.max_memory_allocated(_device) if _device.type == "cuda" else peak_process_bytes()
