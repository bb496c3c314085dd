"""Two small plots of a training as SVG, in the colours of the page around them.

The report's figures (pipeline/report/figures.py) compare implementations, and each needs about 50 kB. These show one
implementation in about 4 kB, which a page with all lessons can afford.
"""

from collections.abc import Callable, Sequence
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 340, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 8, 36
SHOWN = 200  # points of a curve
STYLE = """
.plot { width: 100%; max-width: 26rem; height: auto; color: var(--ink); }
.plot text { font: 12px system-ui, sans-serif; fill: currentColor; }
.plot .axis { stroke: var(--soft); fill: none; }
.plot .line { stroke: var(--forward); stroke-width: 1.6; fill: none; }
.plot .same { stroke: var(--soft); stroke-dasharray: 4 3; }
.plot .band { fill: var(--soft); fill-opacity: .22; }
.plot .points { stroke-linecap: round; stroke-width: 3.4; fill: none; }
.plot .before { stroke: var(--soft); }
.plot .after { stroke: var(--backward); }
"""

Scale = Callable[[float], float]


def curve(steps: Sequence[int], losses: Sequence[float], title: str) -> str:
    """The training loss over the steps, on a logarithmic scale."""
    stride = ceil(len(steps) / SHOWN)
    points = [(step, log10(loss)) for step, loss in list(zip(steps, losses, strict=True))[::stride] if loss > 0]
    if not points:
        return ""
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)
    low, high = _wide(min(loss for _, loss in points), max(loss for _, loss in points))
    x, y = _scale(first, last, LEFT, WIDTH - RIGHT), _scale(low, high, HEIGHT - BOTTOM, TOP)
    path = "L".join(f"{x(step):.1f} {y(loss):.1f}" for step, loss in points)
    marks = [(log10(digit * 10.0**power), f"{digit * 10.0**power:g}") for power in range(-9, 7) for digit in (1, 2, 5)]
    ticks = [(y(mark), text) for mark, text in marks if low <= mark <= high]
    parts = [f'<path class="line" d="M{path}"/>', *_axes([(x(first), f"{first}"), (x(last), f"{last}")], ticks)]
    return _svg(title, "step", "training loss", parts)


def scatter(targets: Sequence[float], before: Sequence[float], after: Sequence[float], noise: float, title: str) -> str:
    """Predictions over targets, before and after training, with the line on which both are equal, ± the noise."""
    low, high = _wide(min(*targets, *before, *after), max(*targets, *before, *after))
    x, y = _scale(low, high, LEFT, WIDTH - RIGHT), _scale(low, high, HEIGHT - BOTTOM, TOP)
    whole = [number for number in range(ceil(low), floor(high) + 1) if number % max(1, round((high - low) / 5)) == 0]
    ends = [(low, low - noise), (high, high - noise), (high, high + noise), (low, low + noise)]
    band = " ".join(f"{x(a):.1f},{y(min(max(b, low), high)):.1f}" for a, b in ends)
    parts = [
        f'<polygon class="band" points="{band}"/>' if noise else "",
        f'<path class="same" d="M{x(low):.1f} {y(low):.1f}L{x(high):.1f} {y(high):.1f}"/>',
        _points("before", [(x(a), y(b)) for a, b in zip(targets, before, strict=True)]),
        _points("after", [(x(a), y(b)) for a, b in zip(targets, after, strict=True)]),
        *_axes([(x(number), f"{number}") for number in whole], [(y(number), f"{number}") for number in whole]),
    ]
    return _svg(title, "target", "prediction", parts)


def _points(kind: str, points: Sequence[tuple[float, float]]) -> str:
    """A line of length 0 for each point. Its round ends make it a dot."""
    return f'<path class="points {kind}" d="{"".join(f"M{x:.0f} {y:.0f}h0" for x, y in points)}"/>'


def _axes(below: Sequence[tuple[float, str]], beside: Sequence[tuple[float, str]]) -> list[str]:
    low = HEIGHT - BOTTOM
    return [
        f'<path class="axis" d="M{LEFT} {TOP}V{low}H{WIDTH - RIGHT}"/>',
        *(f'<text x="{x:.0f}" y="{low + 15}" text-anchor="middle">{text}</text>' for x, text in below),
        *(f'<text x="{LEFT - 5}" y="{y + 4:.0f}" text-anchor="end">{text}</text>' for y, text in beside),
    ]


def _svg(title: str, x: str, y: str, parts: Sequence[str]) -> str:
    names = (
        f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 5}" text-anchor="middle">{x}</text>'
        f'<text transform="translate(12 {(HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle">{y}</text>'
    )
    start = f'<svg class="plot" role="img" viewBox="0 0 {WIDTH} {HEIGHT}">'
    return f"{start}<title>{escape(title)}</title>{''.join(parts)}{names}</svg>"


def _wide(low: float, high: float) -> tuple[float, float]:
    """Both ends of a range, moved apart a little."""
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (value - low) / (high - low) * (end - start)
