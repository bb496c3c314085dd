"""The graph of a problem's equations: a node for each equation, edges from each quantity to the equations that use it.

Weights are what an update changes. Data are the other names whose shape the docstring's text gives: `x (N, inputs)`.
Sizes, indices and the learning rate are not shown.
"""

import re

from pipeline.graphs.graph import Graph, GraphBuilder
from pipeline.quantities.equations import Equation, equations


def graph_of_equations(docstring: str, title: str) -> Graph:
    builder, lines = GraphBuilder(), equations(docstring)
    updates = {line.name: line for line in lines if line.part == "update"}
    keys = {line.number: builder.add(line.right, name=line.name, group=line.part, detail=line.left) for line in lines}
    given: dict[str, tuple[str, str]] = {}  # the keys and the shapes of weights and data
    for name in sorted(set().union(*(line.operands for line in lines))):
        shape = re.search(rf"\b{name}(?:\[\w+\])? \((\w+(?:, \w+)*,?)\)", docstring)
        if name in updates:
            given[name] = builder.add(name, name=name, group="data", kind="weight"), _size(updates[name].shape)
        elif shape and not any(line.name == name for line in lines):
            given[name] = builder.add(name, name=name, group="data", kind="data"), _size(shape[1])
    for line in lines:
        for name in sorted(line.operands):
            if name in given:
                source, shape = given[name]
                builder.connect(source, keys[line.number], shape)
            computed = [other for other in lines if other.name == name and other.part != "update"]
            before = [other for other in computed if other.number < line.number]
            for other in before[-1:]:
                builder.connect(keys[other.number], keys[line.number], _size(other.shape))
            for other in computed[len(before) :]:  # computed in one iteration, and used in the next
                builder.connect(keys[other.number], keys[line.number], _size(other.shape), again=True)
    return builder.finish(title, recorded=False)


def _size(shape: str) -> str:
    return Equation("", "", shape, "").size if shape else ""
