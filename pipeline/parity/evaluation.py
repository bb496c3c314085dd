"""The stage `evaluate`: how far each implementation is from the float64 reference, and how good its predictions are."""

import numpy as np

from pipeline import files
from pipeline.array_files import read_arrays
from pipeline.contract import Array, Weights, load_problem
from pipeline.errors import UserError
from pipeline.measures import Measures
from pipeline.params import load_params
from pipeline.results import Evaluation
from pipeline.training.data import DataSet

# The tolerance for predictions from the same weights. The rounding of TF32 causes up to 1e-2 (tests/tf32.py).
SAME_WEIGHTS = 5e-2
POINTS = 1000  # predictions of a problem's test set that are kept to be shown, at most
FIT_POINTS = 200  # the same of each implementation


def main(*names: str) -> None:
    """Evaluate these implementations. Without names evaluate all, and write the files for the pages: for each problem
    the loss curves and the predictions of its first implementation; for each implementation the predictions before and
    after training.
    """
    params = load_params()
    for problem in params.used_problems:
        judged = [name for name in params.names_of(problem) if not names or name in names]
        if not judged:
            continue
        data, curve, points = DataSet(problem), [], []
        for name in judged:
            evaluation, outputs = _judged(problem, name, data)
            evaluation.write(files.parity_file(name))
            curve += [(*point, name) for point in zip(outputs["step"], outputs["train_loss"], strict=True)]
            predictions = outputs["predictions"]
            points = points or chosen_points(data.test["y"], predictions)
            if not names:
                fit = chosen_points(data.test["y"], outputs["initial_predictions"], predictions, most=FIT_POINTS)
                files.write_rows(files.fit_file(name), "target,before,after", fit)
        if not names:
            files.write_rows(files.curves_file(problem), "step,train_loss,implementation", curve)
            files.write_rows(files.predictions_file(problem), "target,prediction", points)


def chosen_points(*arrays: Array, most: int = POINTS) -> list[tuple[float, ...]]:
    """At most `most` elements at even distances, the same ones of each array (N, outputs)."""
    size = arrays[0].size
    chosen = np.linspace(0, size - 1, min(most, size), dtype=int)
    return list(zip(*(array.reshape(-1)[chosen] for array in arrays), strict=True))


def _judged(problem: str, name: str, data: DataSet) -> tuple[Evaluation, dict[str, Array]]:
    """The evaluation of an implementation, and the outputs that were evaluated."""
    weights = {key: array.shape for key, array in data.initial.items()}
    shapes = {"train_loss": None, "predictions": data.test["y"].shape}
    shapes |= {f"gradient.{key}": shape for key, shape in weights.items()}
    reference = read_arrays(files.reference_file(problem), shapes)
    kept = reference["train_loss"].shape
    shapes |= {"initial_predictions": data.test["y"].shape, "train_loss": kept, "step": kept}
    outputs = read_arrays(files.outputs_file(name), shapes)
    trained = read_arrays(files.weights_file(name), weights)
    evaluation = evaluate(problem, data, weights=trained, outputs=outputs, reference=reference)
    return evaluation.model_copy(update={"outputs_md5": files.md5(files.outputs_file(name))}), outputs


def evaluate(
    problem: str,
    data: DataSet,
    *,
    weights: Weights,
    outputs: dict[str, Array],
    reference: dict[str, Array],
) -> Evaluation:
    """Held-out loss and R², and how far gradient, loss curve and predictions are from the reference.

    R² is 1 - loss / loss of the best constant prediction: of squared errors the usual R², of cross-entropies
    McFadden's (1974). Where a constant predicts every target exactly, as with one test example, R² is 1 for exact
    predictions and 0 for others, as scikit-learn's r2_score has it.

    Raises UserError when the weights on disk are not those that the predictions were made with.
    """
    module, y = load_problem(problem), np.array(data.test["y"], np.float64)
    initial, predictions = (outputs[key].astype(np.float64) for key in ("initial_predictions", "predictions"))
    # Not raised for a lesson with a wrong forward pass, which its initial predictions show: its weights are not the
    # cause.
    computes_the_problem = _agree(module.predict(data.initial, *data.test_inputs()), initial)
    if computes_the_problem and not _agree(module.predict(weights, *data.test_inputs()), predictions):
        raise UserError(
            "The weights on disk do not give the predictions of the training. `dvc repro -f` makes both again."
        )
    test_loss = module.loss(predictions, y)
    constant_loss = module.loss(np.broadcast_to(module.best_constant(y), y.shape), y)
    losses = reference["train_loss"]
    gradients = {key: reference[key] for key in reference if key.startswith("gradient.")}
    largest = max(float(np.linalg.norm(gradient)) for gradient in gradients.values())
    return Evaluation(
        initial_test_loss=module.loss(initial, y),
        test_loss=test_loss,
        test_r2=1 - test_loss / constant_loss if constant_loss else float(test_loss == 0),
        parity=Measures(
            gradient=max(
                _over(float(np.linalg.norm(outputs[key] - gradient)), float(np.linalg.norm(gradient)) or largest)
                for key, gradient in gradients.items()
            ),
            loss_curve=max(map(_over, np.abs(outputs["train_loss"] - losses).tolist(), losses.tolist())),
            predictions=relative_difference(predictions, reference["predictions"]),
        ),
        outputs_md5="",
    )


def relative_difference(values: Array, expected: Array) -> float:
    """The largest difference, over the root mean square of the expected values."""
    return _over(float(np.max(np.abs(values - expected))), float(np.sqrt(np.mean(expected**2))))


def _agree(predictions: Array, others: Array) -> bool:
    return relative_difference(predictions, others) <= SAME_WEIGHTS


def _over(difference: float, size: float) -> float:
    """The difference relative to a size; the difference itself where that is 0, as when every unit of relu is off."""
    return difference / size if size else difference
