"""A small batch in float64 on which a lesson is compared with the equations of its problem."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.contract import Array, load_problem

# Prime numbers, each of its own, so that a size in a shape says which one it is.
EXAMPLES, SIZES, LENGTHS = 5, (11, 13, 3), (2, 7, 1, 4, 3)
LEARNING_RATE = 0.375  # exact in float32, in which Keras keeps it


def size_names(problem: str) -> list[str]:
    """The sizes of a problem that shapes have: inputs and outputs, and not the range of lengths."""
    names: Any = load_problem(problem).Sizes.__annotations__  # pyright: ignore[reportAttributeAccessIssue]
    return [name for name in names if name not in ("min_length", "max_length")]


def draw(
    problem: str, examples: int, sizes: Sequence[int], lengths: Sequence[int], generator: np.random.Generator
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Weights and a batch. `lengths` are those of the examples of a problem that has them; padding is NaN."""
    module = load_problem(problem)
    named = dict(zip(size_names(problem), sizes, strict=False))
    space = SimpleNamespace(**named, min_length=max(lengths), max_length=max(lengths))
    weights = {key: array.astype(np.float64) for key, array in module.draw_weights(space, generator).items()}
    batch = module.draw_inputs(space, examples, generator)
    batch["y"] = module.draw_targets(space, batch, None, 1.0, generator)
    batch = {key: array.astype(np.float64) if array.dtype.kind == "f" else array for key, array in batch.items()}
    if "lengths" in batch:
        batch["lengths"] = np.array(lengths)
        for row, length in zip(batch["x"], lengths, strict=True):
            row[length:] = np.nan
    return weights, batch


def example_to_compare(problem: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """Weights and a batch. A hidden unit gets exactly 0 from the inputs, where relu has no derivative."""
    weights, batch = draw(problem, EXAMPLES, SIZES, LENGTHS, np.random.default_rng(0))
    weights = {key: array * 1.1 for key, array in weights.items()}  # not exact in float32
    next(iter(weights.values()))[:, 0] = 0
    return weights, batch
