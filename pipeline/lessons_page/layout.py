"""Positions for the picture of a graph, computed by Graphviz's dot. The only `import pygraphviz`.

dot gets nodes and shapes as boxes of fixed sizes and returns their positions and the lines between them. From top to
bottom there are three bands: forward, backward, update. An invisible vertex between two bands keeps them apart. Data
and weights stand once in each band that uses them. A loop is a box around its body, which has a layout of its own.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from pipeline.graphs.graph import Graph, Node

GROUPS = ("forward", "backward", "update")
NAME, ALONE, LABEL, SHAPE, SMALL = 18, 16, 14, 13, 12  # font sizes; ALONE is a label without a name above it
WIDE = 0.62  # of a character, in font sizes: the widest of the usual monospaced fonts
MARGIN, BAND = 14, 30  # around everything, and for a band's name at its left
BESIDE, BELOW = 16, 13  # between neighbours in a row, and between rows
LEGEND = "dashed: to the next time step"
INCH = 72  # in dot's points, which are pixels here

Point = tuple[float, float]


class Box(NamedTuple):
    """x and y are its left upper corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    @property
    def low(self) -> float:
        return self.y + self.height


class Line(NamedTuple):
    """A start, three points for each cubic Bézier curve, and the tip of the arrowhead, if any."""

    points: list[Point]
    tip: Point | None
    again: bool


@dataclass
class Picture:
    width: float
    height: float
    nodes: list[tuple[Node, Box]]
    shapes: list[tuple[str, Box]]
    lines: list[Line]
    inside: dict[str, "Picture"]  # the bodies of loops, by the loops' ids
    bands: dict[str, Box]


def arrange(graph: Graph, loop: str | None = None) -> Picture:
    """The layout of a graph, or of the body of one of its loops, in pixels.

    Raises ImportError when a system library that Graphviz needs is missing.
    """
    import pygraphviz

    members = {node.id: node for node in graph.nodes if node.within == loop}
    inside = {key: arrange(graph, key) for key, node in members.items() if node.kind == "loop"}
    plan: Any = pygraphviz.AGraph(directed=True, strict=False, nodesep=BESIDE / INCH, ranksep=BELOW / INCH)
    plan.node_attr.update(shape="box", fixedsize=True, label="")
    plan.edge_attr.update(arrowhead="none")
    nodes: dict[str, Node] = {}
    shapes: dict[str, str] = {}
    bands: dict[str, str] = {}
    joined: list[tuple[str, str]] = []

    def place(node: Node, band: str) -> str:
        key = f"{node.id} {band}"
        if key not in bands:
            width, height = _size(node, inside.get(node.id))
            plan.add_node(key, width=width / INCH, height=height / INCH)
            nodes[key], bands[key] = node, band
        return key

    def join(start: str, end: str, **attributes: Any) -> None:
        joined.append((start, end))
        plan.add_edge(start, end, **attributes)

    for node in members.values():
        if node.group != "data" or loop:
            place(node, node.group)
    for edge in graph.edges:
        if edge.source not in members or edge.target not in members:
            continue
        source, target = members[edge.source], members[edge.target]
        end = place(target, target.group)
        start = place(source, target.group if source.group == "data" and not loop else source.group)
        if edge.again:  # drawn backwards, so that dot puts the start of an iteration above its end
            plan.add_edge(end, start, style="dashed", dir="back", arrowtail="normal", weight=0)
            continue
        if edge.shape:
            shape = f"{start} {edge.shape}"
            if shape not in shapes:
                plan.add_node(shape, width=(WIDE * SHAPE * len(edge.shape) + 8) / INCH, height=(SHAPE + 2) / INCH)
                shapes[shape], bands[shape] = edge.shape, bands[start]
                join(start, shape, weight=20)
            start = shape
        join(start, end, arrowhead="normal", minlen=2, weight=2)
    if not loop:
        _keep_apart(plan, bands, joined)
    plan.layout("dot")
    left, top = MARGIN + (0 if loop else BAND), MARGIN + (LABEL + 10 if loop else 0)
    width, height = (float(number) for number in plan.graph_attr["bb"].split(",")[2:])

    def point(text: str) -> Point:
        x, y = text.split(",")
        return float(x) + left, height - float(y) + top

    def box(key: str) -> Box:
        about = plan.get_node(key).attr
        (x, y), wide, high = point(about["pos"]), float(about["width"]) * INCH, float(about["height"]) * INCH
        return Box(x - wide / 2, y - high / 2, wide, high)

    boxes = {key: box(key) for key in bands}
    return Picture(
        width=width + left + MARGIN,
        height=height + top + MARGIN + (SHAPE + 4 if loop else 0),
        nodes=[(node, boxes[key]) for key, node in nodes.items()],
        shapes=[(shape, boxes[key]) for key, shape in shapes.items()],
        lines=[_line(edge.attr, point) for edge in plan.edges() if edge.attr["style"] != "invis"],
        inside=inside,
        bands={} if loop else _bands(bands, boxes, width + left + MARGIN),
    )


class Text(NamedTuple):
    """A line of text in a node, with its class and its font size."""

    kind: str
    size: int
    text: str


def texts_of(node: Node) -> list[Text]:
    """The lines in a node: its name, its operation in code, the framework's name for it, and in a loop the
    iteration."""
    framework = node.label if node.kind == "weight" or not node.plain else node.label.partition("(")[0]
    hidden = node.group == "data" and node.name and node.label in ("Placeholder", "Variable", node.name)
    same = node.plain.partition("(")[0] == framework.lower() or node.plain == framework
    small = "" if hidden or same else framework
    lines = [Text("name", NAME, node.name), Text("label", LABEL if node.name else ALONE, node.plain)]
    if node.plain or node.kind == "weight":
        lines.append(Text("framework", SMALL, small))
    else:
        lines[1] = lines[1]._replace(text=small)
    return [*(line for line in lines if line.text), *([Text("time", SMALL, f"t = {node.time}")] if node.time else [])]


def _size(node: Node, inside: Picture | None) -> tuple[float, float]:
    if inside:
        return max(inside.width, WIDE * LABEL * max(len(LEGEND), len(node.label) + 10)), inside.height
    lines = texts_of(node)
    return max(WIDE * line.size * len(line.text) for line in lines) + 26, sum(line.size + 4 for line in lines) + 10


def _keep_apart(plan: Any, bands: Mapping[str, str], joined: Iterable[tuple[str, str]]) -> None:
    """Put an invisible vertex between two bands: below the ends of the upper band, above the starts of the lower."""
    within = [(start, end) for start, end in joined if bands[start] == bands[end]]
    leaving, entered = {start for start, _ in within}, {end for _, end in within}
    for above, below in pairwise(group for group in GROUPS if group in bands.values()):
        plan.add_node(below, width=0.01, height=0.01)
        for key, band in bands.items():
            if band == above and key not in leaving:
                plan.add_edge(key, below, style="invis", weight=0)
            if band == below and key not in entered:
                plan.add_edge(below, key, style="invis", weight=0, minlen=2)


def _line(about: Mapping[str, str], point: Callable[[str], Point]) -> Line:
    """dot writes the tip of an arrowhead at an edge's end as e,X,Y, and at its start as s,X,Y, before the points."""
    first, *points = about["pos"].split(" ")
    tip = point(first[2:]) if first[1] == "," and first[0] in "es" else None
    again = about["style"] == "dashed"
    path = [point(text) for text in (points if tip else [first, *points])]
    return Line(path[::-1] if again else path, tip, again)


def _bands(bands: Mapping[str, str], boxes: Mapping[str, Box], width: float) -> dict[str, Box]:
    """A box for each band, over the whole width."""
    areas = {}
    for group in GROUPS:
        in_band = [boxes[key] for key, band in bands.items() if band == group]
        if in_band:
            high, low = min(box.y for box in in_band) - 12, max(box.low for box in in_band) + 12
            areas[group] = Box(0, high, width, low - high)
    return areas
