"""The numbers of a step on a batch that is small enough to read: two examples, and each quantity.

The problem draws weights and data as for a training, and they are rounded to one decimal. Draws are tried in order
until a reader can see what happens (`_is_readable`).
"""

import inspect
from typing import Any

import numpy as np

from pipeline.contract import Array, implementation_file, load_implementation, load_problem
from pipeline.graphs.graph import Example, Value
from pipeline.quantities.example import draw
from pipeline.quantities.match import Matcher
from pipeline.quantities.observe import Observation, observe
from pipeline.quantities.paper import Paper
from pipeline.runtimes import Runtime

EXAMPLES, SIZES, SIZES_WITH_LENGTHS = 2, (3, 2, 1), (2, 2, 1)
LENGTHS = (1, 3)  # where examples have lengths; not sorted, so that a lesson that sorts them shows it
LEARNING_RATE = 0.1


def record_example(name: str, problem: str, runtime: Runtime) -> Example:
    """A step of a lesson on the small batch. Quantities that the lesson does not show are computed by the equations."""
    paper = small_step(problem)
    file = implementation_file(problem, name)
    observation = observe(file.read_text(encoding="utf-8"), file, runtime, paper)
    if observation.failure and not isinstance(observation.failure.error, Exception):
        raise observation.failure.error  # Ctrl-C, or a signal that ends the stage
    names = [key for key in inspect.signature(load_implementation(problem, name).step).parameters if key != "self"]
    return Example(
        learning_rate=LEARNING_RATE,
        batch={key: _numbers(array) for key, array in paper.batch.items()},
        weights={key: array.tolist() for key, array in paper.weights.items()},
        placed={
            key: _numbers(value) for key, value in zip(names, observation.placed, strict=False) if value is not None
        },
        states={key: [_numbers(array) for array in arrays] for key, arrays in _states(paper, observation).items()},
        values=[
            Value(
                match.equation.number,
                match.key[1],
                match.time,
                match.line,
                _numbers(match.expected if match.value is None else match.value),
                recorded=match.value is not None,
            )
            for match in Matcher(paper, observation).matches()
        ],
    )


def small_step(problem: str) -> Paper:
    """The first draw in which a reader can see what each equation does; the very first if no draw is like that."""
    return next((paper for seed in range(1000) if _is_readable(paper := _drawn(problem, seed))), _drawn(problem, 0))


def _drawn(problem: str, seed: int) -> Paper:
    has_lengths = "max_length" in load_problem(problem).Sizes.__annotations__  # pyright: ignore[reportAttributeAccessIssue]
    sizes = SIZES_WITH_LENGTHS if has_lengths else SIZES
    weights, batch = draw(problem, EXAMPLES, sizes, LENGTHS, np.random.default_rng(seed))
    rounded = {key: _rounded(array) for key, array in (weights | batch).items()}
    return Paper(problem, {key: rounded[key] for key in weights}, {key: rounded[key] for key in batch}, LEARNING_RATE)


def _rounded(array: Array) -> Array:
    return array if array.dtype.kind == "i" else np.round(array, 1) + 0.0  # no -0


def _states(paper: Paper, observation: Observation) -> dict[str, list[Array]]:
    """By name: each state as the loop over time passes it to a time step, arranged as in the lesson. A state is a
    quantity that is computed from its own value at the time step before.
    """
    if paper.lengths is None:
        return {}
    states = {}
    for line in paper.equations:
        if line.times and line.part == "forward" and line.name in line.operands:
            events = [event for event in observation.events if (event.call, event.number) == ("step", 1)]
            events = [event for event in events if event.name == line.name and event.kind in ("argument", "assigned")]
            states[line.name] = [event.value for event in events[: max(paper.lengths)]]
    return states


def _is_readable(paper: Paper) -> bool:
    """No drawn number is 0, except in one-hot targets. Results are 0 or at least 0.01, and none is 0 throughout.

    relu keeps some numbers of each example and sets others to 0. Rows of examples that have lengths differ, so that the
    page can say which example is where after a lesson sorted them.
    """
    x, y = paper.given["x"], paper.given["y"]
    steps = [x] if paper.lengths is None else [row[:length] for row, length in zip(x, paper.lengths, strict=True)]
    drawn = [*steps, *paper.weights.values(), y[~np.isin(y, (0, 1)).all(1)]]
    values = [(line.right, paper.values[key]) for line, key, _ in paper.order if not line.right.startswith("zeros(")]
    values = [(right, value[np.isfinite(value).all(-1)] if value.ndim else value) for right, value in values]
    relus = [value for right, value in values if "relu(" in right]
    return (
        all(map(np.all, drawn))
        and (paper.lengths is None or (_differ(np.concatenate(steps)) and _differ(y)))
        and all(np.any(value) and not np.any((value != 0) & (np.abs(value) < 0.01)) for _, value in values)
        and all(np.all(np.any(value, axis=-1)) for value in relus)
        and (not relus or any(np.any(value == 0) for value in relus))
    )


def _differ(rows: Array) -> bool:
    return len(np.unique(rows, axis=0)) == len(rows)


def _numbers(array: Array) -> Any:
    """Nested lists. None is NaN, as in the rows of examples that are not that long, or infinity."""
    return np.where(np.isfinite(array), array, np.array(None)).tolist()
