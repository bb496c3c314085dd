"""The float64 reference run, and how far a trained implementation is from it.

The reference run is the same gradient descent done in float64 by the equations in the problem's file: NumPy alone, no
framework and no implementation. Everything is compared with it, so that what agrees, agrees with the maths.
"""

from collections.abc import Iterator
from itertools import cycle, islice

import numpy as np

from pipeline.contract import Array, Weights, load_problem
from pipeline.errors import UserError
from pipeline.experiment.checkpoint import NONE, Checkpoint, State
from pipeline.experiment.data import DataSet
from pipeline.experiment.history import kept_steps

SAME_WEIGHTS = 1e-2  # how far predictions of the same weights may be apart; TF32 rounds its products to 1e-3


@np.errstate(over="ignore", invalid="ignore")  # a training that diverges says so itself, in a sentence
def reference_run(
    problem: str,
    data: DataSet,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    checkpoint: Checkpoint = NONE,
) -> dict[str, Array]:
    """Train in float64 from the initial weights, or go on from the checkpoint, if there is one.

    Returns train_loss, of the steps that `kept_steps` names, predictions (test examples, outputs) after training, and
    gradient.KEY, the gradient of the first batch at the initial weights, for each weight.
    """
    module = load_problem(problem)
    initial = {key: array.astype(np.float64) for key, array in data.initial.items()}
    _, gradients_at_first = module.loss_and_gradients(initial, *next(_batches(data, batch_size)))
    state = checkpoint.load(initial)
    weights, losses, kept = state.weights, state.losses.tolist(), kept_steps(steps)
    per_epoch = len(data.train["y"]) // batch_size
    batches = islice(_batches(data, batch_size), state.done % per_epoch, None)
    for step, batch in zip(range(state.done, steps), batches, strict=False):
        loss, gradients = module.loss_and_gradients(weights, *batch)
        weights = {key: weights[key] - learning_rate * gradients[key] for key in weights}
        if step in kept:
            losses.append(loss)
        if checkpoint.due:
            checkpoint.write(State(weights, np.array(losses), step + 1, state.continued_at))
    return {
        "train_loss": np.array(losses),
        "predictions": module.predict(weights, *data.test_inputs()),
        **{f"gradient.{key}": gradient for key, gradient in gradients_at_first.items()},
    }


def evaluate(
    problem: str,
    data: DataSet,
    *,
    weights: Weights,
    outputs: dict[str, Array],
    losses: Array,
    reference: dict[str, Array],
) -> dict[str, float]:
    """Held-out loss and R², and how far gradient, loss curve and predictions are from the reference.

    R² is 1 - Σ(y_pred - y)² / Σ(y - mean(y))², the sums over all examples and outputs, the mean each output's own.
    Raises UserError when the weights on disk are not those that the predictions were made with.
    """
    y = np.array(data.test["y"], np.float64)
    initial, predictions = (outputs[key].astype(np.float64) for key in ("initial_predictions", "predictions"))
    if _relative(load_problem(problem).predict(weights, *data.test_inputs()), predictions) > SAME_WEIGHTS:
        raise UserError(
            "The weights on disk do not give the predictions of the training. `dvc repro -f` makes both again."
        )
    return {
        "initial_test_loss": float(np.mean((initial - y) ** 2)),
        "test_loss": float(np.mean((predictions - y) ** 2)),
        "test_r2": float(1 - np.sum((predictions - y) ** 2) / np.sum((y - y.mean(0)) ** 2)),
        "gradient_relative_error": max(
            float(np.linalg.norm(outputs[key] - reference[key]) / np.linalg.norm(reference[key]))
            for key in reference
            if key.startswith("gradient.")
        ),
        "loss_curve_relative_difference": float(np.max(np.abs(losses / reference["train_loss"] - 1))),
        "predictions_relative_difference": _relative(predictions, reference["predictions"]),
    }


def _relative(found: Array, expected: Array) -> float:
    """The largest difference, over the root mean square of what is expected."""
    return float(np.max(np.abs(found - expected)) / np.sqrt(np.mean(expected**2)))


def _batches(data: DataSet, batch_size: int) -> Iterator[tuple[Array, ...]]:
    for chunk in cycle(data.chunks(batch_size)):
        yield from zip(*data.read(chunk, batch_size).values(), strict=True)
