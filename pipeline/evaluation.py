"""What is measured of a trained implementation, and how its parity with the float64 reference is judged.

The reference run is the same gradient descent done in float64 by the equations in the problem's file: NumPy alone, no
framework and no lesson. Everything is compared with it, so that what agrees, agrees with the maths.
"""

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import numpy as np

from pipeline.contract import Array, Implementation, Weights, load_problem
from pipeline.data import DataSet
from pipeline.params import Params, Tolerances

GRADIENT_LEARNING_RATE = 2.0**20  # a power of two, so large that `initial - weights` cancels no digits of the gradient


@np.errstate(over="ignore", invalid="ignore")  # a training that diverges says so itself, in a sentence
def reference_run(
    problem: str, data: DataSet, *, steps: int, batch_size: int, learning_rate: float
) -> dict[str, Array]:
    """Train in float64 from the initial weights.

    Returns train_loss (steps,), predictions (test examples, outputs) after training, and gradient.KEY, the gradient of
    the first batch at the initial weights, for each weight.
    """
    module = load_problem(problem)
    weights = {key: array.astype(np.float64) for key, array in data.initial.items()}
    losses: list[float] = []
    first: dict[str, Array] = {}
    for batch in _batches(data, batch_size):
        loss, gradients = module.loss_and_gradients(weights, *batch)
        first = first or gradients
        weights = {key: weights[key] - learning_rate * gradients[key] for key in weights}
        losses.append(loss)
        if len(losses) == steps:
            break
    return {
        "train_loss": np.array(losses),
        "predictions": module.predict(weights, *data.test_inputs()),
        **{f"gradient.{key}": gradient for key, gradient in first.items()},
    }


def evaluate(
    create: Callable[[Weights, float], Implementation],
    data: DataSet,
    *,
    weights: Weights,
    losses: Array,
    reference: dict[str, Array],
    batch_size: int,
) -> dict[str, float]:
    """Held-out loss and R² of trained `weights`, and how far gradient, curve and predictions are from the reference.

    `create(weights, learning_rate)` constructs the implementation. R² is 1 - Σ(y_pred - y)² / Σ(y - mean(y))², the sums
    over all examples and outputs, the mean each output's own.
    """
    y = np.array(data.test["y"], np.float64)
    predictions = create(weights, 1.0).predict(*data.test_inputs()).astype(np.float64)
    initial_predictions = create(data.initial, 1.0).predict(*data.test_inputs()).astype(np.float64)
    gradients = gradient_of(create, data.initial, data.read(slice(0, batch_size), batch_size))
    return {
        "initial_test_loss": float(np.mean((initial_predictions - y) ** 2)),
        "test_loss": float(np.mean((predictions - y) ** 2)),
        "test_r2": float(1 - np.sum((predictions - y) ** 2) / np.sum((y - y.mean(0)) ** 2)),
        "gradient_relative_error": max(
            float(
                np.linalg.norm(gradients[key] - reference[f"gradient.{key}"])
                / np.linalg.norm(reference[f"gradient.{key}"])
            )
            for key in gradients
        ),
        "loss_curve_relative_difference": float(np.max(np.abs(losses / reference["train_loss"] - 1))),
        "predictions_relative_difference": float(
            np.max(np.abs(predictions - reference["predictions"])) / np.sqrt(np.mean(reference["predictions"] ** 2))
        ),
    }


def gradient_of(
    create: Callable[[Weights, float], Implementation], initial: Weights, batches: dict[str, Array]
) -> dict[str, Array]:
    """The gradient that an implementation descends along, at `initial` on the first batch: what one step takes away."""
    implementation = create(initial, GRADIENT_LEARNING_RATE)
    implementation.load(batches)
    implementation.train(1)
    after = implementation.weights()
    return {key: (initial[key] - after[key]).astype(np.float64) / GRADIENT_LEARNING_RATE for key in initial}


def certificate(params: Params, measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The parity certificate: for each implementation what was measured, what it breaches, and whether all passed."""
    tolerances: Tolerances = getattr(params.parity, params.dtype)
    rows = {
        name: {"problem": params.implementations[name], **measures, "breaches": _breaches(measures, tolerances)}
        for name, measures in measured.items()
    }
    return {
        "passed": not any(row["breaches"] for row in rows.values()),
        "dtype": params.dtype,
        "tolerances": tolerances.model_dump(),
        "implementations": rows,
    }


def table(comparison: dict[str, Any]) -> str:
    """The certificate as text, a line for each implementation, the figures that breach their tolerance marked ✗."""
    rows: list[tuple[str, ...]] = [("", "held-out loss", "R²", "gradient", "loss curve", "predictions", "")]
    for name, row in comparison["implementations"].items():
        figures = [
            f"{row[measure]:.1e}{' ✗' if measure in row['breaches'] else ''}"
            for measure in _limits(comparison["tolerances"])
        ]
        loss = f"{row['initial_test_loss']:.4f} → {row['test_loss']:.4f}"
        rows.append((name, loss, f"{row['test_r2']:.4f}", *figures, "✗ BREACH" if row["breaches"] else "✓"))
    rows.append(("tolerance", "", "", *(f"{limit:.1e}" for limit in comparison["tolerances"].values()), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _breaches(measures: dict[str, Any], tolerances: Tolerances) -> list[str]:
    # `not <=` rather than `>`: a measure that is not a number breaches any tolerance.
    return [measure for measure, limit in _limits(tolerances.model_dump()).items() if not measures[measure] <= limit]


def _limits(tolerances: dict[str, float]) -> dict[str, float]:
    return {
        "gradient_relative_error": tolerances["gradient"],
        "loss_curve_relative_difference": tolerances["loss_curve"],
        "predictions_relative_difference": tolerances["predictions"],
    }


def _batches(data: DataSet, batch_size: int) -> Iterator[tuple[Array, ...]]:
    for block in cycle(data.blocks(batch_size)):
        yield from zip(*data.read(block, batch_size).values(), strict=True)
