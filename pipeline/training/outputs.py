"""The outputs of a trained implementation for the parity check. They need its framework; the check does not."""

from collections.abc import Callable

import numpy as np

from pipeline.contract import Array, Weights
from pipeline.runtimes import Loop
from pipeline.training.data import DataSet

GRADIENT_LEARNING_RATE = 2.0**20  # a power of two, so large that `initial - weights` cancels no digits of the gradient


def outputs(
    create: Callable[[Weights, float], Loop], trained: Loop, data: DataSet, batch_size: int
) -> dict[str, Array]:
    """Predictions for the test set with the initial and with the trained weights, each (test examples, outputs); and
    gradient.KEY, the gradient of the first batch at the initial weights."""
    first = data.read(slice(0, batch_size), batch_size)
    gradients = gradient_of(create, data.initial, first)
    return {
        "initial_predictions": create(data.initial, 1.0).predict(*data.test_inputs()),
        "predictions": trained.predict(*data.test_inputs()),
        **{f"gradient.{key}": gradient for key, gradient in gradients.items()},
    }


def gradient_of(
    create: Callable[[Weights, float], Loop], initial: Weights, chunk: dict[str, Array]
) -> dict[str, Array]:
    """The gradient that an implementation uses, at `initial` on the first batch, recovered from the change in one
    step."""
    loop = create(initial, GRADIENT_LEARNING_RATE)
    loop.place(chunk)
    loop.run(1)
    after = loop.weights()
    return {key: (initial[key] - after[key]).astype(np.float64) / GRADIENT_LEARNING_RATE for key in initial}
