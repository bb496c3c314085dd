"""The quantities of one step of gradient descent, computed in float64 by the equations of a problem's docstring.

The equations of a problem whose examples have lengths are those of one example. They are computed for each example, and
a quantity of the batch is made from them: rows are stacked, losses averaged, gradients of weights added.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from pipeline.contract import Array, Batch, Weights, load_problem
from pipeline.quantities.equations import Equation, equations

FUNCTIONS = {
    "exp": np.exp,
    "log": np.log,
    "mean": np.mean,
    "relu": lambda a: np.maximum(a, 0),
    "softmax": lambda a: (
        np.exp(a - a.max(-1, keepdims=True)) / np.exp(a - a.max(-1, keepdims=True)).sum(-1, keepdims=True)
    ),
    "zeros": lambda *shape: np.zeros(shape),
}
Key = tuple[str, int | str | None]  # a quantity's name and its index, where it has one: ("h", 3), ("grad_h", "length")


class Paper:
    """The quantities of a step on one batch, whose arrays are those of the problem, y last.

    `order` names each quantity with the equation that computes it and the time step, in the order of computation.
    `values` has their values. One with an index has a row for each example (N, width), which is NaN where the example
    is not that long. Weights have their values after the step in `values`, and those before it in `given`.
    """

    def __init__(self, problem: str, weights: Weights, batch: Batch, learning_rate: float) -> None:
        self.problem, self.batch = problem, batch
        self.equations = equations(load_problem(problem).__doc__ or "")
        self.weights = {key: np.asarray(array, np.float64) for key, array in weights.items()}
        self.lengths = batch.get("lengths")
        x, *_, y = (np.asarray(array, np.float64) for array in batch.values())
        self.given: dict[str, Any] = {"x": x, "y": y, **self.weights, "learning_rate": learning_rate}
        self.sizes = self._sizes()
        names: dict[str, Any] = FUNCTIONS | self.given | self.sizes
        self._examples = [names.copy()]
        if self.lengths is not None:
            self._examples = [
                names | {"x": dict(enumerate(rows[:length, None], 1)), "y": row[None], "length": int(length)}
                for rows, row, length in zip(x, y, self.lengths, strict=True)
            ]
        for example in self._examples:
            example |= {line.name: {} for line in self.equations if "[" in line.left}
        self.order: list[tuple[Equation, Key, int | None]] = []
        self.values: dict[Key, Array] = {}
        self._compute()

    def evaluate(
        self, right: str, equation: Equation, time: int | None = None, *, names: Mapping[str, Any] | None = None
    ) -> Array:
        """What `equation` would compute at this time step if its right side were `right`.

        `names` are values to use instead of those of this step.
        """
        code, changed = compile(right, right, "eval"), {"t": time, **(names or {})}
        if equation.part == "update":
            sums = {f"grad_{key}": self.values[f"grad_{key}", None] for key in self.weights}
            return np.asarray(eval(code, {**self._examples[0], **sums, **changed}))  # noqa: S307
        rows = [
            None if time and time > example["length"] else np.asarray(eval(code, {**example, **changed}))  # noqa: S307
            for example in self._examples
        ]
        return self._of_batch(rows, equation.shape)

    def _compute(self) -> None:
        for times, group in groupby(self.equations, key=lambda line: line.times):
            together = list(group)
            for time in self._steps(times):
                for line in together:
                    if line.part == "update":
                        self.values[line.name, None] = self.evaluate(line.right, line)
                        self.order.append((line, (line.name, None), time))
                        continue
                    for example in self._examples:
                        if not time or time <= example["length"]:
                            # Names in one place, so that a generator in an equation finds them.
                            example["t"] = time
                            exec(f"{line.left} = {line.right}", example)  # noqa: S102
                    index = self._index(line, time)
                    rows = [_element(example[line.name], index, example) for example in self._examples]
                    self.values[line.name, index] = self._of_batch(rows, line.shape)
                    self.order.append((line, (line.name, index), time))

    def _steps(self, times: str) -> list[int | None]:
        if not times:
            return [None]
        longest = 0 if self.lengths is None else int(max(self.lengths))
        steps = {"for t = 1 … length": range(1, longest + 1), "for t = length … 1": range(longest, 0, -1)}
        return list(steps[times])

    def _index(self, line: Equation, time: int | None) -> int | str | None:
        """Of h[t] the time step, of h[0] 0, and of h[length] the word: each example has its own."""
        text = line.left.partition("[")[2].removesuffix("]")
        return text if text == "length" else eval(text, {"t": time}) if text else None  # noqa: S307

    def _of_batch(self, rows: Sequence[Array | None], shape: str) -> Array:
        if self.lengths is None:
            return np.asarray(rows[0])
        whole = [row for row in rows if row is not None]
        if not shape:
            return np.mean(whole, axis=0)
        if shape.startswith("1,"):
            nothing = np.full_like(whole[0], np.nan)
            return np.concatenate([nothing if row is None else row for row in rows])
        return np.sum(whole, axis=0)

    def _sizes(self) -> dict[str, int]:
        """The sizes that the equations name, such as N and hidden, from the shapes of weights and targets."""
        sizes = {"N": len(self.given["y"])}
        shapes = {line.name: line.shape for line in self.equations if line.part == "update"}
        for key, shape in shapes.items():
            sizes |= dict(zip(shape.split(", "), self.weights[key].shape, strict=True))
        return sizes


def _element(value: Any, index: int | str | None, example: Mapping[str, Any]) -> Array | None:
    if index is None:
        return np.asarray(value)
    return value.get(example["length"] if index == "length" else index)
