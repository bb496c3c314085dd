"""The stage `reference`: the same gradient descent in float64, by the equations in the problem's file.

It uses only NumPy, no framework and no implementation. Every implementation is compared with it, so agreement means
agreement with the maths.
"""

from collections.abc import Iterator
from itertools import cycle, islice

import numpy as np

from pipeline import files
from pipeline.array_files import write_arrays
from pipeline.contract import Array, load_problem
from pipeline.environment import check_imported
from pipeline.params import load_params
from pipeline.training.checkpoint import NONE, Checkpoint, State, checkpoint_of
from pipeline.training.data import DataSet
from pipeline.training.history import kept_steps
from pipeline.training.resource_check import check_memory


def main(problem: str) -> None:
    params = load_params()
    check_imported(files.read_environment())
    check_memory(params)
    schedule = params.problems[problem].train
    checkpoint = checkpoint_of(f"reference@{problem}", problem, params)
    reference = reference_run(
        problem,
        DataSet(problem),
        steps=schedule.steps,
        batch_size=schedule.batch_size,
        learning_rate=params.train.learning_rate,
        checkpoint=checkpoint,
    )
    write_arrays(files.reference_file(problem), reference)
    checkpoint.remove()


@np.errstate(over="ignore", invalid="ignore")  # a training that diverges ends with its own message
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


def _batches(data: DataSet, batch_size: int) -> Iterator[tuple[Array, ...]]:
    for chunk in cycle(data.chunks(batch_size)):
        yield from zip(*data.read(chunk, batch_size).values(), strict=True)
