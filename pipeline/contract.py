"""The interface of an implementation, and how its name leads to its file.

An implementation is the class `Implementation` in `pipeline/lessons/PROBLEM/NAME.py`. There is no registry: the line
`NAME: PROBLEM` in params.yaml makes it part of the experiment. NAME is `<framework>_<mechanism>`, and the part before
the underscore names the runtime, a module of `pipeline/runtimes/`.

An implementation is the maths of one step. The runtime does everything else: it chooses the batches, loops over the
steps, collects the losses and copies results to host memory.

A batch holds the arrays of N examples: the inputs, which the problem draws, and last the targets, y (N, outputs).
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Weights = Mapping[str, Array]
Batch = Mapping[str, Array]
Chunk = Mapping[str, Array]  # several batches: the arrays of a batch, with the number of batches as first dimension
Factors = list[tuple[Array, Array]]  # the left and the right side of matrix products


class Implementation(Protocol):
    """One network: its forward pass, loss, backward pass and update.

    The weights are attributes, named as in the problem; the runtime reads them. All arithmetic is done in their dtype.
    `device` is the framework's own name for a device, as its runtime gives it.
    """

    def __init__(self, weights: Weights, *, learning_rate: float, device: str) -> None: ...

    def place(self, batch: Batch) -> tuple[Any, ...]:
        """The arguments of `step` for a batch, on the device. Called once for each batch."""
        ...

    def step(self, *placed: Any) -> Any:
        """Take one step of gradient descent. Returns the loss before the update, on the device."""
        ...

    def predict(self, *inputs: Array) -> Array:
        """Predictions (N, outputs) for the arrays of a batch without y. Arguments and result are in host memory."""
        ...


class Problem(Protocol):
    """A model, its random data and its float64 reference: a module of `pipeline/problems/`.

    The module's docstring has the equations. `sizes` has the attributes of the module's pydantic model `Sizes`, and
    `batch_size` where a batch is concerned. A problem of sequences also has `sequence_total(sizes)`, the expected sum
    of the lengths in a batch.
    """

    Sizes: type[Any]

    def weight_shapes(self, sizes: Any) -> dict[str, tuple[int, int]]: ...

    def example_numbers(self, sizes: Any) -> tuple[int, int]:
        """How many numbers the inputs of an example hold, and how many its hidden layers."""
        ...

    def operations(self, sizes: Any) -> float:
        """Floating-point operations in the matrix products of a step: multiplications and additions, on average."""
        ...

    def draw_weights(self, sizes: Any, generator: np.random.Generator) -> dict[str, Array]: ...

    def draw_inputs(self, sizes: Any, count: int, generator: np.random.Generator) -> dict[str, Array]: ...

    def draw_targets(
        self,
        sizes: Any,
        inputs: Batch,
        teacher: Weights | None,
        noise: float,
        generator: np.random.Generator,
    ) -> Array:
        """Targets y (N, outputs), float32: with a teacher, its network's predictions plus noise; without one, random
        numbers."""
        ...

    def predict(self, weights: Weights, *inputs: Array) -> Array: ...

    def loss(self, y_pred: Array, y: Array) -> float:
        """The loss of predictions (N, outputs), float64."""
        ...

    def best_constant(self, y: Array) -> Array:
        """The constant prediction (outputs,) with the smallest loss."""
        ...

    def loss_and_gradients(self, weights: Weights, *batch: Array) -> tuple[float, dict[str, Array]]: ...

    def products(self, weights: Weights, *batch: Array) -> Factors: ...


def load_problem(problem: str) -> Problem:
    return cast(Problem, import_module(f"pipeline.problems.{problem}"))


def implementation_file(problem: str, name: str) -> Path:
    return Path("pipeline", "lessons", problem, f"{name}.py")


def load_implementation(problem: str, name: str) -> type[Implementation]:
    return import_module(f"pipeline.lessons.{problem}.{name}").Implementation
