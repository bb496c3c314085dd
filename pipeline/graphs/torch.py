"""PyTorch: the graph that autograd recorded in a step.

It is read from the loss's `grad_fn` and the `next_functions` of each function, which exist after `backward` too. The
graph holds what `backward` walks: the function that each operation left, and the weights, at which it ends
(AccumulateGrad). It does not hold what needs no gradient, such as x and y. An edge has the shape of the gradient that
goes along it, which is the shape of the value. Edges point from the weights to the loss; `backward` goes against them.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd.graph import Node

from pipeline.contract import Implementation
from pipeline.graphs.graph import Graph, GraphBuilder, Structure
from pipeline.graphs.record import Names, recorded_locals, weights_of


def record(implementation: Implementation, placed: tuple[Any, ...], names: Names) -> Graph | None:
    """The graph, or None where autograd recorded nothing."""
    weights = weights_of(implementation, names, torch.Tensor)
    # Anomaly detection notes the line of code that made each function.
    with torch.autograd.set_detect_anomaly(True, check_nan=False), recorded_locals(implementation) as variables:
        loss = implementation.step(*placed)
    if not isinstance(loss, torch.Tensor) or loss.grad_fn is None:
        return None
    builder, keys = GraphBuilder(), {}
    called: dict[Any, str] = {}  # by function, and by the origin of a function
    for name, value in variables:
        if isinstance(value, torch.Tensor) and value.grad_fn is not None:
            called.setdefault(value.grad_fn, name)
            called.setdefault(_origin(value.grad_fn), name)

    def key_of(node: Node) -> str:
        if node not in keys:
            weight = getattr(node, "variable", None)
            if weight is not None:
                name = next((name for name, value in weights.items() if value is weight), "")
                label = node.name().rpartition("::")[2]
                keys[node] = builder.add(label, name=name, detail=node.name(), kind="weight", group="data")
            else:
                sources = [
                    (key_of(before), names.shape(before._input_metadata[output].shape))
                    for before, output in node.next_functions
                    if before is not None
                ]
                own = getattr(node, "_forward_cls", None)  # an autograd.Function written in Python
                name = called.get(node) or called.get(_origin(node), "")
                keys[node] = builder.add(own.__name__ if own else node.name(), name=name, detail=node.name())
                for source, shape in sources:
                    builder.connect(source, keys[node], shape)
        return keys[node]

    builder.loss = key_of(loss.grad_fn)
    return builder.finish("What autograd records in one step; backward() goes against the arrows")


def count(implementation: Implementation, batches: list[tuple[Any, ...]], lengths: int) -> Structure:
    """A step defines a graph when it leaves a node that no earlier step left.

    The nodes are those that the loss's `grad_fn` leads to; of a loss without one, which a lesson may have detached,
    those that the local variables of the step lead to. The nodes of the weights (AccumulateGrad) are in the graphs of
    all steps, so they count as nodes, but do not make a graph a new one. All nodes are kept until the end: a new node
    would otherwise take the memory, and with it the identity, of one that is gone.
    """
    seen: set[Node] = set()
    sizes = []
    for placed in batches:
        with recorded_locals(implementation) as variables:
            loss = implementation.step(*placed)
        functions = [getattr(value, "grad_fn", None) for value in (loss, *(value for _, value in variables))]
        nodes = _reached(functions[:1] if functions[0] else functions)
        if any(not hasattr(node, "variable") for node in nodes - seen):
            sizes.append(len(nodes))
        seen |= nodes
    return Structure(len(batches), lengths, len(sizes), tuple(sizes))


def _reached(functions: Iterable[Node | None]) -> set[Node]:
    """The nodes of autograd's graph that these lead to, themselves included."""
    reached: set[Node] = set()
    ahead = list(functions)
    while ahead:
        node = ahead.pop()
        if node is not None and node not in reached:
            reached.add(node)
            ahead += [before for before, _ in node.next_functions]
    return reached


def _origin(node: Node) -> tuple[str, ...]:
    """The line of code that made a function, its kind and those of its inputs: a Python loop's rounds share them."""
    kinds = (before.name() for before, _ in node.next_functions if before is not None)
    metadata: Any = node.metadata
    return "".join(metadata.get("traceback_", ())), node.name(), *kinds
