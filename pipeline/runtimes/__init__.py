"""One module for each framework: everything about a training that is not maths, and what makes a step faster without
changing it. Each offers the same:

CPU_ONLY                        whether the framework knows no other device
GRAPHS                          the kinds of device on which a Loop executes graphs instead of Python: cpu, cuda
start(environment) -> str       set the framework up; returns its own name for the device
Loop(implementation, names)     the loop over the steps of an implementation whose weights have these names
PythonLoop                      the same without graphs: every step is a call from Python
eagerly                         a context in which the steps of a PythonLoop run operation by operation
to_host(losses) -> Array        what a loop's `run` returned, in host memory
multiply(batches) -> Cycle      the matrix products of each batch, and nothing else: the lower bound of a step
synchronize()                   return when the device has done all that was asked of it
peak_memory_bytes() -> int      the most memory in use so far: the device's for CUDA, else the process's. PyTorch's
                                figure for CUDA includes 32 MiB of cuBLAS workspace for each thread and stream that
                                multiplied; TensorFlow's does not.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.contract import Array, Chunk, Implementation, Weights, load_implementation
from pipeline.environment import Environment, framework_of

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # as malloc.h has them


class Loop:
    """Steps over a chunk of batches, one batch a step, again from the first after the last: a loop in Python.

    `next` is the index of the batch that the next step takes. `captures` and `replays` count what was recorded for a
    GPU and the steps that were executed from such a recording; a loop that records nothing leaves them at 0.
    """

    first_steps = 1  # the steps before the loop reaches its steady state
    captures = replays = 0

    def __init__(self, implementation: Implementation, names: Iterable[str]) -> None:
        self.implementation = implementation
        self.names = tuple(names)
        self.placed: list[tuple[Any, ...]] = []
        self.next = 0

    def place(self, chunk: Chunk) -> None:
        """Place each batch on the device. The next step takes the first of them."""
        self.placed = [self.implementation.place(batch) for batch in batches_of(chunk)]
        self.next = 0

    def compile(self) -> None:
        """Do beforehand all that can be done before a step on the placed batches."""

    def compile_for(self, steps: int) -> None:
        """The same, as far as it pays for the next `steps` steps."""
        if steps:
            self.compile()

    def run(self, steps: int) -> Any:
        """Take so many steps, each on the next batch. Returns their losses (steps,), on the device, without waiting."""
        losses = []
        for _ in range(steps):
            losses.append(self.take_step(self.next))
            self.next = (self.next + 1) % len(self.placed)
        return self.gather(losses)

    def take_step(self, index: int) -> Any:
        return self.implementation.step(*self.placed[index])

    def gather(self, losses: list[Any]) -> Any:
        """One array (steps,) of the steps' losses."""
        raise NotImplementedError

    def predict(self, *inputs: Array) -> Array:
        return self.implementation.predict(*inputs)

    def weights(self) -> Weights:
        """Copies of the weights in host memory."""
        raise NotImplementedError


class Cycle:
    """Calls that are made one after the other, again from the first after the last.

    A call stands for `least_steps` steps. `kept` is what the calls use and do not hold themselves.
    """

    def __init__(self, calls: Sequence[Callable[[], Any]], *, least_steps: int = 1, kept: Any = None) -> None:
        self.calls, self.least_steps, self.kept = calls, least_steps, kept

    def __call__(self, steps: int) -> None:
        for call in islice(cycle(self.calls), -(-steps // self.least_steps)):
            call()


@dataclass(frozen=True)
class Opened:
    """An implementation whose framework is started. `create(weights, learning_rate)` constructs it, in its loop."""

    device: str
    device_name: str
    create: Callable[[Weights, float], Loop]


def load_runtime(name: str) -> ModuleType:
    """The runtime of the framework that the name of an implementation begins with."""
    return import_module(f"pipeline.runtimes.{framework_of(name)}")


def open_implementation(name: str, problem: str, environment: Environment, *, eagerly: bool = False) -> Opened:
    """Start the framework of an implementation. `eagerly`: its loop in Python, not in a graph."""
    runtime, implementation = load_runtime(name), load_implementation(problem, name)
    own_device = runtime.start(environment)
    loop = runtime.PythonLoop if eagerly else runtime.Loop
    return Opened(
        "cpu" if runtime.CPU_ONLY else environment.device,
        environment.cpu_name if runtime.CPU_ONLY else environment.device_name,
        lambda weights, rate: loop(implementation(weights, learning_rate=rate, device=own_device), weights),
    )


def batches_of(chunk: Chunk) -> list[dict[str, Any]]:
    return [{key: array[index] for key, array in chunk.items()} for index in range(len(chunk["y"]))]


def keep_freed_memory() -> None:
    """Tell glibc's allocator to keep memory that is freed, since the next step asks for the same again.

    By default large arrays may go back to the kernel as soon as they are freed, and cost page faults when they come
    back. Another C library has no such setting, and nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and mallopt(M_MMAP_THRESHOLD, 2**30):  # 0 where glibc refuses: leave all as it is then
        mallopt(M_TRIM_THRESHOLD, 2**30)
        mallopt(M_TOP_PAD, 2**26)


def peak_process_bytes() -> int:
    """The most memory that this process has had resident, mapped files included."""
    # Not resource.getrusage: its figure is inherited across exec, so a small stage would report its parent's peak.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
