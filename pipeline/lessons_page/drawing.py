"""The graph of a lesson's step as a picture: results/NAME/graph.json → SVG, in the colours of the page that it is on.

Groups differ in colour and in their borders: plain, dashed, thick. Where everything stands is in layout.py.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pipeline.lessons_page.layout import GROUPS, LABEL, LEGEND, Box, Picture, Point, arrange, texts_of

STYLE = """
:root { --forward: #1f66b0; --backward: #a8480a; --update: #1d7a46; }
@media (prefers-color-scheme: dark) { :root { --forward: #7db6f2; --backward: #f2a367; --update: #6fd09a; } }
.graph { display: block; max-width: 100%; height: auto; color: var(--ink); }
.graph text { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.graph text { fill: currentColor; text-anchor: middle; }
.graph .name { font-size: 18px; font-weight: 600; }
.graph .label { font-size: 16px; }
.graph .name + .label, .graph .loop > .label { font-size: 14px; }
.graph .name + .label, .graph .shape { fill: var(--soft); }
.graph .shape { font-size: 13px; }
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


def svg(graph: Mapping[str, Any]) -> str:
    """One <svg> that holds no ids; its classes are those of STYLE."""
    picture = arrange(graph)
    width, height = round(picture.width), round(picture.height)
    return "\n".join(
        (
            f'<svg class="graph" role="img" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
            f"<title>{escape(graph['title'])}</title>",
            *_drawn(picture),
            "</svg>",
        )
    )


def _drawn(picture: Picture) -> list[str]:
    parts = []
    for group, box in picture.bands.items():
        name = f'<text transform="translate(20 {_n(box.y + box.height / 2)}) rotate(-90)">{group}</text>'
        parts.append(f'<g class="band {group}">{_rectangle(box, 8)}{name}</g>')
    parts += [f'<g class="edge">{_path(points, head=head)}</g>' for points, head in picture.lines]
    parts += [_text("shape", picture.texts[key], box.middle, box.low - 4) for key, box in picture.shapes.items()]
    for key, box in picture.nodes.items():
        parts.append(_node(picture.of[key], box))
        if key in picture.inside:
            parts += [f'<g transform="translate({_n(box.x)} {_n(box.y)})">', *_drawn(picture.inside[key]), "</g>"]
    parts += [f'<g class="edge again">{_path(points, head=True, curved=False)}</g>' for points in picture.again]
    return parts


def _node(node: Mapping[str, Any], box: Box) -> str:
    group, kind = node["group"], node["kind"]
    classes = " ".join(dict.fromkeys(("node", group, kind)))
    name, label = texts_of(node)
    parts = [
        f'<g class="{classes}" data-name="{escape(name)}"><title>{escape(node["detail"])}</title>',
        _rectangle(box, box.height / 2 if group == "data" else 5),
    ]
    if kind == "loop":
        parts.append(_text("label", f"a loop: {label}", box.middle, box.y + LABEL + 8))
        parts.append(_text("shape", LEGEND, box.middle, box.low - 8))
    else:
        if group in GROUPS:
            parts.append(_rectangle(box._replace(width=6), 3, ' class="stripe"'))
        if name:
            parts.append(_text("name", name, box.middle, box.y + (22 if label else 21)))
        if label:
            parts.append(_text("label", label, box.middle, box.y + (41 if name else 20)))
    return "".join((*parts, "</g>"))


def _rectangle(box: Box, radius: float, about: str = "") -> str:
    x, y, width, height = map(_n, box[1:])
    return f'<rect{about} x="{x}" y="{y}" width="{width}" height="{height}" rx="{_n(radius)}"/>'


def _text(kind: str, text: str, x: float, y: float) -> str:
    return f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}">{escape(text)}</text>'


def _path(points: Sequence[Point], *, head: bool, curved: bool = True) -> str:
    (x, y), *others = points
    drawn = f"M{_n(x)} {_n(y)}"
    end_x, end_y = others[-1]
    if head:
        others[-1] = (end_x, end_y - 6)
    for to_x, to_y in others:
        if (to_x, to_y) == (x, y):
            continue
        if abs(to_x - x) < 0.5 or not curved:
            drawn += f"L{_n(to_x)} {_n(to_y)}"
        else:
            middle = (y + to_y) / 2
            drawn += f"C{_n(x)} {_n(middle)} {_n(to_x)} {_n(middle)} {_n(to_x)} {_n(to_y)}"
        x, y = to_x, to_y
    arrow = f'<path class="head" d="M{_n(end_x - 5)} {_n(end_y - 8)}h10l-5 8z"/>' if head else ""
    return f'<path d="{drawn}"/>{arrow}'


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
