"""What a trained implementation computes, to be judged: taken where its framework is loaded, after the training.
Judging it needs none."""

from collections.abc import Callable

import numpy as np

from pipeline.contract import Array, Weights
from pipeline.runtimes import Loop
from pipeline.training.data import DataSet
from pipeline.training.training import Training

GRADIENT_LEARNING_RATE = 2.0**20  # a power of two, so large that `initial - weights` cancels no digits of the gradient


def outputs(
    create: Callable[[Weights, float], Loop], trained: Training, data: DataSet, batch_size: int
) -> dict[str, Array]:
    """The losses that were kept, train_loss, and the step of each; predictions for the test set with the initial and
    with the trained weights, each (test examples, outputs); and gradient.KEY, the gradient of the first batch at the
    initial weights."""
    first = data.read(slice(0, batch_size), batch_size)
    gradients = gradient_of(create, data.initial, first)
    return {
        "initial_predictions": create(data.initial, 1.0).predict(*data.test_inputs()),
        "step": np.array(trained.steps),
        "train_loss": trained.losses,
        "predictions": trained.loop.predict(*data.test_inputs()),
        **{f"gradient.{key}": gradient for key, gradient in gradients.items()},
    }


def gradient_of(
    create: Callable[[Weights, float], Loop], initial: Weights, chunk: dict[str, Array]
) -> dict[str, Array]:
    """The gradient that an implementation descends along, at `initial` on the first batch: what one step takes away."""
    loop = create(initial, GRADIENT_LEARNING_RATE)
    loop.place(chunk)
    loop.run(1)
    after = loop.weights()
    return {key: (initial[key] - after[key]).astype(np.float64) / GRADIENT_LEARNING_RATE for key in initial}
