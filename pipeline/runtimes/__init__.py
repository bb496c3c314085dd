"""A module for each framework. It does everything in a training that is not maths, and makes steps faster without
changing their results. The rest of the pipeline uses the module's class `Runtime` and the loops that it makes. A new
framework needs one module here. Its Runtime sets `python_loop` to a Loop with `gather`, `to_host` and `weights`, and
has a method `multiply`.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from pipeline.contract import Array, Chunk, Factors, Implementation, Weights, load_implementation
from pipeline.environment import Environment, framework_of

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # the numbers in malloc.h


class Loop:
    """A loop in Python over the batches of a chunk, one batch a step. After the last batch it begins again with the
    first. `next` is the index of the batch of the next step. `captures` counts the recorded CUDA graphs, `replays` the
    steps that were executed from one; in a loop without CUDA graphs both stay 0.
    """

    first_steps = 1  # the steps before the loop reaches its steady state
    captures = replays = 0

    def __init__(self, implementation: Implementation, names: Iterable[str], device: str) -> None:
        """`names` are those of the weights, `device` is the framework's own name for a device."""
        self.implementation, self.names, self.device = implementation, tuple(names), device
        self.placed: list[tuple[Any, ...]] = []
        self.next = 0

    def place(self, chunk: Chunk) -> None:
        """Place each batch on the device. The next step takes the first of them."""
        self.placed = [self.implementation.place(batch) for batch in batches_of(chunk)]
        self.next = 0

    def compile(self) -> None:
        """Prepare all that can be done before a step on the placed batches."""

    def compile_for(self, steps: int) -> None:
        """The same, but only what pays off within the next `steps` steps."""
        if steps:
            self.compile()

    def run(self, steps: int) -> Any:
        """Take this number of steps, each on the next batch. Returns their losses (steps,), on the device, without
        waiting."""
        losses = []
        for _ in range(steps):
            losses.append(self.take_step(self.next))
            self.next = (self.next + 1) % len(self.placed)
        return self.gather(losses)

    def take_step(self, index: int) -> Any:
        return self.implementation.step(*self.placed[index])

    def gather(self, losses: list[Any]) -> Any:
        """One array (steps,) of the steps' losses, on the device."""
        raise NotImplementedError

    def to_host(self, losses: Any) -> Array:
        """The losses that `run` returned, in host memory."""
        raise NotImplementedError

    def predict(self, *inputs: Array) -> Array:
        return self.implementation.predict(*inputs)

    def weights(self) -> Weights:
        """Copies of the weights in host memory."""
        raise NotImplementedError


class Cycle:
    """A loop over calls. After the last call it begins again with the first. A call counts as `least_steps` steps.
    `kept` holds objects that the calls use but do not reference.
    """

    def __init__(self, calls: Sequence[Callable[[], Any]], *, least_steps: int = 1, kept: Any = None) -> None:
        self.calls, self.least_steps, self.kept = calls, least_steps, kept

    def run(self, steps: int) -> None:
        for call in islice(cycle(self.calls), -(-steps // self.least_steps)):
            call()


class Runtime:
    """A framework that is set up for an environment. `device` is the framework's own name for the device. Threads,
    precision, deterministic kernels and the allocator are settings of the process, not of this object: the latest
    `apply` of any runtime of the framework wins. The constructor calls `apply`.
    """

    cpu_only = False  # whether the framework knows no other device
    graphs: tuple[str, ...] = ()  # the kinds of device on which steps are executed from graphs: cpu, cuda
    device = "cpu"
    python_loop: type[Loop]  # every step is a call from Python
    graph_loop: type[Loop]  # steps are executed from graphs

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.apply()

    def apply(self) -> None:
        """Apply the settings of the environment to the process."""
        keep_freed_memory()

    @property
    def on_gpu(self) -> bool:
        return self.environment.device != "cpu" and not self.cpu_only

    def loop(self, implementation: Implementation, names: Iterable[str], *, in_python: bool = False) -> Loop:
        """The loop of a training: over graphs, if the framework has them for this device; otherwise in Python."""
        graphs = self.environment.device.partition(":")[0] in self.graphs and not in_python
        return (self.graph_loop if graphs else self.python_loop)(implementation, names, self.device)

    def eagerly(self) -> AbstractContextManager[None]:
        """A context in which the steps of a Python loop run operation by operation."""
        return nullcontext()

    def multiply(self, batches: list[Factors]) -> Cycle:
        """The matrix products of each batch, and nothing else."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Return when the device has done all queued work."""

    def peak_memory_bytes(self) -> int:
        """The most memory in use so far: the device's for CUDA, else the process's. PyTorch's figure for CUDA includes
        32 MiB of cuBLAS workspace for each thread and stream that multiplied; TensorFlow's does not."""
        return peak_process_bytes()


@dataclass(frozen=True)
class Opened:
    """An implementation with its framework set up. `create(weights, learning_rate)` constructs it in its loop."""

    runtime: Runtime
    device: str
    device_name: str
    create: Callable[[Weights, float], Loop]


def load_runtime(name: str) -> type[Runtime]:
    """The class of the framework that the name of an implementation begins with."""
    return import_module(f"pipeline.runtimes.{framework_of(name)}").Runtime


def open_implementation(name: str, problem: str, environment: Environment, *, eagerly: bool = False) -> Opened:
    """Set up the framework of an implementation. With `eagerly` its loop is in Python, not in a graph."""
    runtime = load_runtime(name)(environment)  # before the lesson imports the framework
    implementation = load_implementation(problem, name)

    def create(weights: Weights, learning_rate: float) -> Loop:
        step = implementation(weights, learning_rate=learning_rate, device=runtime.device)
        return runtime.loop(step, weights, in_python=eagerly)

    if runtime.cpu_only:
        return Opened(runtime, "cpu", environment.cpu_name, create)
    return Opened(runtime, environment.device, environment.device_name, create)


def batches_of(chunk: Chunk) -> list[dict[str, Any]]:
    return [{key: array[index] for key, array in chunk.items()} for index in range(len(chunk["y"]))]


def keep_freed_memory() -> None:
    """Make glibc's allocator keep freed memory, since the next step asks for the same sizes. By default large arrays
    may go back to the kernel when they are freed, and new arrays then cost page faults. Other C libraries have no such
    setting, and nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and mallopt(M_MMAP_THRESHOLD, 2**30):  # 0 where glibc refuses: then change nothing
        mallopt(M_TRIM_THRESHOLD, 2**30)
        mallopt(M_TOP_PAD, 2**26)


def peak_process_bytes() -> int:
    """The most memory that this process has had resident, mapped files included."""
    # Not resource.getrusage: its figure is inherited across exec, so a small stage would report its parent's peak.
    line = next(
        line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024
