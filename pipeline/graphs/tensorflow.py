"""TensorFlow: the function that a step is traced into, the gradient and the update included.

The step is traced for the shapes of the placed batch, so every shape is known. The graph shows what the loss and the
weights' updates need, and leaves out what changes no value of the maths:

- constants. A number stands in the label of the operation that uses it; a constant with a name in the lesson is data;
- operations that move, reshape or repeat their first input, or read or write an element of a list (MOVES, WRITES);
- shapes, and what is computed from constants alone and is no floating-point number: axes, counters.

A While is a loop: its body shows one iteration, and an edge marked `again` is a value for the next iteration. Data in
the body come from outside or from the iteration before. The loop's condition is not shown.

A node is named after the variable that holds its result. Without one it is named after the quantity of the problem's
equations that has this value, for which the step is traced once more, with every value as a result, and executed. What
is computed inside a loop is no result of the graph. There a name comes from a variable, or from what the loop returns.
"""

import re
import warnings
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pipeline.contract import Implementation
from pipeline.graphs.graph import Graph, GraphBuilder, Structure
from pipeline.graphs.record import Names, recorded_locals, weights_of

MOVES = {"Identity", "StopGradient", "PreventGradient", "ReadVariableOp", "Reshape", "ExpandDims", "Squeeze", "Tile"}
MOVES |= {"BroadcastTo", "TensorListFromTensor", "TensorListStack", "TensorListGetItem", "TensorListPopBack"}
SHAPES = {"Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike", "TensorListLength", "TensorListElementShape"}
WRITES = {"TensorListSetItem": 2, "TensorListPushBack": 1}  # into a list; the number says which input is the element
LOOPS = {"While", "StatelessWhile"}
UPDATES = re.compile(r"Assign\w*VariableOp|Resource(Apply|Scatter)\w+")
CPU = "/device:CPU:0"  # on which steps are counted, also where TensorFlow sees a GPU
# Operations that compute nothing: inputs and identities. First TensorFlow's names, then XLA's.
NOT_COUNTED = {"Placeholder", "Const", "NoOp", "Identity", "ReadVariableOp", "Reshape"}
NOT_COUNTED |= {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
PLAIN = {  # the names of these operations in code, where they differ from the name in lower case
    "MatMul": "matmul",
    "BatchMatMulV2": "matmul",
    "AddV2": "add",
    "AddN": "add",
    "Sub": "subtract",
    "Mul": "multiply",
    "RealDiv": "divide",
    "AssignSub": "subtract in place",
    "ReluGrad": "gradient of relu",
    "While": "tf.while_loop",
    "StatelessWhile": "tf.while_loop",
}
TRANSPOSED = (("transpose_a", "adj_x"), ("transpose_b", "adj_y"))


def record(implementation: Implementation, placed: tuple[Any, ...], names: Names) -> Graph:
    step: Any = implementation.step
    step = getattr(step, "python_function", step)
    with recorded_locals(implementation) as variables:
        concrete = tf.function(step).get_concrete_function(*placed)
    # The names of the lesson's variables, by the names of their tensors. The first name of a tensor counts.
    tensors = [(value.name, name) for name, value in variables if tf.is_tensor(value) and tf.is_symbolic_tensor(value)]
    weights = weights_of(implementation, names, tf.Variable)
    called = _quantities(step, placed, names, weights) | dict(reversed(tensors))
    builder, arguments = GraphBuilder(), {}
    handles = {concrete.graph.capture(weight.handle).name: name for name, weight in weights.items()}
    for tensor in concrete.graph.inputs:
        name, shape = called.get(tensor.name, tensor.op.name), ()
        label, kind = "Placeholder", "data"
        if tensor.name in handles:
            name, label, kind = handles[tensor.name], "Variable", "weight"
            shape = tuple(weights[name].shape)
        key = builder.add(label, name=name, detail=tensor.name, kind=kind, group="data")
        arguments[tensor.name] = Value(key, shape)
    reader = Reader(builder, names, called, arguments)
    loss = reader.value(concrete.outputs[0])
    builder.loss = loss.key if loss else ""
    for operation in concrete.graph.get_operations():
        if UPDATES.fullmatch(operation.type):
            weight = reader.value(operation.inputs[0])
            builder.updates.add(reader.operation(operation, builder.nodes[weight.key].name if weight else ""))
    _name_in_loops(builder)
    return builder.finish("The graph that a step is traced into")


def _name_in_loops(builder: GraphBuilder) -> None:
    """Give names inside loops that follow from other names. A value from the iteration before gets the name of the
    iteration's result, and so does an element that is added to a list."""
    for edge in builder.edges:
        start, end = builder.nodes[edge.target], builder.nodes[edge.source]
        if edge.again:
            start.name = start.name or end.name
        if edge.again and start.label == "elements so far":
            elements = {other.source for other in builder.edges if other.target == end.id} - {start.id}
            for key in elements:
                builder.nodes[key].name = builder.nodes[key].name or end.name


def _quantities(step: Any, placed: tuple[Any, ...], names: Names, weights: dict[str, Any]) -> dict[str, str]:
    """The names of the quantities that the tensors of a step's graph hold, by the tensors' names. It takes a step."""
    traced: list[Any] = []

    def with_all_values(*arguments: Any) -> list[Any]:
        step(*arguments)
        operations = tf.compat.v1.get_default_graph().get_operations()
        traced[:] = [value for operation in operations for value in operation.outputs if value.dtype.is_floating]
        return list(traced)

    quantities = names.quantities({name: weights[name].numpy() for name in names.weights})
    results = tf.function(with_all_values)(*placed)
    called = {tensor.name: quantities.name(result.numpy()) for tensor, result in zip(traced, results, strict=True)}
    return {tensor: name for tensor, name in called.items() if name}


def count(implementation: Implementation, batches: list[tuple[Any, ...]], lengths: int) -> Structure:
    """The graphs are the traces of the lesson's own `step` in these steps, counted by the tf.function itself.

    They are not counted where `step` is no tf.function.
    """
    step: Any = implementation.step
    if not hasattr(step, "experimental_get_tracing_count"):
        return Structure(len(batches), lengths, None)
    before = step.experimental_get_tracing_count()
    with tf.device(CPU):
        for placed in batches:
            step(*placed)
        graphs = step.experimental_get_tracing_count() - before
        return Structure(len(batches), lengths, graphs, (), *_operations(step.python_function, batches[-1]))


def _operations(step: Any, placed: tuple[Any, ...]) -> tuple[int | None, int | None]:
    """How many operations a step has in its graph, and how many instructions when XLA has compiled it for the CPU.

    The step is traced for the shapes of the placed batch, as XLA compiles it: with unknown shapes there would be more
    operations, which compute shapes. Operations that neither the loss nor an update needs are left out, since
    TensorFlow does not execute them. An instruction is one of the compiled program's entry: a fusion of several
    operations, a matrix product, or a copy, also where it calls a library.
    """
    function: Any = tf.function(step, jit_compile=True)
    graph = function.get_concrete_function(*placed).graph
    needed: set[Any] = set()
    ahead = [*(tensor.op for tensor in graph.outputs), *graph.control_outputs]
    while ahead:
        operation = ahead.pop()
        if operation not in needed:
            needed.add(operation)
            ahead += [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]
    if any(value.HasField("func") for operation in needed for value in operation.node_def.attr.values()):
        return None, None
    before = sum(operation.type not in NOT_COUNTED for operation in needed)
    try:
        # It warns that device_name is deprecated. Without a name, TensorFlow 2.21 draws a random number to learn the
        # device, which fails where kernels must be deterministic.
        with warnings.catch_warnings(action="ignore"):
            program = function.experimental_get_compiler_ir(*placed)(stage="optimized_hlo", device_name=CPU)
    except ValueError:  # XLA cannot compile the step
        return before, None
    return before, sum(name not in NOT_COUNTED for name in instructions(program))


def instructions(program: str) -> list[str]:
    """The names of the instructions in the entry computation of XLA's text form: dot, fusion, copy …

    A line is `%name = type instruction(operands), …`, where a type may be a tuple of types in parentheses.
    """
    entry = program[program.index("\nENTRY ") :].partition("\n}")[0]
    return re.findall(r"^ +(?:ROOT )?\S+ = .*? ([a-z][\w-]*)\(", entry, re.MULTILINE)


class Value(NamedTuple):
    """A node, the shape of its value, and for a loop the node of its body that computes this value."""

    key: str
    shape: tuple[int | None, ...] = ()
    inner: str = ""


class Reader:
    """Adds the nodes for the tensors of a graph; `arguments` are the values of its placeholders, by their names."""

    loop: str | None = None

    def __init__(self, builder: GraphBuilder, names: Names, called: dict[str, str], arguments: dict[str, Any]) -> None:
        self.builder, self.names, self.called = builder, names, called
        self.values: dict[str, Value | None] = arguments
        self.bodies: dict[str, Body] = {}

    def value(self, tensor: Any) -> Value | None:
        """The node that computes a tensor, with the tensor's shape; None if it is not shown."""
        if tensor.name not in self.values:
            self.values[tensor.name] = self._read(tensor)
        value = self.values[tensor.name]
        known = tensor.dtype not in (tf.resource, tf.variant) and tensor.shape.rank is not None
        return value._replace(shape=tuple(tensor.shape)) if value and known else value

    def _read(self, tensor: Any) -> Value | None:
        operation, name = tensor.op, self.called.get(tensor.name, "")
        if operation.type in LOOPS:
            if operation.name not in self.bodies:
                self.bodies[operation.name] = Body(self, operation)
            return self.bodies[operation.name].output(tensor.value_index)
        if (number := self._number(tensor)) is not None:
            label, about = f"all {self.names.number(number)}", {"kind": "data", "group": "data", "within": self.loop}
            return Value(self.builder.add(label, name=name, detail=tensor.name, **about)) if name else None
        if operation.type in MOVES or operation.type in WRITES:
            moved = self.value(operation.inputs[WRITES.get(operation.type, 0)]) or self.value(operation.inputs[0])
            if moved and name:
                node = self.builder.nodes[moved.inner or moved.key]
                node.name = node.name or name
            return moved
        shown = tensor.dtype.is_floating or any(self.value(operand) for operand in operation.inputs)
        return Value(self.operation(operation, name)) if shown and operation.type not in SHAPES else None

    def operation(self, operation: Any, name: str) -> str:
        operands, values = [], []
        for index, tensor in enumerate(operation.inputs):
            value, number = self.value(tensor), self._number(tensor)
            if value:
                attributes = operation.node_def.attr
                operands.append("·ᵀ" if index < 2 and any(attributes[key].b for key in TRANSPOSED[index]) else "·")
                values.append(value)
            elif number is not None:
                operands.append(self.names.number(number))
        kind = operation.type.removesuffix("VariableOp")
        inputs = f"({', '.join(operands)})" if set(operands) - {"·"} else ""
        plain = PLAIN.get(kind) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower()
        key = self.builder.add(kind + inputs, plain=plain + inputs, name=name, detail=operation.name, within=self.loop)
        for value in values:
            self.builder.connect(value.key, key, self.names.shape(value.shape))
        if {"learning_rate", "-learning_rate"} & set(operands):
            self.builder.updates.add(key)
        return key

    def _number(self, tensor: Any) -> float | None:
        """The one number that all elements of a floating-point constant are."""
        while tensor.op.type in MOVES and tensor.op.inputs:
            tensor = tensor.op.inputs[0]
        value = tf.get_static_value(tensor) if tensor.dtype.is_floating else None
        return float(value.flat[0]) if value is not None and len(np.unique(value)) == 1 else None


class Body(Reader):
    """The body of a loop. When a placeholder is first used, it gets a node, and the loop gets an edge from outside."""

    def __init__(self, outside: Reader, operation: Any) -> None:
        super().__init__(outside.builder, outside.names, outside.called, {})
        self.outside, self.inputs, self.graph = outside, operation.inputs, operation._body_graph
        self.loop = self.builder.add(operation.type, detail=operation.name, kind="loop", within=outside.loop)
        self.index = {tensor.name: index for index, tensor in enumerate(self.graph.inputs)}
        self.used: list[int] = []  # with a node, but without an edge from the value of an iteration

    def output(self, index: int) -> Value | None:
        """The value of an output of the loop: the loop, or a value from outside that no iteration changes."""
        if self.graph.outputs[index].name == self.graph.inputs[index].name:
            return self.outside.value(self.inputs[index])
        value = self.value(self.graph.outputs[index])
        while self.used:
            self._connect_round(self.used.pop())
        return value and Value(self.loop or "", inner=value.key)

    def _connect_round(self, index: int) -> None:
        start, end = self.value(self.graph.inputs[index]), self.value(self.graph.outputs[index])
        if start and end and start.key != end.key:
            first, last = self.builder.nodes[start.key], self.builder.nodes[end.key]
            last.name = last.name or first.name
            first.label = "elements so far" if first.label == "element" else first.label
            self.builder.connect(end.key, start.key, self.names.shape(end.shape), again=True)

    def _read(self, tensor: Any) -> Value | None:
        if tensor.name not in self.index:
            return super()._read(tensor)
        index = self.index[tensor.name]
        outside = self.outside.value(self.inputs[index])
        a_list, name, kind = tensor.dtype == tf.variant, self.called.get(tensor.name, ""), "data"
        label = "element" if a_list else "state"
        if outside:
            self.builder.connect(outside.key, self.loop or "", self.names.shape(outside.shape))
            source = self.builder.nodes[outside.inner or outside.key]
            if outside.inner and a_list:
                label, name = f"{source.label}, kept", name or source.name
            if source.kind == "weight":
                label, name, kind = label if outside.inner else "Variable", source.name, "weight"
        elif not tensor.dtype.is_floating and not a_list:
            return None
        self.used.append(index)
        key = self.builder.add(label, name=name, detail=tensor.name, kind=kind, group="data", within=self.loop)
        return Value(key, outside.shape if outside else ())
