"""Run a candidate in a process of the benchmark, on its own data."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from pipeline.benchmark.candidates import LAUNCH_FLOOR, MATMUL, Candidate
from pipeline.contract import Array, Chunk, Weights, load_implementation, load_problem
from pipeline.environment import Environment
from pipeline.runtimes import Cycle, Loop, batches_of, load_runtime

LEARNING_RATE = 1e-3
CHUNK_BATCHES = 64
CHUNK_BYTES = 16 * 2**20
BASELINE_SHARE = 4  # a baseline uses a quarter of a chunk, because its factors take more memory than the batches
SEED = 0
VARIANTS = {"nondeterministic": {"deterministic": False}, "tf32": {"precision": "tf32"}}


def draw(problem: str, sizes: Any, dtype: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """Initial weights and a chunk of batches of the given sizes: at least two, at most CHUNK_BATCHES or CHUNK_BYTES."""
    module, generator = load_problem(problem), np.random.default_rng(SEED)
    weights = {key: array.astype(dtype) for key, array in module.draw_weights(sizes, generator).items()}
    one = module.draw_inputs(sizes, sizes.batch_size, np.random.default_rng(SEED))
    count = int(np.clip(CHUNK_BYTES // sum(array.nbytes for array in one.values()), 2, CHUNK_BATCHES))
    arrays = module.draw_inputs(sizes, count * sizes.batch_size, generator)
    arrays["y"] = module.draw_targets(sizes, arrays, None, 1.0, generator)
    return weights, {
        key: (array.astype(dtype) if array.dtype == np.float32 else array).reshape(
            count, sizes.batch_size, *array.shape[1:]
        )
        for key, array in arrays.items()
    }


class Runner:
    """`run(steps)` takes this number of steps on the placed chunk, and may return before the device has taken them.
    `loop` is a Loop; for a baseline or a peer it is any object with a method `run`.
    """

    def __init__(
        self,
        candidate: Candidate,
        problem: str,
        environment: Environment,
        weights: Weights,
        *,
        learning_rate: float = LEARNING_RATE,
    ) -> None:
        self.candidate, self.problem, self.weights, self.learning_rate = candidate, problem, weights, learning_rate
        adapted = environment
        if candidate.kind == "cpu":
            adapted = replace(environment, device="cpu", device_name=environment.cpu_name)
        elif candidate.option in VARIANTS:
            adapted = replace(environment, **VARIANTS[candidate.option])
        runtime = load_runtime(candidate.name)
        self.others = None if adapted == environment else runtime(environment)  # the settings of all other candidates
        self.runtime = runtime(adapted)
        self.steps_taken, self.steps_in_call = 0, sys.maxsize
        with self.settings():
            self.loop: Any = None if candidate.kind in (MATMUL, LAUNCH_FLOOR) else self._loop()

    def _loop(self) -> Any:
        candidate = self.candidate
        if candidate.kind not in ("tuned", "peers"):
            loop: Any = self._lesson(in_python=candidate.kind == "eager")
            if candidate.option == "no_xla":
                loop.xla = False
            return loop
        options = {"option": candidate.option} if candidate.option else {}
        module = import_module(f"pipeline.benchmark.{candidate.kind}.{candidate.name}")
        return module.Loop(self.weights, learning_rate=self.learning_rate, device=self.runtime.device, **options)

    def _lesson(self, *, in_python: bool) -> Loop:
        implementation = load_implementation(self.problem, self.candidate.name)
        step = implementation(self.weights, learning_rate=self.learning_rate, device=self.runtime.device)
        return self.runtime.loop(step, self.weights, in_python=in_python)

    def place(self, chunk: Chunk) -> None:
        batches = len(chunk["y"])
        if self.candidate.kind == "padded":
            problem: Any = load_problem(self.problem)
            chunk = problem.padded(chunk)
        part = {key: array[: math.ceil(batches / BASELINE_SHARE)] for key, array in chunk.items()}
        with self.settings():
            if self.candidate.kind == MATMUL:
                self.loop = self._products(part)
            elif self.candidate.kind == LAUNCH_FLOOR:
                self.loop = self._launches(part)
            else:
                self.loop.place(chunk)
        if self.candidate.kind == "tuned":
            self.steps_in_call = batches  # a tuned loop takes at most this number

    def _products(self, chunk: Chunk) -> Cycle:
        products = load_problem(self.problem).products
        return self.runtime.multiply([products(self.weights, *batch.values()) for batch in batches_of(chunk)])

    def _launches(self, chunk: Chunk) -> Cycle:
        """The step is only captured, to count its launches."""
        runtime: Any = self.runtime  # PyTorch's
        loop = self._lesson(in_python=True)
        loop.place(chunk)
        return runtime.launch(runtime.nodes(loop))

    def compile(self) -> None:
        """Prepare what can be done before a step. CUDA graphs can be captured after the second step."""
        with self.settings():
            getattr(self.loop, "compile", lambda: None)()

    @property
    def least_steps(self) -> int:
        """The smallest number of steps in a call: a candidate that works by epochs takes a whole epoch."""
        return getattr(self.loop, "least_steps", 1)

    @property
    def replays(self) -> int:
        """The number of steps that were executed from a CUDA graph."""
        return getattr(self.loop, "replays", 0)

    @property
    def captures(self) -> int:
        return getattr(self.loop, "captures", 0)

    @property
    def on_gpu(self) -> bool:
        return self.runtime.on_gpu

    def run(self, steps: int) -> None:
        """Call it within `settings`."""
        if self.candidate.kind == "slowed":  # the fraction of a step is carried over to the next call
            percent, before, self.steps_taken = int(self.candidate.option), self.steps_taken, self.steps_taken + steps
            steps += self.steps_taken * percent // 100 - before * percent // 100
        with self.runtime.eagerly() if self.candidate.kind == "eager" else nullcontext():
            while steps > 0:
                count = min(steps, self.steps_in_call)
                self.loop.run(count)
                steps -= count

    def run_alone(self, steps: int) -> None:
        with self.settings():
            self.run(steps)

    @contextmanager
    def settings(self) -> Iterator[None]:
        """The settings of this candidate that differ from those of the other candidates."""
        if self.others is None:
            yield
            return
        self.runtime.apply()
        try:
            yield
        finally:
            self.others.apply()
