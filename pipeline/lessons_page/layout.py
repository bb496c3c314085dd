"""Where everything in the picture of a graph stands. The only `import igraph`.

From top to bottom, in layers and in three bands: forward, backward, update. igraph's Sugiyama layout orders what stands
beside each other so that few lines cross. It takes all nodes to be of one size, so they are then moved apart as far as
their texts need, and lines are straightened. A shape stands below the node that hands it on and has a place of its own,
as has each line beside a node, so that nothing overlaps. Data and weights stand once in each band that uses them.

A loop is a box around its body. What a round hands to the next goes round the body.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import Any, NamedTuple

import igraph

GROUPS = ("forward", "backward", "update")
NAME, ALONE, LABEL, SHAPE = 18, 16, 14, 13  # font sizes; ALONE is a label without a name above it
WIDE = 0.62  # of a character, in font sizes: the widest of the usual monospaced fonts
GAP = 16  # between what stands beside each other
NEAR, FAR, BREAK = 9, 25, 26  # between a node and the shape below it, from there to the next layer, and between bands
MARGIN, BAND = 14, 30  # around everything, and for a band's name at its left
LINE, ROUND = 10, 16  # the room of a line that goes past a node, and of one that goes round a loop's body
SWEEPS = 60
LEGEND = "dashed: to the next round"

Point = tuple[float, float]
Link = tuple[str, str, str]  # source, target, shape


class Box(NamedTuple):
    """x and y are its left upper corner."""

    key: str
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

    def moved(self, x: float, y: float) -> "Box":
        return self._replace(x=self.x + x, y=self.y + y)


@dataclass
class Picture:
    width: float = 0
    height: float = 0
    of: dict[str, Any] = field(default_factory=dict)  # the nodes of the graph, by the key of their box
    nodes: dict[str, Box] = field(default_factory=dict)
    shapes: dict[str, Box] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)  # of the shapes
    sources: dict[str, str] = field(default_factory=dict)  # the nodes that they stand below
    lines: list[tuple[list[Point], bool]] = field(default_factory=list)  # straight or curved, with a head or without
    again: list[list[Point]] = field(default_factory=list)  # with corners, and with a head
    bands: dict[str, Box] = field(default_factory=dict)
    inside: dict[str, "Picture"] = field(default_factory=dict)  # by the loop that it is in, from whose corner it counts


def arrange(graph: Mapping[str, Any]) -> Picture:
    """Where everything of a graph of results/NAME/graph.json stands, in pixels."""
    return _arranged(graph["nodes"], graph["edges"], None)


def texts_of(node: Mapping[str, Any]) -> tuple[str, str]:
    """What stands large in a node, and what small."""
    plain = (
        node["group"] == "data" and node["name"] and node["label"] in ("Placeholder", "Variable", "data", node["name"])
    )
    return node["name"], "" if plain else node["label"]


class Vertex(NamedTuple):
    """What has a place of its own: a node, a shape, or, with no height, a line that goes past a layer."""

    key: str
    layer: int
    width: float
    height: float


def _arranged(nodes: Sequence[Any], edges: Sequence[Any], loop: str | None) -> Picture:
    own = {node["id"]: node for node in nodes if node["within"] == loop}
    mine = [edge for edge in edges if edge["source"] in own and edge["target"] in own]
    picture = Picture()
    for key, node in own.items():
        if node["kind"] == "loop":
            picture.inside[key] = _arranged(nodes, edges, key)
    picture.of, links = _repeated(own, [edge for edge in mine if not edge["again"]], once=loop is not None)
    layers, starts = _layers(picture.of, links)
    ways = _Ways({key: Vertex(key, 2 * layers[key], *_size(node, picture)) for key, node in picture.of.items()})
    for source, shape in dict.fromkeys((source, shape) for source, _, shape in links):
        key = source
        if shape:
            key = f"{source} {shape}"
            picture.texts[key], picture.sources[key] = shape, source
            ways.add(Vertex(key, 2 * layers[source] + 1, WIDE * SHAPE * len(shape) + 8, SHAPE + 4))
            ways.lead(source, key)
        for target in (link[1] for link in links if (link[0], link[2]) == (source, shape)):
            ways.lead(key, target)
    rounds = [
        ways.round(edge["source"], edge["target"], 2 * max(layers.values()) + 2) for edge in mine if edge["again"]
    ]

    placed, rows = _placed(ways, {2 * layer - 1 for layer in starts})
    left, head = MARGIN + (0 if loop else BAND), MARGIN + (LABEL + 10 if loop else 0) + ROUND * len(rounds)
    placed = {key: box.moved(left, head) for key, box in placed.items()}
    picture.nodes = {key: placed[key] for key in picture.of}
    picture.shapes = {key: placed[key] for key in picture.texts}
    lines = _Lines(placed, {key: (high + head, low + head) for key, (high, low) in rows.items()}, ways.all)
    within = {along for each in rounds for along in each}
    picture.lines = [(lines.points(along), along[-1] in picture.of) for along in ways.all if along not in within]
    right, low = max(box.x + box.width for box in placed.values()), max(box.low for box in placed.values())
    for number, (out, back) in enumerate(rounds):
        side, over, under = right + ROUND * (number + 1), head - ROUND * (number + 0.5), low + ROUND * (number + 0.5)
        leaving, entering = lines.points(out), lines.points(back)
        corners = [(leaving[-1][0], under), (side, under), (side, over), (entering[0][0], over)]
        picture.again.append([*leaving, *corners, *entering])
    picture.width = right + ROUND * len(rounds) + MARGIN
    picture.height = low + ROUND * len(rounds) + MARGIN + (SHAPE + 4 if rounds else 0)
    if loop is None:
        picture.bands = _bands(picture)
        picture.height = max(picture.height, *(box.low + 1 for box in picture.bands.values()))
    return picture


class _Ways:
    """The vertices, and the lines between them by way of a vertex in each layer that they pass."""

    def __init__(self, vertices: dict[str, Vertex]) -> None:
        self.vertices = vertices
        self.all: list[tuple[str, ...]] = []

    def add(self, vertex: Vertex) -> str:
        self.vertices[vertex.key] = vertex
        return vertex.key

    def lead(self, source: str, target: str) -> tuple[str, ...]:
        passed = range(self.vertices[source].layer + 1, self.vertices[target].layer)
        between = [self.add(Vertex(f"{source} > {target} {layer}", layer, LINE, 0)) for layer in passed]
        self.all.append((source, *between, target))
        return self.all[-1]

    def round(self, source: str, target: str, lowest: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """A line out of the lowest layer, and one that comes in from above all others."""
        end = self.add(Vertex(f"{source} out to {target}", lowest, LINE, 0))
        start = self.add(Vertex(f"{source} back to {target}", -2, LINE, 0))
        return self.lead(source, end), self.lead(start, target)


def _repeated(own: Mapping[str, Any], edges: Sequence[Any], *, once: bool) -> tuple[dict[str, Any], list[Link]]:
    """The nodes, data and weights for each group that uses them unless `once`; the edges: source, target, shape."""
    found, links, used = {}, [], {edge["source"] for edge in edges}
    for key, node in own.items():
        if once or node["group"] != "data" or key not in used:
            found[key] = node
    for edge in edges:
        source, group = edge["source"], own[edge["target"]]["group"]
        if source not in found:
            source = f"{source} {group}"
            found[source] = own[edge["source"]] | {"band": group}
        links.append((source, edge["target"], edge["shape"]))
    return found, list(dict.fromkeys(links))


def _layers(nodes: Mapping[str, Any], links: Sequence[Link]) -> tuple[dict[str, int], list[int]]:
    """The layer of each node, below all that it takes from, and the layers with which the bands begin after the first.

    A band begins below the one before, with a layer for the data and weights that its first operations use.
    """
    before, after = defaultdict(list), defaultdict(list)
    for source, target, _ in links:
        before[target].append(source)
        after[source].append(target)
    layers: dict[str, int] = {}
    starts, start = [], 0
    for group in GROUPS:
        mine = [key for key, node in nodes.items() if node["group"] == group]
        if not mine:
            continue
        starts.append(start)
        first = {key for key in mine if not any(each in mine for each in before[key])}
        given = any(nodes[each]["group"] == "data" for key in first for each in before[key])
        layers |= dict.fromkeys(mine, start + given)
        changed = True
        while changed:  # longest paths
            changed = False
            for key in mine:
                lowest = max((layers[each] + 1 for each in before[key] if each in layers), default=0)
                if lowest > layers[key]:
                    layers[key], changed = lowest, True
        for key in sorted(mine, key=lambda key: -layers[key]):  # down to where it is used, if no line gets longer by it
            if after[key] and len(before[key]) <= len(after[key]) and all(each in layers for each in after[key]):
                layers[key] = min(layers[each] for each in after[key]) - 1
        start = max(layers[key] for key in mine) + 1
    for key in nodes:
        if key not in layers:
            layers[key] = min((layers[each] for each in after[key]), default=1) - 1
    return layers, starts[1:]


def _size(node: Any, picture: Picture) -> tuple[float, float]:
    if node["kind"] == "loop":
        inside = picture.inside[node["id"]]
        return max(inside.width, WIDE * LABEL * max(len(LEGEND), len(node["label"]) + 10)), inside.height
    name, label = texts_of(node)
    return max(
        WIDE * NAME * len(name), WIDE * (LABEL if name else ALONE) * len(label)
    ) + 26, 50 if name and label else 30


def _placed(ways: _Ways, breaks: set[int]) -> tuple[dict[str, Box], dict[str, tuple[float, float]]]:
    """A box for each vertex, and how far up and down its layer reaches. More room follows the layers in `breaks`."""
    vertices = list(ways.vertices.values())
    index = {vertex.key: number for number, vertex in enumerate(vertices)}
    links = list(dict.fromkeys((index[one], index[other]) for along in ways.all for one, other in pairwise(along)))
    lowest = min(vertex.layer for vertex in vertices)
    graph = igraph.Graph(len(vertices), links, directed=True)
    found = graph.layout_sugiyama([vertex.layer - lowest for vertex in vertices], hgap=1, vgap=1, maxiter=1000)
    rows: dict[int, list[int]] = defaultdict(list)
    for number, vertex in enumerate(vertices):
        rows[vertex.layer].append(number)
    for row in rows.values():
        row.sort(key=lambda number: found[number][0])
    x = _straightened(vertices, [rows[layer] for layer in sorted(rows)], links)
    left = min(x[number] - vertex.width / 2 for number, vertex in enumerate(vertices))
    aside = defaultdict(float)  # how far lines go sideways below a layer
    for one, other in links:
        aside[vertices[one].layer] = max(aside[vertices[one].layer], abs(x[one] - x[other]))
    ends = {other for _, other in links}
    boxes, extent, y = {}, {}, 0.0
    for layer in sorted(rows):
        height = max(vertices[number].height for number in rows[layer])
        for number in rows[layer]:
            key, _, wide, tall = vertices[number]
            tall = tall or height
            down = (height - tall) * (0.5 if number in ends else 1)
            boxes[key] = Box(key, x[number] - wide / 2 - left, y + down, wide, tall)
            extent[key] = (y, y + height)
        gap = (FAR if layer % 2 else NEAR) + min(20, aside[layer] / 8) if height else 0
        y += height + gap + (BREAK if layer in breaks else 0)
    return boxes, extent


def _straightened(
    vertices: Sequence[Vertex], rows: Sequence[Sequence[int]], links: Sequence[tuple[int, int]]
) -> list[float]:
    """The middle of each vertex: as near to its neighbours above and below as the widths in its row allow."""
    above, below = defaultdict(list), defaultdict(list)
    for one, other in links:
        above[other].append(one)
        below[one].append(other)
    x = [0.0] * len(vertices)
    for row in rows:
        _spread(row, vertices, x, dict.fromkeys(row, 1.0))
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            weights = {}
            for number in row:
                near = [(other, _pull(vertices, number, other)) for other in above[number] + below[number]]
                weights[number] = sum(pull for _, pull in near) or 0.01
                if near:
                    x[number] = sum(pull * x[other] for other, pull in near) / weights[number]
            _spread(row, vertices, x, weights)
    beside = {}
    for row in rows:
        for before, number, after in zip([None, *row], row, [*row[1:], None], strict=False):
            beside[number] = before, after
    chains = _chains(vertices, above, below)
    for _ in range(3):
        for chain in chains:
            _align(chain, vertices, beside, x)
    return x


def _pull(vertices: Sequence[Vertex], one: int, other: int) -> float:
    return 1.0 if vertices[one].height or vertices[other].height else 4.0


def _chains(
    vertices: Sequence[Vertex], above: Mapping[int, list[int]], below: Mapping[int, list[int]]
) -> list[list[int]]:
    """What should stand straight below each other: the points of a line that goes past, and what has one line alone."""
    following = {}
    for one, others in below.items():
        for other in others:
            past = not vertices[one].height and not vertices[other].height
            if past or (len(others) == 1 and len(above[other]) == 1):
                following[one] = other
    starts = [one for one in following if one not in set(following.values())]
    chains = []
    for start in starts:
        chain = [start]
        while chain[-1] in following:
            chain.append(following[chain[-1]])
        chains.append(chain)
    return sorted(chains, key=len, reverse=True)


def _align(
    chain: Sequence[int],
    vertices: Sequence[Vertex],
    beside: Mapping[int, tuple[int | None, int | None]],
    x: list[float],
) -> None:
    """Give the vertices of a chain one x, as many together as the room beside them allows."""

    def room(number: int) -> tuple[float, float]:
        (left, right), half = beside[number], vertices[number].width / 2 + GAP
        return (
            -inf if left is None else x[left] + vertices[left].width / 2 + half,
            inf if right is None else x[right] - vertices[right].width / 2 - half,
        )

    together: list[int] = []
    low, high = -inf, inf
    for number in [*chain, None]:
        least, most = (inf, -inf) if number is None else room(number)
        if number is None or max(low, least) > min(high, most):
            wanted = sum(x[each] for each in together) / max(1, len(together))
            for each in together:
                x[each] = min(max(wanted, low), high)
            together, low, high = [], -inf, inf
        if number is not None:
            together.append(number)
            low, high = max(low, least), min(high, most)


def _spread(row: Sequence[int], vertices: Sequence[Vertex], x: list[float], weights: Mapping[int, float]) -> None:
    """Move those in a row apart, no further than they must (isotonic regression, by pooling neighbours)."""
    offset, offsets = 0.0, []
    for place, number in enumerate(row):
        if place:
            offset += (vertices[row[place - 1]].width + vertices[number].width) / 2 + GAP
        offsets.append(offset)
    pools: list[list[float]] = []  # weight, mean, members
    for number, shift in zip(row, offsets, strict=True):
        pools.append([weights[number], x[number] - shift, 1])
        while len(pools) > 1 and pools[-2][1] > pools[-1][1]:
            weight, mean, members = pools.pop()
            last = pools[-1]
            last[1] = (last[0] * last[1] + weight * mean) / (last[0] + weight)
            last[0], last[2] = last[0] + weight, last[2] + members
    means = [mean for _, mean, members in pools for _ in range(int(members))]
    for number, shift, mean in zip(row, offsets, means, strict=True):
        x[number] = mean + shift


class _Lines:
    """The points along lines. Those that leave or enter a box do so side by side, in the order of where they go."""

    def __init__(
        self, placed: Mapping[str, Box], rows: Mapping[str, tuple[float, float]], ways: Iterable[Sequence[str]]
    ) -> None:
        self.placed, self.rows = placed, rows
        leaving, entering = defaultdict(dict), defaultdict(dict)
        for along in ways:
            leaving[along[0]][along[1]] = None
            entering[along[-1]][along[-2]] = None
        self.leave = {key: self._spread(key, others) for key, others in leaving.items()}
        self.enter = {key: self._spread(key, others) for key, others in entering.items()}

    def _spread(self, key: str, others: Iterable[str]) -> dict[str, float]:
        box, others = self.placed[key], sorted(others, key=lambda other: self.placed[other].middle)
        step = min(26.0, box.width * 0.7 / max(1, len(others) - 1))
        return {other: box.middle + step * (place - (len(others) - 1) / 2) for place, other in enumerate(others)}

    def points(self, along: Sequence[str]) -> list[tuple[float, float]]:
        """From the lower side of the first to the upper side of the last; straight down while in a layer."""
        first, last = self.placed[along[0]], self.placed[along[-1]]
        start, end = self.leave[along[0]][along[1]], self.enter[along[-1]][along[-2]]
        points = [(start, first.y + first.height), (start, self.rows[along[0]][1])]
        for key in along[1:-1]:
            points += [(self.placed[key].middle, y) for y in self.rows[key]]
        return [*points, (end, self.rows[along[-1]][0]), (end, last.y)]


def _bands(picture: Picture) -> dict[str, Box]:
    """A band for each group, over the whole width: its operations and what they use."""
    found = [(box, picture.of[key]) for key, box in picture.nodes.items()]
    found += [(box, picture.of[picture.sources[key]]) for key, box in picture.shapes.items()]
    bands = {}
    for group in GROUPS:
        boxes = [box for box, node in found if node.get("band", node["group"]) == group]
        if boxes:
            high, low = min(box.y for box in boxes) - 12, max(box.low for box in boxes) + 12
            bands[group] = Box(group, 0, high, picture.width, low - high)
    return bands
