"""What every implementation offers, and how one is found by its name.

An implementation lives in `pipeline/PROBLEM/NAME.py` as a class called `Implementation`. There is no registry: the
line `NAME: PROBLEM` in params.yaml is all that makes it part of the experiment. NAME is `<framework>_<mechanism>`,
and the part before the underscore picks the runtime in `pipeline/runtimes/`.

Shapes, for batches of N examples in blocks of B batches:

    two_layer   x (B, N, inputs)                                 y (B, N, outputs)
    recurrent   x (B, N, max_length, inputs), lengths (B, N)     y (B, N, outputs)
"""

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.environment import framework_of

Array = NDArray[Any]
Weights = Mapping[str, Array]
Batches = Mapping[str, Array]
Factors = list[tuple[Array, Array]]  # the left and the right side of matrix products


class Implementation(Protocol):
    """One network with its own forward pass, loss, backward pass and update.

    The arithmetic is done in the dtype of `initial`. `device` is the framework's own name for a device, as its
    runtime gives it. `next` is the batch of the loaded block that the next step takes.
    """

    next: int

    def __init__(self, initial: Weights, *, learning_rate: float, device: str) -> None: ...

    def load(self, batches: Batches) -> None:
        """Place a block of batches on the device; training goes on with its first batch."""
        ...

    def train(self, steps: int) -> Any:
        """Take `steps` steps of gradient descent, one batch each: at most one round of the loaded block.

        Returns the losses, shape (steps,), each taken before its step's update, as an array of the framework's own, on
        its device: nothing here waits for the device. The runtime's `to_host` reads them back.
        """
        ...

    def predict(self, *inputs: Array) -> Array:
        """Predictions (N, outputs) for the examples in `inputs`: the arrays of a batch as above, without y."""
        ...

    def weights(self) -> Weights:
        """Copies of the weights in host memory, keyed and shaped as `initial`."""
        ...


class Problem(Protocol):
    """A model, its random data and its float64 reference: a module of `pipeline/problems/`."""

    def draw_weights(self, sizes: Any, generator: np.random.Generator) -> dict[str, Array]: ...

    def draw_inputs(self, sizes: Any, count: int, generator: np.random.Generator) -> dict[str, Array]: ...

    def predict(self, weights: Weights, *inputs: Array) -> Array: ...

    def loss_and_gradients(self, weights: Weights, *batch: Array) -> tuple[float, dict[str, Array]]: ...

    def products(self, weights: Weights, *batch: Array) -> Factors: ...


def load_problem(problem: str) -> Problem:
    return cast(Problem, import_module(f"pipeline.problems.{problem}"))


def load_implementation(problem: str, name: str) -> type[Implementation]:
    return import_module(f"pipeline.{problem}.{name}").Implementation


def load_runtime(name: str) -> ModuleType:
    """The runtime of an implementation's framework: devices, threads, determinism, synchronising; no maths."""
    return import_module(f"pipeline.runtimes.{framework_of(name)}")
