"""The graph of a lesson's step, as data: found by running the step, never written by hand. It needs no run's data.

One module for each framework, as in pipeline/runtimes; each offers

trace(implementation, batches) -> [Graph]       run or trace a step on each batch: what was placed of it, and Names

A step is traced on a small batch and on weights of its own. Their sizes are prime numbers, each of them another one, so
that a size in a shape tells its name, and the cost does not depend on the sizes of the experiment.

Three groups: `forward` is what the loss is computed from; `update` is where the learning rate comes in, and what is
computed from there on, up to the weights; `backward` is what lies between. Names are those of the local variables in
the lesson's functions, and of the weights, each on the value that it was first given to.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from itertools import combinations
from math import prod
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np

from pipeline.contract import Array, Implementation, Weights, load_problem
from pipeline.environment import framework_of
from pipeline.runtimes import Loop

N, SIZES = 7, {"inputs": 23, "hidden": 19, "outputs": 17}
LENGTHS = (2, 4)  # of the longest example in a batch; then two of each length below, as far as they go, down to 1
LEARNING_RATE = 0.40625  # exact in every dtype, and nothing else in a step is likely to have this value
AUTOGRAPH = "__autograph_generated_file"  # what AutoGraph makes of a lesson's functions before they run


@dataclass
class Node:
    """An operation, a weight, data, or a loop; `within` is the loop to whose body it belongs."""

    id: str
    label: str  # as the framework calls it, with its numbers: maximum(·, 0)
    name: str = ""  # in the maths
    detail: str = ""  # the framework's full name
    group: str = ""
    kind: str = "operation"
    within: str | None = None


@dataclass(frozen=True)
class Edge:
    """What one node hands to another, in the shape in which it is used. `again`: to the next round of a loop."""

    source: str
    target: str
    shape: str = ""
    again: bool = False


@dataclass
class Graph:
    what: str  # it shows of a step
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: dict[Edge, None] = field(default_factory=dict)  # as an ordered set
    loss: str = ""
    updates: set[str] = field(default_factory=set)  # the nodes at which the learning rate comes in, or a weight changes

    def add(self, label: str, **about: Any) -> str:
        key = f"n{len(self.nodes)}"
        self.nodes[key] = Node(key, label, **about)
        return key

    def connect(self, source: str, target: str, shape: str = "", *, again: bool = False) -> None:
        self.edges[Edge(source, target, shape, again)] = None

    def reached(self, start: Iterable[str], *, back: bool = False) -> set[str]:
        """The nodes that depend on those in `start`, or, `back`, that those depend on; they themselves included."""
        following: dict[str, list[str]] = {}
        for edge in self.edges:
            source, target = (edge.target, edge.source) if back else (edge.source, edge.target)
            following.setdefault(source, []).append(target)
        found, ahead = set(), list(start)
        while ahead:
            key = ahead.pop()
            if key not in found:
                found.add(key)
                ahead += following.get(key, [])
        return found

    def structure(self) -> list[Any]:
        """All but the shapes."""
        return [list(self.nodes.values()), [(edge.source, edge.target, edge.again) for edge in self.edges]]


def trace(name: str, problem: str, create: Callable[[Weights, float], Loop], dtype: str) -> dict[str, Any]:
    """The graphs of an implementation's step, as results/NAME/graph.json has them: {"graphs": [{title, nodes, edges}]}.

    Examples with lengths are traced in two batches, a short and a long one: two graphs, or one where they are the same.
    Where there is none, `why` says why not: of a framework that has no module here, or of a step that does what cannot
    be traced. It has been trained by then, and a picture is no reason to lose that.
    """
    module = f"{__name__}.{framework_of(name)}"
    if find_spec(module) is None:
        return {"graphs": [], "why": f"of {framework_of(name)} no graph is read."}
    try:
        return {"graphs": _graphs(module, problem, create, dtype)}
    except Exception as error:  # a framework's may be of any class
        return {"graphs": [], "why": f"its step could not be traced ({type(error).__name__}: {error})."}


def _graphs(module: str, problem: str, create: Callable[[Weights, float], Loop], dtype: str) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    weights = load_problem(problem).draw_weights(_sizes(max(LENGTHS)), generator)
    loop = create({key: array.astype(dtype) for key, array in weights.items()}, LEARNING_RATE)
    batches: list[tuple[Any, Names]] = []
    for longest in LENGTHS:
        batch = _batch(problem, dtype, longest, generator)
        loop.place({key: array[None] for key, array in batch.items()})
        lengths = {"T": longest} if "lengths" in batch else {}
        batches.append((loop.placed[0], Names(weights, lengths)))
        if not lengths:
            break
    graphs: list[Graph] = import_module(module).trace(loop.implementation, batches)
    for graph in graphs:
        _group(graph)
    if len(graphs) == 1:
        titles = [graphs[0].what[0].upper() + graphs[0].what[1:]]
    elif graphs[0].structure() == graphs[-1].structure():
        graphs = graphs[-1:]
        titles = [f"One graph for up to {LENGTHS[0]} and up to {LENGTHS[1]} time steps: {graphs[0].what}"]
    else:
        titles = [f"Up to {longest} time steps: {graph.what}" for longest, graph in zip(LENGTHS, graphs, strict=True)]
    return [_as_data(title, graph) for title, graph in zip(titles, graphs, strict=True)]


def _sizes(longest: int) -> SimpleNamespace:
    return SimpleNamespace(**SIZES, min_length=longest, max_length=longest)


def _batch(problem: str, dtype: str, longest: int, generator: np.random.Generator) -> dict[str, Array]:
    inputs = load_problem(problem).draw_inputs(_sizes(longest), N, generator)
    batch = inputs | {"y": generator.standard_normal((N, SIZES["outputs"]))}
    if "lengths" in batch:
        batch["lengths"] = np.maximum(longest - (np.arange(N) + 1) // 2, 1)
    return {key: array if key == "lengths" else array.astype(dtype) for key, array in batch.items()}


class Names:
    """What numbers and shapes are called in the maths, and what the weights are."""

    def __init__(self, weights: Weights, lengths: Mapping[str, int]) -> None:
        self.weights = tuple(weights)
        sizes = {"N": N, **SIZES, **lengths}
        self.sizes = {size: name for name, size in sizes.items() if size > 2}  # a 2 may be many things
        named = {"N": N, **SIZES}.items()
        self.numbers = {LEARNING_RATE: "learning_rate"}
        for one, other in combinations(named, 2):
            product = prod((one[1], other[1]))
            self.numbers |= {product: f"{one[0]}·{other[0]}", 1 / product: f"1/({one[0]}·{other[0]})"}

    def shape(self, shape: Iterable[int]) -> str:
        return " × ".join(self.sizes.get(size, str(size)) for size in shape)

    def number(self, value: float) -> str:
        if value < 0:
            return f"-{self.number(-value)}"
        for number, name in self.numbers.items():
            if np.isclose(value, number, rtol=1e-6, atol=0):
                return name
        return f"{value:g}"

    def call(self, label: str, operands: Iterable[Any]) -> str:
        """maximum(·, 0) for a call with numbers among its operands, else its label alone; None is a value."""
        operands = list(operands)
        if all(operand is None for operand in operands):
            return label
        return f"{label}({', '.join('·' if operand is None else self.number(operand) for operand in operands)})"


def weights_of(implementation: Implementation, names: Names, kind: type) -> dict[str, Any]:
    """The weights, and what else of this kind an implementation keeps from step to step."""
    kept = {name: value for name, value in vars(implementation).items() if isinstance(value, kind)}
    return {name: getattr(implementation, name) for name in names.weights} | kept


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@contextmanager
def local_values(implementation: Implementation, bound: Callable[[str, Any], Any]) -> Iterator[None]:
    """While the lesson's functions run, tell `bound` of each value that a local variable is given, when it is. What it
    returns, unless that is None, the variable is given instead."""
    file, seen = inspect.getfile(type(implementation)), {}

    def look(frame: FrameType, _event: str, _argument: Any) -> Any:
        for name, value in list(frame.f_locals.items()):
            if (name, id(value)) not in seen and "__" not in f"{name}_":  # AutoGraph's own names, such as retval_
                seen[name, id(value)] = value  # kept, so that no other value gets its id
                if (instead := bound(name, value)) is not None:
                    frame.f_locals[name] = seen[name, id(instead)] = instead  # a tracer may, and Python takes it over
        return look

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code.co_filename
        return look(frame, event, argument) if code == file or AUTOGRAPH in code else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)


class Record:
    """Operations in the order in which they run, on values that are known by where they are stored."""

    def __init__(self, what: str, names: Names) -> None:
        self.graph, self.names = Graph(what), names
        self.weights: set[Any] = set()
        self.kept: list[Any] = []  # so that nothing else gets the place of what is gone
        self.stored: dict[Any, str] = {}  # by storage: the node that last wrote there

    def weight(self, name: str, storage: Any) -> None:
        self.weights.add(storage)
        self.stored[storage] = self.graph.add(name, name=name, kind="weight", group="data")

    def operation(
        self,
        label: str,
        detail: str,
        operands: list[tuple[Any, tuple[int, ...]] | float],
        results: Iterable[Any],
    ) -> None:
        """Of each operand its storage and shape, or the number that it is; of the results where they are stored."""
        values = [None if isinstance(operand, tuple) else operand for operand in operands]
        key = self.graph.add(self.names.call(label, values), detail=detail)
        for operand in operands:
            if isinstance(operand, tuple):
                self.graph.connect(self.source(operand[0]), key, self.names.shape(operand[1]))
        changed = [storage for storage in results if storage in self.weights]
        if changed:
            self.graph.nodes[key].name = self.graph.nodes[self.stored[changed[0]]].name
        if changed or LEARNING_RATE in [abs(value) for value in values if value is not None]:
            self.graph.updates.add(key)
        self.stored |= dict.fromkeys(results, key)

    def source(self, storage: Any) -> str:
        """Where a value comes from. What was there before the step is data."""
        if storage not in self.stored:
            self.stored[storage] = self.graph.add("data", kind="data", group="data")
        return self.stored[storage]

    def name(self, storage: Any, name: str) -> None:
        node = self.graph.nodes[self.source(storage)]
        node.name = node.name or name


def _group(graph: Graph) -> None:
    """Give each operation its group, and leave out the weights and data that none uses."""
    used = {key for edge in graph.edges for key in (edge.source, edge.target)}
    graph.nodes = {key: node for key, node in graph.nodes.items() if node.group != "data" or key in used}
    update = graph.reached(graph.updates)
    forward = graph.reached([graph.loss], back=True) - update if graph.loss else set()
    for node in graph.nodes.values():
        if not node.group:
            where = node.within or node.id
            node.group = "update" if where in update else "forward" if where in forward else "backward"


def _as_data(title: str, graph: Graph) -> dict[str, Any]:
    return {
        "title": title,
        "nodes": [asdict(node) for node in graph.nodes.values()],
        "edges": [asdict(edge) for edge in graph.edges],
    }
