"""PyTorch: the graph that autograd recorded in a step.

It is read from the loss's `grad_fn` and the `next_functions` of each function, which exist after `backward` too. The
graph holds what `backward` traverses: the function that each operation recorded, and the weights, at which it ends
(AccumulateGrad). It does not hold values that need no gradient, such as x and y. An edge has the shape of the gradient
that goes along it, which is the shape of the value. Edges point from the weights to the loss; `backward` goes against
them.

A function is named after the variable that holds its result. Without one it is named after the quantity of the
problem's equations that has this value: in `(x @ w1).relu() @ w2` no variable holds h. In a loop only the variables
count: there a partial result may have the value of another quantity, such as z + 0 in the first iteration.
"""

import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any

import torch
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from pipeline.contract import Implementation
from pipeline.graphs.graph import Graph, GraphBuilder, Structure
from pipeline.graphs.record import Names, recorded_locals, weights_of

PLAIN = {"mm": "matmul", "split_with_sizes": "split", "accumulate_grad": ""}  # the names of these operations in code
Instruction = tuple[CodeType, int]


class Watch(TorchFunctionMode):
    """Records each operation of a lesson's file: the value of its result, the instruction that ran it, and the
    iteration of a loop, which is the number of times that the instruction has run."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file
        self.values: dict[Node, torch.Tensor] = {}
        self.made: dict[Node, tuple[Instruction, int]] = {}
        self.runs: Counter[Instruction] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        instruction = self._instruction()
        self.runs[instruction] += 1
        for tensor in _tensors(args):  # only here the result of the lesson's own autograd.Function can be seen
            if tensor.grad_fn is not None:
                self.values.setdefault(tensor.grad_fn, tensor.detach())
        for tensor in _tensors(result):
            if tensor.grad_fn is not None and tensor.grad_fn not in self.made:
                self.values[tensor.grad_fn] = tensor.detach()
                self.made[tensor.grad_fn] = instruction, self.runs[instruction]
        return result

    def time(self, node: Node) -> int | None:
        """The iteration of a loop in which a function was recorded; None outside of loops."""
        instruction, run = self.made.get(node, (None, 0))
        return run if instruction and self.runs[instruction] > 1 else None

    def _instruction(self) -> Instruction:
        frame = sys._getframe(2)
        while frame.f_code.co_filename != self.file and frame.f_back:
            frame = frame.f_back
        return frame.f_code, frame.f_lasti


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def record(implementation: Implementation, placed: tuple[Any, ...], names: Names) -> Graph | None:
    """The graph, or None where autograd recorded nothing."""
    weights = weights_of(implementation, names, torch.Tensor)
    quantities = names.quantities({name: weights[name].numpy(force=True).copy() for name in names.weights})
    watch = Watch(inspect.getfile(type(implementation)))
    with watch, recorded_locals(implementation) as variables:
        loss = implementation.step(*placed)
    if not isinstance(loss, torch.Tensor) or loss.grad_fn is None:
        return None
    builder, keys = GraphBuilder(), {}
    called: dict[Any, str] = {}  # by function; the iterations of a loop share an instruction
    for name, value in variables:
        if isinstance(value, torch.Tensor) and value.grad_fn is not None:
            called.setdefault(value.grad_fn, name)
            called.setdefault(watch.made.get(value.grad_fn, (None, 0))[0], name)
    called.pop(None, None)

    def name_of(node: Node) -> str:
        if name := called.get(node) or called.get(watch.made.get(node, (None, 0))[0]):
            return name
        value = None if watch.time(node) else watch.values.get(node)
        return "" if value is None else quantities.name(value.numpy(force=True))

    def key_of(node: Node) -> str:
        if node not in keys:
            weight, full = getattr(node, "variable", None), node.name()
            label = full.rpartition("::")[2]
            if weight is not None:
                name = next((name for name, value in weights.items() if value is weight), "")
                keys[node] = builder.add(
                    label, plain=_plain(label), name=name, detail=full, kind="weight", group="data"
                )
            else:
                sources = [
                    (key_of(before), names.shape(before._input_metadata[output].shape))
                    for before, output in node.next_functions
                    if before is not None
                ]
                function = getattr(node, "_forward_cls", None)  # an autograd.Function written in Python
                label, plain = (function.__name__, function.__name__) if function else (label, _plain(label))
                keys[node] = builder.add(label, plain=plain, name=name_of(node), detail=full, time=watch.time(node))
                for source, shape in sources:
                    builder.connect(source, keys[node], shape)
        return keys[node]

    builder.loss = key_of(loss.grad_fn)
    return builder.finish("What autograd records in one step")


def _plain(name: str) -> str:
    """The name in code of a function of the graph: split for SplitWithSizesBackward0."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", re.sub(r"Backward\d*$", "", name)).lower()
    return PLAIN.get(words, words)


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
