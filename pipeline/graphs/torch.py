"""PyTorch: the graph that autograd recorded in a step; without autograd, the operations in the order in which they ran.

The autograd graph is read from the `grad_fn` of the loss and their `next_functions`, which are there after `backward`
too. It holds what `backward` walks: the function that each operation left, and the weights, at which it ends
(AccumulateGrad). What needs no gradient, such as x and y, is not in it. An edge has the shape of the gradient that goes
along it, which is that of the value it is the gradient of; autograd notes it for its own checks. Edges point as the
values went, from the weights to the loss, and `backward` goes against them.

A step that leaves no such graph is watched as it runs, function by function (a TorchFunctionMode). A view, such as a
transpose or a slice, computes nothing: what uses it is shown to use the tensor itself, in the view's shape.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode, resolve_name

from pipeline.contract import Implementation
from pipeline.graphs import Graph, Names, Record, is_number, local_values, weights_of


def trace(implementation: Implementation, batches: Iterable[tuple[Any, Names]]) -> list[Graph]:
    return [_trace(implementation, placed, names) for placed, names in batches]


def _trace(implementation: Implementation, placed: tuple[Any, ...], names: Names) -> Graph:
    weights = weights_of(implementation, names, torch.Tensor)
    recorded: dict[Node, str] = {}  # the local variables' names for what autograd recorded
    ran = Watched(Record("what one step computes", names))
    for name, weight in weights.items():
        ran.record.weight(name, ran.storage(weight))

    def bound(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            ran.record.name(ran.storage(value), name)
            if value.grad_fn is not None:
                recorded.setdefault(value.grad_fn, name)

    with ran, local_values(implementation, bound):
        loss = implementation.step(*placed)
    if isinstance(loss, torch.Tensor) and loss.grad_fn is not None:
        return _autograd(loss.grad_fn, weights, recorded, names)
    if isinstance(loss, torch.Tensor):
        ran.record.graph.loss = ran.record.source(ran.storage(loss))
    return ran.record.graph


def _autograd(loss: Node, weights: dict[str, Any], recorded: dict[Node, str], names: Names) -> Graph:
    graph, keys = Graph("what autograd records in one step; backward() goes against the arrows"), {}
    for node in _from_weights(loss):
        if hasattr(node, "variable"):
            variable: Any = getattr(node, "variable")  # noqa: B009 (pyright does not see it)
            name = next((name for name, weight in weights.items() if weight is variable), "")
            label = node.name().rpartition("::")[2]
            keys[node] = graph.add(label, name=name, detail=node.name(), kind="weight", group="data")
            continue
        own = getattr(node, "_forward_cls", None)  # of an autograd.Function in Python
        label = own.__name__ if own else node.name()
        keys[node] = graph.add(label, name=recorded.get(node, ""), detail=node.name())
        for before, output in node.next_functions:
            if before is not None:
                graph.connect(keys[before], keys[node], names.shape(before._input_metadata[output].shape))
    graph.loss = keys[loss]
    return graph


def _from_weights(loss: Node) -> list[Node]:
    """The nodes of the graph, each after those that it takes from."""
    found: dict[Node, None] = {}
    ahead: list[tuple[Node, Iterator[Any]]] = [(loss, iter(loss.next_functions))]
    while ahead:  # not by recursion: a loop over time may leave a long chain
        node, following = ahead[-1]
        before = next((each for each, _ in following if each is not None and each not in found), None)
        if before is None:
            found[node] = None
            ahead.pop()
        else:
            ahead.append((before, iter(before.next_functions)))
    return list(found)


class Watched(TorchFunctionMode):
    """Notes which of torch's functions are called, with what, and what they make or change."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    def storage(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        self.record.kept.append(storage)
        return storage._cdata

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operands = [*args, *(kwargs or {}).values()]
        versions = [(tensor, tensor._version) for tensor in _tensors(operands)]
        result = func(*args, **(kwargs or {}))
        changed = {self.storage(tensor) for tensor, version in versions if tensor._version != version}
        there = {self.storage(tensor) for tensor, _ in versions}
        made = {self.storage(tensor) for tensor in _tensors([result])} - there
        if (changed or made) and func.__name__ != "__get__":  # an attribute
            name, used = resolve_name(func) or func.__name__, list(self._operands(operands))
            label = func.__name__.strip("_") if func.__name__.startswith("__") else func.__name__
            self.record.operation(label, name, used, sorted(changed | made))
        return result

    def _operands(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            if isinstance(value, torch.Tensor):
                yield self.storage(value), tuple(value.shape)
            elif is_number(value):
                yield float(value)
            elif isinstance(value, list | tuple) and next(_tensors(value), None) is not None:
                yield from self._operands(value)


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
