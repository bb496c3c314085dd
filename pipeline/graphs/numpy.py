"""NumPy records no graph. `count` verifies that by measurement, as for the other frameworks."""

from typing import Any
from weakref import ref

import numpy as np

from pipeline.contract import Implementation
from pipeline.graphs.graph import Graph, Structure
from pipeline.graphs.record import Names, recorded_locals


def record(_implementation: Implementation, _placed: tuple[Any, ...], _names: Names) -> Graph | None:
    """None: there is no graph to read."""
    return None


def count(implementation: Implementation, batches: list[tuple[Any, ...]], lengths: int) -> Structure:
    """A step defines a graph when its loss, and nothing else, keeps other results of the step in memory.

    A graph leads from the loss back to the results that it was computed from, so these would not be freed.
    """
    graphs = 0
    for placed in batches:
        with recorded_locals(implementation) as variables:
            loss = implementation.step(*placed)
        kept = {id(value) for value in (loss, *placed, *vars(implementation).values())}
        results = [ref(value) for _, value in variables if isinstance(value, np.ndarray) and id(value) not in kept]
        variables.clear()
        graphs += any(result() is not None for result in results)
    return Structure(len(batches), lengths, graphs)
