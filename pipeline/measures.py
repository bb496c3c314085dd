"""The measures of the parity check. Only this module defines them; params.yaml has a tolerance for each."""

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from pipeline.problems import Section


def _number(value: Any) -> Any:
    """1 is 1.0."""
    try:
        return float(value) if type(value) is int else value
    except OverflowError:
        return math.inf


Float = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
PositiveFloat = Annotated[Float, Field(gt=0)]


class Measures(Section):
    """The measures of the parity check, each a difference from the float64 reference.

    `gradient` is the relative error of the gradient at the initial weights, the largest over the weights; `loss_curve`
    the largest relative difference of a training loss; `predictions` the largest difference of a held-out prediction
    after training, over the root mean square of the reference's.
    """

    gradient: Annotated[Float, Field(ge=0)]
    loss_curve: Annotated[Float, Field(ge=0)]
    predictions: Annotated[Float, Field(ge=0)]

    def over(self, tolerances: "Tolerances") -> list[str]:
        """The names of the measures that exceed their tolerance."""
        return [name for name, limit in tolerances if not getattr(self, name) <= limit]


class Tolerances(Measures):
    gradient: PositiveFloat
    loss_curve: PositiveFloat
    predictions: PositiveFloat
