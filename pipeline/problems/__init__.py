"""The problems, a file for each. A problem is a module with everything that `Problem` in pipeline/contract.py lists. No
other file names a problem: other modules call `load_problem`, and `PROBLEMS` are the files of this folder.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.contract import Array

PROBLEMS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py")))

Size = Annotated[int, Field(ge=1, le=2**53)]  # pipeline/training/resource_check.py refuses sizes that are too large


class Section(BaseModel):
    """A section of params.yaml: it has these keys, no others, and values of these types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def noise_deviation(noise: float, *, teacher: bool) -> float:
    """The standard deviation of the noise in the targets, which without a teacher are standard normal."""
    return noise if teacher else 1.0


def noisy(answers: Array | None, shape: tuple[int, int], noise: float, generator: np.random.Generator) -> Array:
    """Targets (N, outputs), float32: `answers` plus normal noise of this standard deviation, or standard normal
    numbers."""
    targets = generator.standard_normal(shape) * noise_deviation(noise, teacher=answers is not None)
    return (targets if answers is None else targets + answers).astype(np.float32)


def mean_squared_error(y_pred: Array, y: Array) -> float:
    """Over all elements of y_pred and y, each (N, outputs)."""
    return float(np.mean((y_pred - y) ** 2))


def mean_target(y: Array) -> Array:
    """The constant prediction (outputs,) with the smallest squared error."""
    return y.mean(0)
