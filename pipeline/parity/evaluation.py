"""How far a trained implementation is from the float64 reference run, and how good its predictions are."""

import numpy as np

from pipeline.contract import Array, Weights, load_problem
from pipeline.errors import UserError
from pipeline.training.data import DataSet

SAME_WEIGHTS = (
    5e-2  # how far predictions of the same weights may be apart; by TF32's rounding up to 1e-2 (tests/tf32.py)
)


def evaluate(
    problem: str,
    data: DataSet,
    *,
    weights: Weights,
    outputs: dict[str, Array],
    reference: dict[str, Array],
) -> dict[str, float]:
    """Held-out loss and R², and how far gradient, loss curve and predictions are from the reference.

    R² is 1 - Σ(y_pred - y)² / Σ(y - mean(y))², the sums over all examples and outputs, the mean each output's own.
    Raises UserError when the weights on disk are not those that the predictions were made with.
    """
    y = np.array(data.test["y"], np.float64)
    initial, predictions = (outputs[key].astype(np.float64) for key in ("initial_predictions", "predictions"))
    if relative_difference(load_problem(problem).predict(weights, *data.test_inputs()), predictions) > SAME_WEIGHTS:
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
        "loss_curve_relative_difference": float(np.max(np.abs(outputs["train_loss"] / reference["train_loss"] - 1))),
        "predictions_relative_difference": relative_difference(predictions, reference["predictions"]),
    }


def relative_difference(found: Array, expected: Array) -> float:
    """The largest difference, over the root mean square of what is expected."""
    return float(np.max(np.abs(found - expected)) / np.sqrt(np.mean(expected**2)))
