"""PyTorch: deterministic kernels, one thread count, one precision; on a GPU, steps captured as CUDA graphs."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar
from weakref import WeakSet

import torch

from pipeline import runtimes
from pipeline.contract import Array, Chunk, Factors, Weights
from pipeline.errors import UserError
from pipeline.runtimes import Cycle, Loop, batches_of

STREAMS = 32  # the number of streams in PyTorch's pool for a device, which it assigns in turn


class PythonLoop(Loop):
    def take_step(self, index: int) -> torch.Tensor:
        return super().take_step(index).detach()

    def gather(self, losses: list[Any]) -> torch.Tensor:
        return torch.stack(losses) if losses else torch.empty(0, device=self.device)

    def to_host(self, losses: torch.Tensor) -> Array:
        return losses.cpu().numpy()

    def weights(self) -> Weights:
        return {name: getattr(self.implementation, name).numpy(force=True).copy() for name in self.names}


class Recorded:
    """A CUDA graph, and the tensors that it reads and writes. A graph holds their addresses but does not keep them
    alive."""

    def __init__(self, graphs: "Graphs", graph: Any, kept: Any) -> None:
        self.graphs, self.graph, self.kept = graphs, graph, kept

    def replay(self) -> None:
        self.graph.replay()


class Graphs:
    """CUDA graphs that share a capture stream and a memory pool, and are freed together.

    cuBLAS has a workspace for each stream, and a graph holds its address. Since version 2.12 PyTorch frees the
    workspace of a capture stream when any graph that was captured there is destroyed (pytorch #175276, #193402), so
    other graphs would use freed memory. Therefore no two objects share a stream, and none frees a single graph.
    """

    _alive: ClassVar[WeakSet["Graphs"]] = WeakSet()

    def __init__(self, device: str) -> None:
        self.device = device
        if not self._alive:  # no graph may use a workspace, which each stream would keep
            torch._C._cuda_clearCublasWorkspaces()
        self.stream = self._unused_stream()
        self.pool = torch.cuda.graph_pool_handle()
        self._alive.add(self)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Work on the capture stream, after everything queued so far and before everything queued later. The work to
        capture must have run here once, because cuBLAS and autograd allocate memory in the first run.
        """
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream().wait_stream(self.stream)

    def record(self, call: Callable[[], Any], *kept: Any) -> Recorded:
        """Capture the kernels that `call` launches, without executing them. `kept` has all tensors that `call` reads
        and writes."""
        return Recorded(self, _recorded(call, self), kept)

    def _unused_stream(self) -> torch.cuda.Stream:
        taken = {graphs.stream.cuda_stream for graphs in self._alive}
        for _ in range(STREAMS):
            stream = torch.cuda.Stream(torch.device(self.device))
            if stream.cuda_stream not in taken:
                return stream
        raise RuntimeError(f"CUDA graphs use all {STREAMS} streams. Delete one loop, then make another.")


def _recorded(call: Callable[[], Any], graphs: Graphs, **options: bool) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph(**options)
    with torch.cuda.graph(graph, pool=graphs.pool, stream=graphs.stream):
        call()
    return graph


class CudaGraphs(PythonLoop):
    """A loop in which the step on a placed batch is captured as a CUDA graph when the batch comes again.

    The launches dominate a small step: about 5 µs each from Python, where the arithmetic takes less than 1 µs. A graph
    launches all kernels of a step at once. Capturing takes longer than a step, so a batch that comes only once runs
    without a graph. The graphs share a memory pool, because a step reads nothing there that another step left: weights
    and batches lie outside the pool. The loss is copied out, since another replay may overwrite it. `placed` are the
    batches of the chunk, `slots` all places for batches on the device. A chunk with fewer batches leaves the other
    slots and their graphs for later chunks.
    """

    first_steps = 2  # before a capture: cuBLAS, autograd and the allocator then allocate what they keep

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.slots: list[tuple[Any, ...]] = []
        self.visited: list[bool] = []
        self.captured: list[tuple[Recorded, torch.Tensor] | None] = []
        self._drop_graphs()

    def _drop_graphs(self) -> None:
        self.captured = [None] * len(self.slots)
        self.graphs, self.warm = Graphs(self.device), 0

    def place(self, chunk: Chunk) -> None:
        """A new batch with the shapes of the one in its slot is copied there, so the captured graph stays valid."""
        batches = batches_of(chunk)
        for index, batch in enumerate(batches):
            placed = self.implementation.place(batch)
            if index == len(self.slots):
                self.slots.append(placed)
                self.visited.append(False)
                self.captured.append(None)
            elif not _copied(placed, self.slots[index]):
                if self.captured[index]:
                    self._drop_graphs()
                self.slots[index], self.visited[index] = placed, False
        self.placed, self.next = self.slots[: len(batches)], 0

    def compile(self) -> None:
        """Capture the step on every batch, even on one without a step so far."""
        if self.warm >= self.first_steps:
            for index in range(len(self.placed)):
                self._capture(index)

    def compile_for(self, steps: int) -> None:
        """Capture the steps on batches that come again within the next `steps` steps."""
        if self.warm >= self.first_steps:
            for offset in range(min(steps, len(self.placed))):
                index = (self.next + offset) % len(self.placed)
                if self.visited[index]:
                    self._capture(index)

    def run(self, steps: int) -> torch.Tensor:
        # A replay overwrites the loss of the one before, so losses are copied before a batch comes again.
        parts = []
        while steps > 0:
            count = min(steps, len(self.placed))
            parts.append(super().run(count))
            steps -= count
        return torch.cat(parts) if parts else self.gather([])

    def take_step(self, index: int) -> torch.Tensor:
        if self.captured[index] is None and (self.warm < self.first_steps or not self.visited[index]):
            self.warm, self.visited[index] = self.warm + 1, True
            with self.graphs.beside():
                return self._step(index)
        recorded, loss = self._capture(index)
        recorded.replay()
        self.replays += 1
        return loss

    def _step(self, index: int) -> torch.Tensor:
        return self.implementation.step(*self.slots[index]).detach()

    def _capture(self, index: int) -> tuple[Recorded, torch.Tensor]:
        """The graph of the step on a batch, and the loss that a replay writes."""
        captured = self.captured[index]
        if captured is None:
            weights = [getattr(self.implementation, name) for name in self.names]
            addresses = [weight.data_ptr() for weight in weights]
            loss = torch.empty((), dtype=weights[0].dtype, device=self.device)
            recorded = self.graphs.record(lambda: loss.copy_(self._step(index)), weights, self.slots[index], loss)
            if [getattr(self.implementation, name).data_ptr() for name in self.names] != addresses:
                name = type(self.implementation).__module__
                raise UserError(
                    f"{name}: `step` must change its weights in place, as in `self.w1 -= …`, to run on a GPU."
                )
            captured = self.captured[index] = recorded, loss
            self.captures += 1
        return captured


def _copied(new: tuple[Any, ...], slot: tuple[Any, ...]) -> bool:
    """Copy a placed batch into a slot, if they differ only in the values of their tensors."""
    alike = len(slot) == len(new) and all(
        (isinstance(one, torch.Tensor) and one.shape == other.shape and one.dtype == other.dtype)
        if isinstance(other, torch.Tensor)
        else one == other
        for one, other in zip(slot, new, strict=True)
    )
    if alike:
        for one, other in zip(slot, new, strict=True):
            if isinstance(one, torch.Tensor):
                one.copy_(other)
    return alike


class Runtime(runtimes.Runtime):
    graphs = ("cuda",)
    python_loop = PythonLoop
    graph_loop = CudaGraphs

    def apply(self) -> None:
        super().apply()
        environment, self.device = self.environment, self.environment.device
        torch.set_num_threads(environment.threads)
        torch.set_float32_matmul_precision("high" if environment.precision == "tf32" else "highest")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may differ between two runs
        # The same as use_deterministic_algorithms, without its import of the compiler's settings, which takes 0.5 s.
        torch.set_deterministic_debug_mode("error" if environment.deterministic else "default")
        # True would first fill every new tensor with NaN, which costs time. The parity check finds such mistakes.
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (pyright does not see it)
        if self.device != "cpu":
            torch.cuda.set_device(torch.device(self.device))  # graphs are captured on the current device
        torch.empty(1, device=self.device)  # makes the device's context

    def multiply(self, batches: list[Factors]) -> Cycle:
        """On a GPU from CUDA graphs, so that the arithmetic is measured without its launches."""
        on_device = [
            [tuple(torch.as_tensor(side).to(self.device) for side in pair) for pair in factors] for factors in batches
        ]
        out = {(len(left), right.shape[1]): left.mm(right) for factors in on_device for left, right in factors}

        def batch(factors: list[tuple[torch.Tensor, ...]]) -> None:
            for left, right in factors:
                torch.mm(left, right, out=out[len(left), right.shape[1]])

        calls = [partial(batch, factors) for factors in on_device]
        return self._replayed(calls, on_device, out) if self.on_gpu else Cycle(calls)

    def launch(self, kernels: list[int]) -> Cycle:
        """Captured graphs of this number of empty kernels each: the time in which a GPU launches a step without
        computing."""

        def empty(count: int) -> None:
            for _ in range(count):
                torch.cuda._sleep(0)

        return self._replayed([partial(empty, count) for count in kernels])

    def _replayed(self, calls: list[Callable[[], None]], *kept: Any) -> Cycle:
        graphs = Graphs(self.device)
        with graphs.beside():
            for call in calls:
                call()
        recorded = [graphs.record(call, kept) for call in calls]
        return Cycle([graph.replay for graph in recorded], kept=recorded)

    def nodes(self, loop: Loop) -> list[int]:
        """The number of nodes in the CUDA graph of the step on each placed batch: kernels, copies and memory sets.
        `loop` is a Python loop."""
        from cuda.bindings import runtime  # pyright: ignore[reportMissingImports] (PyTorch's CUDA builds depend on it)

        graphs, steps = Graphs(self.device), [partial(loop.take_step, index) for index in range(len(loop.placed))]
        with graphs.beside():
            for step in steps * 2:
                step()
        recorded, counts = [], []
        for step in steps:
            recorded.append(_recorded(step, graphs, keep_graph=True))
            error, _, count = runtime.cudaGraphGetNodes(recorded[-1].raw_cuda_graph(), numNodes=0)
            if error != runtime.cudaError_t.cudaSuccess:
                raise RuntimeError(f"The nodes of a CUDA graph cannot be counted: {error}.")
            counts.append(count)
        return counts

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(torch.device(self.device))

    def peak_memory_bytes(self) -> int:
        if self.on_gpu:
            return torch.cuda.max_memory_allocated(torch.device(self.device))
        return super().peak_memory_bytes()
