"""What a benchmark measures, by name. All but the lower bounds take the same steps on the same batches:

NAME                     an implementation, in its runtime's loop
lower_bound/FRAMEWORK    the matrix products of a step alone, with the framework's own library
launch_floor/NAME        on a GPU: as many empty kernels as the CUDA graph of the step has nodes
eager/NAME               the lines of an implementation whose steps are graphs, run as Python instead
cpu/NAME                 the implementation on the CPU of a machine with a GPU
tuned/NAME               hand-tuned for speed (pipeline/benchmark/tuned)
peers/NAME+OPTION        what a user might write instead (pipeline/benchmark/peers)
NAME+nondeterministic    the implementation with `deterministic: false`
NAME+tf32                the implementation, or the lower bound, with `precision: tf32`
NAME+no_xla              a static graph that XLA does not compile
self/NAME                the implementation once more, for an A/A test
slowed/NAME              the implementation with every 20th step taken twice: a slowdown of 5 %, planted for a test
"""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.benchmark.samples import LAUNCH_FLOOR, framework_of_candidate, parts_of
from pipeline.contract import Array, Chunk, Weights, load_implementation, load_problem
from pipeline.environment import Environment, framework_of
from pipeline.runtimes import Loop, batches_of, load_runtime, open_implementation

LEARNING_RATE = 1e-3
CHUNK_BATCHES = 64
CHUNK_BYTES = 16 * 2**20
PRODUCTS_SHARE = 4  # a baseline uses the first quarter of a chunk: the factors take more memory than the batches
SLOWED = 20
SEED = 0

VARIANTS = {"nondeterministic": {"deterministic": False}, "tf32": {"precision": "tf32"}}


def python_of(candidate: str) -> str:
    """The interpreter that can run a candidate. NumPy is in all of them."""
    framework = framework_of_candidate(candidate)
    return os.environ.get(f"{'torch' if framework == 'numpy' else framework}_PYTHON".upper(), sys.executable)


def draw(problem: str, sizes: Any, dtype: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """Initial weights and a chunk of batches of the given sizes: at least two, at most CHUNK_BATCHES or CHUNK_BYTES."""
    module, generator = load_problem(problem), np.random.default_rng(SEED)
    weights = {key: array.astype(dtype) for key, array in module.draw_weights(sizes, generator).items()}
    one = module.draw_inputs(sizes, sizes.batch_size, np.random.default_rng(SEED))
    count = int(np.clip(CHUNK_BYTES // sum(array.nbytes for array in one.values()), 2, CHUNK_BATCHES))
    arrays = module.draw_inputs(sizes, count * sizes.batch_size, generator)
    arrays["y"] = generator.standard_normal((count * sizes.batch_size, sizes.outputs), dtype=np.float32)
    return weights, {
        key: (array.astype(dtype) if array.dtype == np.float32 else array).reshape(
            count, sizes.batch_size, *array.shape[1:]
        )
        for key, array in arrays.items()
    }


class Candidate:
    """`run(steps)` takes so many steps on the placed chunk, and may return before the device has taken them.

    `replays` counts the steps that were executed from a CUDA graph; `least_steps` is the fewest that make sense in a
    call: one that works by epochs takes a whole one.
    """

    def __init__(
        self,
        name: str,
        problem: str,
        environment: Environment,
        weights: Weights,
        *,
        learning_rate: float = LEARNING_RATE,
    ) -> None:
        kind, implementation, option = parts_of(name)
        self.name, self.learning_rate = name, learning_rate
        self.runtime, self.base, self.environment = load_runtime(implementation), environment, environment
        if kind == "cpu":
            self.environment = replace(environment, device="cpu", device_name=environment.cpu_name)
        elif option in VARIANTS:
            self.environment = replace(environment, **VARIANTS[option])
        with self.settings():
            self.loop = self._loop(kind, implementation, option, problem, weights)

    def _loop(self, kind: str, implementation: str, option: str, problem: str, weights: Weights) -> Any:
        """What has `place(chunk)` and `run(steps)`."""
        if kind == "lower_bound":
            self.runtime.start(self.environment)
            return Products(self.runtime, problem, weights)
        if kind == "launch_floor":
            device = self.runtime.start(self.environment)
            step = load_implementation(problem, implementation)
            made = step(weights, learning_rate=self.learning_rate, device=device)
            return Launches(self.runtime, self.runtime.PythonLoop(made, weights))
        if kind in ("tuned", "peers"):
            module = import_module(f"pipeline.benchmark.{kind}.{implementation}")
            device = self.runtime.start(self.environment)
            options = {"option": option} if option else {}
            made = module.Loop(weights, learning_rate=self.learning_rate, device=device, **options)
            return InCalls(made) if kind == "tuned" else made
        opened = open_implementation(implementation, problem, self.environment, eagerly=kind == "eager")
        loop: Any = opened.create(weights, self.learning_rate)
        if option == "no_xla":
            loop.xla = False
        if kind == "eager":
            return Eagerly(loop, self.runtime)
        return Slowed(loop) if kind == "slowed" else loop

    def place(self, chunk: Chunk) -> None:
        with self.settings():
            self.loop.place(chunk)

    def start(self) -> None:
        """Compile, and take the first step."""
        self.compile()
        with self.settings():
            self.loop.run(self.least_steps)

    def warm_up(self) -> None:
        """Take the second step, after which CUDA graphs can be captured."""
        with self.settings():
            self.loop.run(self.least_steps)

    def compile(self) -> None:
        with self.settings():
            getattr(self.loop, "compile", _nothing)()

    @property
    def least_steps(self) -> int:
        return getattr(self.loop, "least_steps", 1)

    @property
    def replays(self) -> int:
        return getattr(self.loop, "replays", 0)

    @property
    def captures(self) -> int:
        return getattr(self.loop, "captures", 0)

    @property
    def on_gpu(self) -> bool:
        return self.environment.device != "cpu" and not self.runtime.CPU_ONLY

    def run(self, steps: int) -> None:
        """Within `settings`."""
        self.loop.run(steps)

    @contextmanager
    def settings(self) -> Iterator[None]:
        """The settings of this candidate where they differ from the others'."""
        if self.environment == self.base:
            yield
            return
        self.runtime.start(self.environment)
        try:
            yield
        finally:
            self.runtime.start(self.base)


class Products:
    """The matrix products of a step, and nothing else."""

    def __init__(self, runtime: ModuleType, problem: str, weights: Weights) -> None:
        self.runtime, self.problem, self.weights = runtime, problem, weights

    def place(self, chunk: Chunk) -> None:
        products, batches = load_problem(self.problem).products, batches_of(chunk)[: _share(len(chunk["y"]))]
        self.run = self.runtime.multiply([products(self.weights, *batch.values()) for batch in batches])
        self.least_steps = self.run.least_steps


class Launches:
    """The launches of a step, and nothing else. The step itself is only captured, to count them."""

    def __init__(self, runtime: ModuleType, loop: Loop) -> None:
        self.runtime, self.loop = runtime, loop

    def place(self, chunk: Chunk) -> None:
        self.loop.place({key: array[: _share(len(chunk["y"]))] for key, array in chunk.items()})
        self.run = self.runtime.launch(self.runtime.nodes(self.loop))


class Eagerly:
    def __init__(self, loop: Loop, runtime: ModuleType) -> None:
        self.loop, self.eagerly, self.place = loop, runtime.eagerly, loop.place

    def run(self, steps: int) -> None:
        with self.eagerly():
            self.loop.run(steps)


class Slowed:
    """Every SLOWED-th step is taken twice; a call of fewer makes up for it later."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.place, self.compile, self.taken = loop, loop.place, loop.compile, 0

    def run(self, steps: int) -> None:
        before, self.taken = self.taken, self.taken + steps
        self.loop.run(steps + self.taken // SLOWED - before // SLOWED)


class InCalls:
    """A tuned loop, which takes at most as many steps in a call as there are batches."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop

    def place(self, chunk: Chunk) -> None:
        self.loop.place(chunk)
        self.batches = len(chunk["y"])

    def run(self, steps: int) -> None:
        for start in range(0, steps, self.batches):
            self.loop.run(min(self.batches, steps - start))


def _nothing() -> None:
    """What a loop that compiles nothing does beforehand."""


def _share(batches: int) -> int:
    return math.ceil(batches / PRODUCTS_SHARE)


def launch_floors(environment: Environment, names: list[str]) -> list[str]:
    """Of the implementations whose steps are captured, where the nodes of a CUDA graph can be counted."""
    captured = [name for name in names if framework_of(name) == "torch" and environment.device != "cpu"]
    return [f"{LAUNCH_FLOOR}{name}" for name in captured if find_spec("cuda")]


def lower_bounds(environment: Environment, framework: str) -> list[str]:
    """On a CPU every library that may be fastest; on a GPU, or in an interpreter of its own, the framework's."""
    if environment.device == "cpu" and python_of(framework) == python_of("numpy"):
        return [f"lower_bound/{name}" for name in ("numpy", "torch") if find_spec(name)]
    return [f"lower_bound/{framework}"]
