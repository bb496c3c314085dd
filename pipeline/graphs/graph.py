"""A graph as data, and the file graphs/NAME.json: the graphs of a lesson's step, and what its framework defined."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from pipeline import files
from pipeline.errors import UserError


@dataclass
class Node:
    """An operation, a weight, data, or a loop.

    `group` is the part of the step. The loss is computed from `forward`. `update` is where the learning rate comes in
    or a weight changes, and everything computed from there on. `backward` is what lies between the two.
    """

    id: str
    label: str  # the framework's name, with the numbers among the operands: Mul(learning_rate, ·)
    plain: str = ""  # the operation as code names it: multiply(learning_rate, ·)
    name: str = ""  # the local variable or the weight in the lesson's code, or the quantity that has this value
    time: int | None = None  # the iteration, from 1, of a loop of the lesson in which the operation ran
    detail: str = ""  # the framework's full name
    group: Literal["", "forward", "backward", "update", "data"] = ""
    kind: Literal["operation", "weight", "data", "loop"] = "operation"
    within: str | None = None  # the loop to whose body the node belongs


@dataclass(frozen=True)
class Edge:
    """A value that goes from one node to another, with its shape there. `again`: to the next iteration of a loop."""

    source: str
    target: str
    shape: str = ""
    again: bool = False


@dataclass
class Graph:
    title: str
    recorded: bool  # whether a framework recorded it; otherwise it is the graph of the equations
    nodes: list[Node]
    edges: list[Edge]


@dataclass(frozen=True)
class Structure:
    """What a framework defined to take some steps of a lesson, counted and not assumed.

    The steps were taken on batches that differ in the length of their longest example, or on batches of the same
    shapes where examples have no length. How `graphs` were counted is in the docstring of each framework's `count`.

    The two numbers of operations are those of a static graph, for a CPU and for batches whose shapes are known. Neither
    includes operations that compute nothing, such as inputs and identities (`NOT_COUNTED` in tensorflow.py). They are
    None without a static graph, and where the graph contains another graph, such as the body of a loop, whose
    operations do not run once a step.
    """

    steps: int  # 0 where nothing was counted
    lengths: int  # different longest lengths among the batches; 0 where examples have no length
    graphs: int | None  # that the framework defined in these steps; None where they were not counted
    graph_nodes: tuple[int, ...] = ()  # the nodes of each of these graphs, where autograd recorded it
    operations_before: int | None = None  # of one step: forward pass, backward pass and update
    operations_after: int | None = None  # the same after XLA has optimised the graph; None where XLA cannot compile it


@dataclass(frozen=True)
class Value:
    """A quantity of a step on a small batch. Rows of examples that are not as long as the index are None."""

    equation: int  # its number in the problem's docstring
    index: int | str | None  # of h[3] the 3, of h[length] the word
    time: int | None  # the time step at which it was computed
    line: int  # of the lesson's file, which computed it; 0 where no line is known
    value: Any  # nested lists; a number for the loss
    recorded: bool  # computed by the lesson; otherwise by the equations


@dataclass(frozen=True)
class Example:
    """A step on a batch small enough to read. Arrays are nested lists."""

    learning_rate: float
    batch: dict[str, Any]
    weights: dict[str, Any]  # before the step
    placed: dict[str, Any]  # the arrays that the lesson's `place` returned, by the names of the arguments of `step`
    states: dict[str, list[Any]]  # states that the loop passes to each time step, arranged as in the lesson
    values: list[Value]  # in the order of computation


@dataclass
class GraphBuilder:
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: dict[Edge, None] = field(default_factory=dict)  # as an ordered set
    loss: str = ""
    updates: set[str] = field(default_factory=set)  # the nodes at which the learning rate comes in or a weight changes

    def add(self, label: str, **attributes: Any) -> str:
        key = f"n{len(self.nodes)}"
        self.nodes[key] = Node(key, label, **attributes)
        return key

    def connect(self, source: str, target: str, shape: str = "", *, again: bool = False) -> None:
        self.edges[Edge(source, target, shape, again)] = None

    def finish(self, title: str, *, recorded: bool = True) -> Graph:
        """The graph, with a group for each node, and without weights and data that no node uses."""
        used = {key for edge in self.edges for key in (edge.source, edge.target)}
        nodes = [node for node in self.nodes.values() if node.group != "data" or node.id in used]
        update = self._reached(self.updates)
        forward = self._reached([self.loss], back=True) - update if self.loss else set()
        for node in nodes:
            outermost = node.within or node.id
            node.group = node.group or (
                "update" if outermost in update else "forward" if outermost in forward else "backward"
            )
        return Graph(title, recorded, nodes, list(self.edges))

    def _reached(self, start: Iterable[str], *, back: bool = False) -> set[str]:
        """The nodes that depend on those in `start`, or with `back` those that `start` depends on; `start` included."""
        reached: set[str] = set()
        ahead = set(start)
        while ahead:
            reached |= ahead
            ends = ((edge.target, edge.source) if back else (edge.source, edge.target) for edge in self.edges)
            ahead = {following for key, following in ends if key in ahead} - reached
        return reached


def write_graphs(name: str, graphs: list[Graph], structure: Structure, example: Example) -> None:
    content = {
        "graphs": [asdict(graph) for graph in graphs],
        "structure": asdict(structure),
        "example": asdict(example),
    }
    files.write_json(files.graph_file(name), content)


def read_graphs(name: str) -> list[Graph]:
    """Raises UserError when the file is missing or damaged."""
    return _read(name, "graphs", list[Graph])


def read_structure(name: str) -> Structure:
    """Raises UserError when the file is missing or damaged."""
    return _read(name, "structure", Structure)


def read_example(name: str) -> Example:
    """Raises UserError when the file is missing or damaged."""
    return _read(name, "example", Example)


Part = TypeVar("Part")


def _read(name: str, key: str, kind: type[Part]) -> Part:
    from pydantic import TypeAdapter, ValidationError

    path = files.graph_file(name)
    try:
        return TypeAdapter(kind).validate_python(files.read_json(path).get(key))
    except ValidationError as error:
        detail = error.errors()[0]
        reason = f"{'.'.join(map(str, (key, *detail['loc'])))}: {detail['msg']}"
        raise UserError(f"{path} is damaged ({reason}). Delete it and run `dvc repro`.") from None
