"""The report's figures, as SVG. The only `import matplotlib`.

A figure is drawn once, with text and axes in a placeholder colour. On the page it is replaced by the colour of the
page's text, light or dark; in a file by black on white. Figures hold no date and no random id, so the same results make
the same figures.
"""

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle
from typing import Any, NamedTuple, TypeVar

os.environ.pop("MPLBACKEND", None)  # Jupyter sets it to a backend that only Jupyter's environment has

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from pipeline.benchmark.candidates import LAUNCH_FLOOR, Candidate
from pipeline.benchmark.intervals import mean, spread
from pipeline.benchmark.samples import Benchmark, Case
from pipeline.clock import TIME_BREAKDOWN
from pipeline.environment import framework_of
from pipeline.report.findings import GPU_CLAIM, break_even
from pipeline.report.seeds import Seeds, losses
from pipeline.results import Timing

T = TypeVar("T")
INK = "#010203"
# Colours of medium lightness, distinct on white and on black. The markers differ, too.
COLOURS = ("#4e94d8", "#e0861c", "#35a06b", "#d4574a", "#a477c9", "#4e94d8", "#a477c9")
MARKERS = "osD^vos"
BREAKDOWN_COLOURS = dict(
    zip(
        TIME_BREAKDOWN,
        (
            "#9aa0a8", "#6f7680", "#7a5fb5", "#35a06b", "#8cc665", "#e0861c", "#d4574a",
            "#4e94d8", "#2aa7a7", "#c9a227", "#5b4636", "#8f9c2f", "#3f5fa8", "#d0d3d8",
        ),
        strict=True,
    )
)  # fmt: skip
STYLE: Any = {
    "svg.hashsalt": "report",
    "svg.fonttype": "none",
    "font.size": 10,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


class Result(NamedTuple):
    """The results of a training of an implementation."""

    problem: str
    timing: Timing
    steps: list[int]
    losses: list[float]


Results = Mapping[str, Result]
Predictions = Mapping[str, tuple[list[float], list[float]]]  # by problem: targets and their predictions


def draw(
    results: Results,
    benchmark: Benchmark,
    training_sizes: Mapping[str, Mapping[str, int]],
    seeds: Seeds | None,
    *,
    predictions: Predictions,
    noise: float,
) -> dict[str, str]:
    """The SVG text of each figure by name. `training_sizes` has the sizes of each problem's training. `noise` is the
    standard deviation of the noise in the targets, 0 without a teacher."""
    with mpl.rc_context():
        mpl.rcdefaults()  # overrides the user's matplotlibrc
        mpl.rcParams.update(STYLE)
        figures = _figures(results, benchmark, training_sizes)
        if predictions:
            figures["predictions"] = _predictions(results, predictions, noise)
        if seeds:
            figures["seeds_parity"] = _seeds_parity(seeds)
            figures |= {f"seeds_{parameter}": _seeds_loss(seeds, parameter) for parameter in seeds.parameters}
        return {name: _svg(figure) for name, figure in figures.items()}


def for_page(drawing: str) -> str:
    return drawing.replace(INK, "currentColor")


def for_file(drawing: str) -> str:
    return drawing.replace(INK, "#000000").replace("<svg ", '<svg style="background: white" ', 1)


def _figures(
    results: Results, benchmark: Benchmark, training_sizes: Mapping[str, Mapping[str, int]]
) -> dict[str, Figure]:
    figures = {f"loss_{problem}": _loss(_of(results, problem)) for problem in training_sizes}
    figures["time_breakdown"] = _time_breakdown(results)
    for problem in training_sizes:
        of_problem, cases = _of(results, problem), benchmark.of(problem)
        if not cases:
            continue
        if cases[0].sequence_total:
            figures[f"loops_{problem}"] = _loops(of_problem, cases)
            continue
        figures[f"step_time_{problem}"] = _step_times(of_problem, cases)
        if speed_ups := _speed_ups(of_problem, cases):
            figures[f"speed_up_{problem}"] = speed_ups
    if graphs := {
        name: case
        for name, result in results.items()
        if (case := benchmark.at(result.problem, training_sizes[result.problem])) and break_even(case, name)
    }:
        figures["break_even"] = _break_even(graphs)
    return figures


def _loss(results: Results) -> Figure:
    figure, axes = _new(7, 3)
    for (name, result), (colour, _) in _styled(results.items()):
        axes.plot(result.steps, result.losses, color=colour, label=name, linewidth=1.2, alpha=0.8)
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.legend()
    return figure


def _predictions(results: Results, predictions: Predictions, noise: float) -> Figure:
    """Predictions over targets, and the line on which both are equal, with the noise as a band around it."""
    figure, *panels = _new(7, 3.7, len(predictions))
    for axes, ((problem, points), (colour, _)) in zip(panels, _styled(predictions.items()), strict=True):
        ends = np.array([np.min(points), np.max(points)])
        axes.plot(*points, "o", color=colour, markersize=1.8, markeredgewidth=0)
        axes.plot(ends, ends, color=INK, linewidth=0.7)
        axes.fill_between(ends, ends - noise, ends + noise, color=INK, alpha=0.3, lw=0)
        axes.set(xlabel="target", ylabel="prediction", aspect="equal")
        axes.set_title(f"{problem}: {next(iter(_of(results, problem)))}")
    return figure


def _time_breakdown(results: Results) -> Figure:
    figure, axes = _new(7, 0.45 * len(results) + 1.6)
    names = list(results)
    left = np.zeros(len(names))
    for line, colour in BREAKDOWN_COLOURS.items():
        seconds = np.array([results[name].timing.breakdown_seconds[line] for name in names])
        axes.barh(names, seconds, left=left, color=colour, label=line.replace("_", " "), height=0.62)
        left += seconds
    axes.invert_yaxis()
    axes.set(xlabel="seconds of the training stage, from the start of its process")
    figure.legend(loc="outside lower center", ncols=6, fontsize=8)
    return figure


def _step_times(results: Results, cases: list[Case]) -> Figure:
    figure, axes = _new(7, 4)
    for (name, _), (colour, marker) in _styled(results.items()):
        _line(axes, cases, [Candidate(name)] * len(cases), color=colour, marker=marker, label=name)
    styles = iter(("--", ":", "-.", (0, (1, 3))))
    for label, baselines in _baselines(results, cases).items():
        _line(axes, cases, baselines, color=INK, linestyle=next(styles), label=label)
    axes.set(ylabel="seconds a step", yscale="log")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _baselines(results: Results, cases: list[Case]) -> dict[str, list[Candidate]]:
    """The lower limits of a step's time, by name: a candidate at each of the sizes."""
    products = "the matrix products alone"
    if not cases[0].on_gpu:
        lines = {products: [case.matmul(Candidate(list(results)[-1])) for case in cases]}
    else:
        lines = {}
        for framework, name in {framework_of(name): name for name in results}.items():
            if framework != "numpy":  # which is drawn as the comparison for the GPU
                lines[f"{products}, {framework}"] = [case.matmul(Candidate(name)) for case in cases]
        floors = {name: [case.launch_floor(name) for case in cases] for name in results}
        names = [name for name, line in floors.items() if all(line)]
        highest = max(names, key=lambda name: cases[0].median(Candidate(name, LAUNCH_FLOOR)), default=None)
        if highest:
            lines[f"launch floor: as many empty kernels as {highest} has"] = floors[highest]
    return {label: [candidate for candidate in line if candidate] for label, line in lines.items() if all(line)}


def _speed_ups(results: Results, cases: list[Case]) -> Figure | None:
    """The speedup over NumPy, where the two were interleaved."""
    figure, axes = _new(7, 3.6)
    highest = 0.0
    for (name, _), (colour, marker) in _styled(results.items()):
        ratios = [(case, case.ratio(Candidate("numpy_arrays"), Candidate(name))) for case in cases]
        known = [(case.operations, ratio) for case, ratio in ratios if ratio]
        if name == "numpy_arrays" or not known:
            continue
        x, speeds = zip(*known, strict=True)
        highest = max(highest, *(speed.value for speed in speeds))
        axes.plot(x, [speed.value for speed in speeds], color=colour, marker=marker, label=name)
        axes.fill_between(
            x, [speed.low for speed in speeds], [speed.high for speed in speeds], color=colour, alpha=0.15, lw=0
        )
    if not axes.lines:
        return None
    axes.axhline(1, color=INK, linewidth=0.8)
    axes.axhline(GPU_CLAIM, color=INK, linewidth=0.8, linestyle="--")
    text = f"{GPU_CLAIM:.0f} ×, the text's claim for GPUs"
    axes.text(0.01, GPU_CLAIM, text, va="bottom", transform=axes.get_yaxis_transform())
    _ticks(axes, cases)
    axes.set(ylabel="times as fast as numpy_arrays", yscale="log", ylim=(0.2, max(2 * GPU_CLAIM, 1.3 * highest)))
    axes.legend(fontsize=8, loc="center left")
    return figure


def _break_even(graphs: Mapping[str, Case]) -> Figure:
    """Seconds over steps at the training's size, including the cost of building the graph."""
    figure, *panels = _new(7, 3.2, len(graphs))
    for axes, ((name, case), (colour, _)) in zip(panels, _styled(graphs.items()), strict=True):
        build, eager, step = (case.median(Candidate(name, kind)) for kind in ("build", "eager", ""))
        count = break_even(case, name)
        paid = count.steps if count else None
        even = paid.value if paid else 1000.0
        steps = np.linspace(1, 2.5 * even, 50)
        axes.plot(steps, build + (steps - 1) * step, color=colour, label="the graph")
        axes.plot(steps, steps * eager, color=colour, linestyle="--", label="run eagerly")
        if paid:
            axes.plot(even, even * eager, "o", color=INK)
            axes.annotate(f"  {even:.0f} steps", (even, even * eager), va="top", ha="left")
        axes.set(xlabel="steps", ylabel="seconds", ylim=(0, None), xlim=(0, None))
        axes.set_title(f"{name}\n{case.label}", fontsize=9)
        axes.legend(fontsize=8)
    return figure


def _loops(results: Results, cases: list[Case]) -> Figure:
    figure, left, right = _new(7, 3.4, 2, sharey=True)
    for (name, _), (colour, marker) in _styled(results.items()):
        milliseconds = [1e3 * case.median(Candidate(name)) for case in cases]
        padded = [case.sizes["batch_size"] * case.sizes["max_length"] for case in cases]
        left.plot([case.sequence_total for case in cases], milliseconds, marker, color=colour, label=name)
        right.plot(padded, milliseconds, marker, color=colour, label=name)
    left.set(xlabel="sum of the lengths in a batch", ylabel="milliseconds a step", ylim=(0, None), xlim=(0, None))
    right.set(xlabel="batch × longest", xlim=(0, None))
    left.legend(fontsize=8)
    return figure


def _seeds_parity(seeds: Seeds) -> Figure:
    """Each measure of each seed, and the tolerance."""
    names = list(seeds.table.implementation.unique())
    figure, *panels = _new(10, 0.35 * len(names) + 1.3, len(seeds.limits), sharey=True)
    for axes, (measure, limit) in zip(panels, seeds.limits.items(), strict=True):
        for row, (name, (colour, _)) in enumerate(_styled(names)):
            differences = seeds.table[seeds.table.implementation == name][measure].clip(1e-18)
            axes.plot(differences, [row] * len(differences), "|", color=colour, markersize=11, alpha=0.7)
        axes.axvline(limit, color=INK, linestyle="--", linewidth=1)
        axes.set(xscale="log", xlabel=measure.replace("_", " "))
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    return figure


def _seeds_loss(seeds: Seeds, parameter: str) -> Figure:
    """Means of the held-out loss with their intervals, by the value of a swept parameter."""
    problems = list(seeds.table.problem.unique())
    figure, *panels = _new(10, 3.4, len(problems))
    for axes, problem in zip(panels, problems, strict=True):
        names = list(seeds.table[seeds.table.problem == problem].implementation.unique())
        for number, (name, (colour, marker)) in enumerate(_styled(names)):
            by_value = losses(seeds, parameter, name)
            means = [mean(values) for values in by_value.values()]
            places = [
                place + 0.08 * (number - (len(names) - 1) / 2) for place in range(len(means))
            ]  # beside each other
            middle, half = (
                [estimate.value for estimate in means],
                [estimate.high - estimate.value for estimate in means],
            )
            axes.errorbar(places, middle, half, color=colour, marker=marker, label=name, capsize=3, linewidth=1)
            axes.set_xticks(range(len(means)), list(by_value))
        axes.set(xlabel=parameter, ylabel="held-out loss", title=problem)
        axes.legend(fontsize=8)
    return figure


def _line(axes: Axes, cases: list[Case], candidates: list[Candidate], *, color: str, **style: Any) -> None:
    """Medians over size, with the quartiles as a band."""
    of_cases = zip(cases, candidates, strict=True)
    medians, low, high = zip(
        *(spread(list(case.seconds[candidate].values())) for case, candidate in of_cases), strict=True
    )
    x = [case.operations for case in cases]
    axes.plot(x, medians, color=color, **style)
    axes.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
    _ticks(axes, cases)


def _ticks(axes: Axes, cases: list[Case]) -> None:
    axes.set_xscale("log")
    halves = [case.label.split(" × ") for case in cases]
    labels = [f"{' × '.join(half[:2])}\n× {' × '.join(half[2:])}" for half in halves]  # otherwise neighbours overlap
    axes.set_xticks([case.operations for case in cases], labels)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params("x", labelsize=8)
    axes.set_xlabel("batch × inputs × hidden × outputs, spaced by the operations in a step")


def _styled(items: Iterable[T]) -> Iterator[tuple[T, tuple[str, str]]]:
    """Each item with a colour and a marker."""
    return zip(items, cycle(zip(COLOURS, MARKERS, strict=True)), strict=False)


def _of(results: Results, problem: str) -> dict[str, Result]:
    return {name: result for name, result in results.items() if result.problem == problem}


def _new(width: float, height: float, panels: int = 1, **options: Any) -> list[Any]:
    """A transparent figure, and its panels."""
    figure = Figure(figsize=(width, height))
    figure.patch.set_alpha(0)
    axes = figure.subplots(1, panels, squeeze=False, **options)[0]
    for panel in axes:
        panel.set_facecolor("none")
    return [figure, *axes]


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg ") :]
