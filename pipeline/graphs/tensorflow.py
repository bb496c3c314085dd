"""TensorFlow: the traced graph of a step, read from its concrete function, the gradient and the update included.

What is shown is what the loss or a weight's update needs. Left out, because it changes no value that the maths knows:

- what depends on shapes and constants alone. A number that it makes stands in the label of the operation that uses it;
  a constant that the lesson gives a name is data; counters, axes and shapes are not shown;
- what moves or reshapes its first input: Identity, Reshape, reading a variable, a list made of a tensor's slices or a
  tensor of a list's elements, an element that is read or written; and a sum over no axis, which the gradient of
  broadcasting leaves where nothing was broadcast. What uses it is shown to use what was moved, in its shape there.

A While is a loop: its body's nodes are those of one round, and an edge marked `again` is what a round hands to the
next. In the body, data are what comes from outside or from the round before. The loop's condition is not shown.

Shapes are those of an execution on the placed batch; in a body, of the first round.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.function_def_to_graph import function_def_to_graph_def

from pipeline.contract import Implementation
from pipeline.graphs import Graph, Names, local_values, weights_of

SHAPES = {"Shape", "ShapeN", "Size", "Rank", "VariableShape", "ZerosLike", "OnesLike"}
SHAPES |= {"TensorListLength", "TensorListElementShape"}
MOVES = {
    "Identity",
    "IdentityN",
    "StopGradient",
    "PreventGradient",
    "ReadVariableOp",
    "Reshape",
    "ExpandDims",
    "Squeeze",
}
MOVES |= {"TensorListFromTensor", "TensorListStack", "TensorListGetItem", "TensorListPopBack"}
WRITES = {"TensorListSetItem": 2, "TensorListPushBack": 1}  # into a list: which input is the element
MAY_CHANGE_NOTHING = {"Sum", "BroadcastTo", "Tile"}
LOOPS = {"While", "StatelessWhile"}
TRANSPOSED = (("transpose_a", "adj_x"), ("transpose_b", "adj_y"))


class Value(NamedTuple):
    """A node of the picture, the shape of what it hands on, and, of a loop, the node of its body that makes that."""

    key: str
    shape: tuple[int, ...] | None = None
    inner: str = ""


class Local:
    """What the lesson's local variables are called, by the operation whose output they hold."""

    def __init__(self) -> None:
        self.found: dict[tuple[bool, str], str] = {}

    def bound(self, name: str, value: Any) -> None:
        if isinstance(value, tf.Tensor) and tf.is_symbolic_tensor(value):
            inside: bool = value.graph.outer_graph.building_function  # pyright: ignore[reportAttributeAccessIssue]
            self.found.setdefault((inside, self._plain(value.op.name)), name)

    def name(self, operation: str, *, inside: bool) -> str:
        return self.found.get((inside, self._plain(operation)), "")

    def _plain(self, operation: str) -> str:
        """As a function's argument is called that stands for an operation of this name."""
        return re.sub(r"\W", "_", operation).lower()


def trace(implementation: Implementation, batches: Sequence[tuple[Any, Names]]) -> list[Graph]:
    step: Any = implementation.step
    if not hasattr(step, "get_concrete_function"):  # the loop over the steps makes a graph of it
        step = tf.function(step)
    locals_of: dict[Any, Local] = {}  # by concrete function; traced once, it may serve several batches
    latest = {}
    for placed, names in batches:
        local = Local()
        with local_values(implementation, local.bound):
            concrete = step.get_concrete_function(*placed)
        locals_of.setdefault(concrete, local)
        latest[concrete] = placed, names
    read = {each: _read(implementation, each, local, *latest[each]) for each, local in locals_of.items()}
    return [read[step.get_concrete_function(*placed)] for placed, _ in batches]


def _read(implementation: Implementation, concrete: Any, local: Local, placed: tuple[Any, ...], names: Names) -> Graph:
    graph, sources = Graph("the graph that a step is traced into"), {}
    variables = {weight.handle.ref(): name for name, weight in weights_of(implementation, names, tf.Variable).items()}
    inputs = dict(zip((each.op.name for each in concrete.inputs), [*placed, *concrete.captured_inputs], strict=True))
    for placeholder, value in inputs.items():
        weight = variables.get(value.ref(), "") if value.dtype == tf.resource else ""
        name = weight or local.name(placeholder, inside=False) or placeholder
        label, kind = ("Variable", "weight") if weight else ("Placeholder", "data")
        shape = tuple(getattr(implementation, weight).shape) if weight else None
        sources[placeholder] = Value(graph.add(label, name=name, detail=placeholder, kind=kind, group="data"), shape)
    part = Part(graph, names, local, concrete.graph.as_graph_def(), inputs=inputs, sources=sources)
    loss = part.value(concrete.outputs[0].name)
    graph.loss = loss.key if loss else ""
    for node in part.nodes.values():
        if re.fullmatch(r"Assign\w*VariableOp|Resource(Apply|Scatter)\w+", node.op):
            part.update(node)
    return graph


class Part:
    """A graph, or the body of a loop in it: what each of its tensors is in the picture.

    `sources` says it of its placeholders; None is one that depends on shapes and constants alone.
    """

    def __init__(
        self,
        graph: Graph,
        names: Names,
        local: Local,
        definition: Any,
        *,
        inputs: Mapping[str, Any],
        sources: dict[str, Value | None],
        loop: str | None = None,
    ) -> None:
        self.graph, self.names, self.local, self.loop = graph, names, local, loop
        self.definition, self.sources = definition, sources
        self.nodes = {node.name: node for node in definition.node}
        self.run = _run(definition, inputs)
        self.made: dict[str, Any] = {}
        self.varies: dict[str, bool] = {}

    def depends(self, tensor: str) -> bool:
        """Whether a tensor depends on more than shapes and constants."""
        name, _ = _split(tensor)
        if name in self.sources:
            return self.sources[name] is not None
        if name not in self.varies:
            node = self.nodes[name]
            self.varies[name] = node.op not in SHAPES and any(map(self.depends, _inputs(node)))
        return self.varies[name]

    def value(self, tensor: str) -> Value | None:
        """The node that a tensor comes from; None for what is not shown."""
        name, output = _split(tensor)
        if name in self.sources:
            found = self.source(name)
        elif not self.depends(name):
            found = self._constant(name)
        else:
            if name not in self.made:
                self.made[name] = self._made(self.nodes[name])
            found = self.made[name][output] if self.nodes[name].op in LOOPS else self.made[name]
        run = self.run.get((name, output))
        if found is None or run is None or run.dtype in (tf.variant, tf.resource):
            return found
        return found._replace(shape=tuple(run.shape))

    def source(self, name: str) -> Value | None:
        return self.sources[name]

    def update(self, node: Any) -> None:
        weight = self.value(node.input[0])
        self.graph.updates.add(self._operation(node, self.graph.nodes[weight.key].name if weight else ""))

    def _made(self, node: Any) -> Any:
        if node.op in LOOPS:
            return self._loop(node)
        inputs, moved = list(_inputs(node)), None
        if node.op in MOVES or (node.op in MAY_CHANGE_NOTHING and self._size(inputs[0]) == self._size(node.name)):
            moved = self.value(inputs[0])
        elif node.op in WRITES:
            moved = self.value(inputs[WRITES[node.op]]) or self.value(inputs[0])
        if moved is None:
            return Value(self._operation(node))
        about = self.graph.nodes[moved.inner or moved.key]
        about.name = about.name or self.local.name(node.name, inside=self.loop is not None)
        return moved

    def _operation(self, node: Any, name: str = "") -> str:
        values, operands = [], []
        for index, tensor in enumerate(_inputs(node)):
            value, number = self.value(tensor), self._number(tensor)
            if value is not None:
                turned = index < 2 and any(node.attr[key].b for key in TRANSPOSED[index] if key in node.attr)
                operands.append("·ᵀ" if turned else "·")
                values.append(value)
            elif number is not None:
                operands.append(self.names.number(number))
        plain = all(operand == "·" for operand in operands)
        label = node.op.removesuffix("VariableOp") if plain else f"{node.op}({', '.join(operands)})"
        name = name or self.local.name(node.name, inside=self.loop is not None)
        key = self.graph.add(label, name=name, detail=node.name, within=self.loop)
        for value in values:
            self.graph.connect(value.key, key, self._shape(value))
        if {"learning_rate", "-learning_rate"} & set(operands):
            self.graph.updates.add(key)
        return key

    def _constant(self, name: str) -> Value | None:
        """A constant that the lesson has a name for."""
        found, number = self.local.name(name, inside=self.loop is not None), self._number(name)
        if not found or number is None:
            return None
        if name not in self.made:
            about = {"name": found, "detail": name, "kind": "data", "group": "data", "within": self.loop}
            self.made[name] = Value(self.graph.add(f"all {self.names.number(number)}", **about))
        return self.made[name]

    def _number(self, tensor: str) -> float | None:
        """The one number that all elements are of a tensor that depends on shapes and constants alone."""
        value = self.run.get(_split(tensor))
        if value is None or not value.dtype.is_floating or self.depends(tensor):
            return None
        elements = np.unique(value.numpy())
        return float(elements[0]) if len(elements) == 1 else None

    def _size(self, tensor: str) -> int | None:
        value = self.run.get(_split(tensor))
        return None if value is None else value.shape.num_elements()

    def _shape(self, value: Value) -> str:
        return "" if value.shape is None else self.names.shape(value.shape)

    def _loop(self, node: Any) -> list[Value | None]:
        """What each output of a loop is: the loop, or what goes through it unchanged."""
        inputs = list(_inputs(node))
        outside = [self.value(tensor) for tensor in inputs]
        key = self.graph.add(node.op, detail=node.name, kind="loop", within=self.loop)
        for value in outside:
            if value is not None:
                self.graph.connect(value.key, key, self._shape(value))
        library = self.definition.library
        function = next(each for each in library.function if each.signature.name == node.attr["body"].func.name)
        definition, flat = function_def_to_graph_def(function)
        definition.library.CopyFrom(library)
        arguments = [each.name for each in function.signature.input_arg]
        results = [flat[function.ret[each.name]] for each in function.signature.output_arg]
        given = {name: self.run[_split(tensor)] for name, tensor in zip(arguments, inputs, strict=True)}
        sources = dict(zip(arguments, outside, strict=True))
        body = Body(self.graph, self.names, self.local, definition, inputs=given, sources=sources, loop=key)
        body.follow(dict(zip(arguments, results, strict=True)))
        return [
            value if _split(result)[0] == argument else body.made_by(result, key)
            for value, argument, result in zip(outside, arguments, results, strict=True)
        ]


class Body(Part):
    """The body of a loop. Its placeholders are what the loop is given, and then what the round before hands on."""

    def source(self, name: str) -> Value | None:
        """A node of the body's own for what it takes from outside, made when it is first used."""
        outside = self.sources[name]
        if outside is None:
            return None
        if name not in self.made:
            given = self.graph.nodes[outside.inner or outside.key] if outside.key else None
            weight = given is not None and given.kind == "weight"
            called = self.local.name(name, inside=True) or (given.name if given and (weight or outside.inner) else "")
            if self.run[name, 0].dtype == tf.variant:
                label = f"{given.label}, kept" if given and outside.inner else "element"
            else:
                label = "Variable" if weight else "state"
            about = {"name": called, "detail": name, "kind": "weight" if weight else "data", "group": "data"}
            self.made[name] = Value(self.graph.add(label, **about, within=self.loop), outside.shape if weight else None)
        return self.made[name]

    def made_by(self, result: str, loop: str) -> Value | None:
        value = self.value(result) if self.depends(result) else None
        return value and Value(loop, None, value.key)

    def follow(self, results: dict[str, str]) -> None:
        """Find the body's nodes; `results` says what it hands on to the next round, by argument."""
        changed = True
        while changed:  # what starts as a constant may be changed by a round
            self.varies.clear()
            changed = False
            for argument, result in results.items():
                if self.sources[argument] is None and self.depends(result):
                    self.sources[argument], changed = Value(""), True
        handed = {argument: self.value(result) for argument, result in results.items() if self.depends(result)}
        for argument, value in handed.items():
            if value is None or argument not in self.made or value.key == self.made[argument].key:
                continue
            before, now = self.graph.nodes[self.made[argument].key], self.graph.nodes[value.key]
            now.name = now.name or before.name
            if before.label == "element":
                before.label = "elements so far"
            self.graph.connect(value.key, before.id, self._shape(value), again=True)


def _inputs(node: Any) -> Iterator[str]:
    return (each for each in node.input if not each.startswith("^"))


def _split(tensor: str) -> tuple[str, int]:
    name, _, output = tensor.partition(":")
    return name, int(output or 0)


def _run(definition: Any, inputs: Mapping[str, Any]) -> dict[tuple[str, int], Any]:
    """All tensors of a graph, executed once on these inputs."""
    wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(definition, name=""), [])
    operations = [
        each for each in wrapped.graph.get_operations() if each.name in {node.name for node in definition.node}
    ]
    tensors = [tensor for each in operations for tensor in each.outputs if tensor.dtype != tf.resource]
    fed = [wrapped.graph.get_tensor_by_name(f"{name}:0") for name in inputs]
    found = wrapped.prune(fed, tensors)(*inputs.values())
    kept = dict(zip((_split(tensor.name) for tensor in tensors), found, strict=True))
    return kept | {(name, 0): value for name, value in inputs.items()}
