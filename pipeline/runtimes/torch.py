"""PyTorch: deterministic kernels, one thread count, one precision; on a GPU, steps captured as CUDA graphs."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import cycle, islice
from typing import Any

import torch

from pipeline import runtimes
from pipeline.contract import Array, Chunk, Factors, Weights
from pipeline.environment import Environment
from pipeline.errors import UserError
from pipeline.runtimes import batches_of, keep_freed_memory, peak_process_bytes

CPU_ONLY = False
eagerly = None
_device = torch.device("cpu")


def start(environment: Environment) -> str:
    global _device
    _device = torch.device(environment.device)
    keep_freed_memory()
    torch.set_num_threads(environment.threads)
    torch.set_float32_matmul_precision("high" if environment.precision == "tf32" else "highest")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may differ from one run to the next
    # What use_deterministic_algorithms does, without its import of the compiler's settings, which takes half a second.
    torch.set_deterministic_debug_mode("error" if environment.deterministic else "default")
    # True would fill every new tensor with NaN first: a pass over memory to find a mistake that the parity gate finds.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (pyright does not see it)
    if _device.type == "cuda":
        torch.cuda.set_device(_device)  # graphs are captured on the current device
    torch.empty(1, device=_device)  # makes the device's context
    return str(_device)


class PythonLoop(runtimes.Loop):
    def take_step(self, index: int) -> torch.Tensor:
        return super().take_step(index).detach()

    def gather(self, losses: list[Any]) -> torch.Tensor:
        return torch.stack(losses) if losses else torch.empty(0, device=_device)

    def weights(self) -> Weights:
        return {name: getattr(self.implementation, name).numpy(force=True).copy() for name in self.names}


class CudaGraphs(PythonLoop):
    """A loop in which the step on each placed batch is captured once as a CUDA graph, then replayed in any order.

    A small step is bound by its launches, some 5 µs each from Python where the arithmetic takes less than one; a graph
    launches all kernels of a step at once. The first steps run as they are: cuBLAS and autograd allocate then what may
    not be allocated during a capture. All graphs share a memory pool. A step reads nothing there that another one left,
    only weights and batches, which lie outside; and its loss is copied out, since another replay may overwrite it.
    """

    first_steps = 2

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.stream = _capture_stream()
        self.pool = torch.cuda.graph_pool_handle()
        self.taken = 0
        self.captured: list[tuple[torch.cuda.CUDAGraph, torch.Tensor] | None] = []

    def place(self, chunk: Chunk) -> None:
        """A batch like the one that stood in its place takes over that one's memory, and with it its graph."""
        before, self.placed, self.next = self.placed, [], 0
        for index, batch in enumerate(batches_of(chunk)):
            placed = self.implementation.place(batch)
            if index < len(before) and _taken_over(before[index], placed):
                placed = before[index]
            elif index < len(self.captured):
                self.captured[index] = None
            else:
                self.captured.append(None)
            self.placed.append(placed)
        del self.captured[len(self.placed) :]

    def compile(self) -> None:
        if self.taken >= self.first_steps:
            for index in range(len(self.placed)):
                self._graph(index)

    def run(self, steps: int) -> torch.Tensor:
        # A graph leaves its loss in the same place each time, so losses are copied before a batch comes again.
        parts = []
        while steps > 0:
            count = min(steps, len(self.placed))
            parts.append(super().run(count))
            steps -= count
        return torch.cat(parts) if parts else self.gather([])

    def take_step(self, index: int) -> torch.Tensor:
        if self.taken < self.first_steps:
            self.taken += 1
            with _beside(self.stream):
                return super().take_step(index)
        graph, loss = self._graph(index)
        graph.replay()
        self.replays += 1
        return loss

    def _graph(self, index: int) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        found = self.captured[index]
        if found is None:
            found = self.captured[index] = self._capture(index)
            self.captures += 1
        return found

    def _capture(self, index: int) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """Record the step on a batch; it executes nothing. A graph holds addresses, so weights must keep theirs."""
        graph, before = torch.cuda.CUDAGraph(), self._addresses()
        loss = torch.empty((), dtype=getattr(self.implementation, self.names[0]).dtype, device=_device)
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            loss.copy_(super().take_step(index))
        if self._addresses() != before:
            name = type(self.implementation).__module__
            raise UserError(f"{name}: `step` must change its weights in place, as in `self.w1 -= …`, to run on a GPU.")
        return graph, loss

    def _addresses(self) -> list[int]:
        return [getattr(self.implementation, name).data_ptr() for name in self.names]


@cache
def _capture_stream() -> torch.cuda.Stream:
    """One for all loops: cuBLAS keeps a workspace for each stream that it has worked on."""
    return torch.cuda.Stream()


@contextmanager
def _beside(stream: torch.cuda.Stream) -> Iterator[None]:
    """Work on another stream, after everything queued so far and before everything queued later."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def _taken_over(there: tuple[Any, ...], new: tuple[Any, ...]) -> bool:
    """Whether a placed batch is like the new one but for the tensors' values, and then holds those."""
    alike = len(there) == len(new) and all(
        (isinstance(one, torch.Tensor) and one.shape == other.shape and one.dtype == other.dtype)
        if isinstance(other, torch.Tensor)
        else one == other
        for one, other in zip(there, new, strict=True)
    )
    if alike:
        for one, other in zip(there, new, strict=True):
            if isinstance(one, torch.Tensor):
                one.copy_(other)
    return alike


def Loop(implementation: Any, names: Iterable[str]) -> PythonLoop:  # noqa: N802 (a class in the other runtimes)
    return (CudaGraphs if _device.type == "cuda" else PythonLoop)(implementation, names)


def to_host(losses: torch.Tensor) -> Array:
    return losses.cpu().numpy()


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
    if _device.type == "cuda":  # the lower bound is the arithmetic, not its launches
        calls = [_recorded(call).replay for call in calls]

    def run(steps: int) -> None:
        for call in islice(cycle(calls), steps):
            call()

    return run


def _recorded(call: Callable[[], None]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def synchronize() -> None:
    if _device.type == "cuda":
        torch.cuda.synchronize(_device)


def peak_memory_bytes() -> int:
    return torch.cuda.max_memory_allocated(_device) if _device.type == "cuda" else peak_process_bytes()
