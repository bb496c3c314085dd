"""The picture of a graph as SVG, in the colours of the page around it.

Groups differ in colour and in their borders: plain, dashed, thick. layout.py computes the positions.
"""

from html import escape
from math import atan2, degrees

from pipeline.graphs.graph import Graph, Node
from pipeline.lessons_page.layout import GROUPS, LABEL, LEGEND, Box, Line, Picture, arrange, texts_of

STYLE = """
:root { --forward: #1f66b0; --backward: #a8480a; --update: #1d7a46; }
@media (prefers-color-scheme: dark) { :root { --forward: #7db6f2; --backward: #f2a367; --update: #6fd09a; } }
.graph { display: block; max-width: 100%; height: auto; color: var(--ink); }
.graph text { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.graph text { fill: currentColor; text-anchor: middle; }
.graph .name { font-size: 18px; font-weight: 600; }
.graph .label { font-size: 16px; }
.graph .name + .label, .graph .loop > .label { font-size: 14px; }
.graph .framework, .graph .shape { fill: var(--soft); }
.graph .shape { font-size: 13px; }
.graph .framework, .graph .time { font-size: 12px; }
.graph .time { fill: var(--group); font-weight: 600; }
.graph .band rect { fill: var(--card); }
.graph .band text { font: 600 15px system-ui, sans-serif; letter-spacing: .06em; }
.graph .node rect { fill: var(--page); stroke: var(--group, var(--soft)); stroke-width: 1.6; }
.graph .node .stripe { fill: var(--group); stroke: none; }
.graph .forward { --group: var(--forward); }
.graph .backward { --group: var(--backward); }
.graph .update { --group: var(--update); }
.graph .band text { fill: var(--group); }
.graph .backward rect { stroke-dasharray: 7 3; }
.graph .update rect { stroke-width: 3; }
.graph .loop > rect { stroke-width: 2.2; fill: var(--card); }
.graph .loop > .label { fill: var(--group); font-weight: 600; }
.graph .data rect { stroke-width: 1; }
.graph .weight rect { stroke: var(--ink); stroke-width: 2; }
.graph .edge path { fill: none; stroke: var(--soft); stroke-width: 1.6; }
.graph .edge .head { fill: var(--soft); stroke: none; }
.graph .again path { stroke-dasharray: 5 4; stroke: var(--ink); } .graph .again .head { fill: var(--ink); }
"""


def svg(graph: Graph) -> tuple[str, int]:
    """One <svg> that holds no ids, whose classes are those of STYLE, and its width in pixels."""
    picture = arrange(graph)
    width, height = round(picture.width), round(picture.height)
    start = f'<svg class="graph" role="img" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return "\n".join((start, f"<title>{escape(graph.title)}</title>", *_parts(picture), "</svg>")), width


def _parts(picture: Picture) -> list[str]:
    parts = []
    for group, box in picture.bands.items():
        name = f'<text transform="translate(20 {_n(box.y + box.height / 2)}) rotate(-90)">{group}</text>'
        parts.append(f'<g class="band {group}">{_rectangle(box, 8)}{name}</g>')
    parts += [_line(line) for line in picture.lines if not line.again]
    parts += [_text("shape", shape, box.middle, box.low - 3) for shape, box in picture.shapes]
    for node, box in picture.nodes:
        parts.append(_node(node, box))
        if node.id in picture.inside:
            body = picture.inside[node.id]
            parts += [f'<g transform="translate({_n(box.x)} {_n(box.y)})">', *_parts(body), "</g>"]
    parts += [_line(line) for line in picture.lines if line.again]
    return parts


def _node(node: Node, box: Box) -> str:
    classes = " ".join(dict.fromkeys(("node", node.group, node.kind)))
    parts = [
        f'<g class="{classes}" data-name="{escape(node.name)}"><title>{escape(node.detail)}</title>',
        _rectangle(box, box.height / 2 if node.group == "data" else 5),
    ]
    if node.kind == "loop":
        parts.append(_text("label", f"a loop: {node.label}", box.middle, box.y + LABEL + 8))
        parts.append(_text("shape", LEGEND, box.middle, box.low - 8))
    else:
        if node.group in GROUPS:
            parts.append(_rectangle(box._replace(width=6), 3, ' class="stripe"'))
        y = box.y + 5
        for kind, size, text in texts_of(node):
            y += size + 4
            parts.append(_text(kind, text, box.middle, y - 3))
    return "".join((*parts, "</g>"))


def _rectangle(box: Box, radius: float, attribute: str = "") -> str:
    x, y, width, height = map(_n, box)
    return f'<rect{attribute} x="{x}" y="{y}" width="{width}" height="{height}" rx="{_n(radius)}"/>'


def _text(kind: str, text: str, x: float, y: float) -> str:
    return f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}">{escape(text)}</text>'


def _line(line: Line) -> str:
    start, *points = (f"{_n(x)} {_n(y)}" for x, y in line.points)
    head = ""
    if line.tip:
        (x, y), (from_x, from_y) = line.tip, line.points[-1]
        turned = f"translate({_n(x)} {_n(y)}) rotate({degrees(atan2(y - from_y, x - from_x)) - 90:.0f})"
        head = f'<path class="head" transform="{turned}" d="M-5 -8h10l-5 8z"/>'
    return f'<g class="edge{" again" if line.again else ""}"><path d="M{start}C{" ".join(points)}"/>{head}</g>'


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
