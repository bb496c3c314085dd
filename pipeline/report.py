"""The report: one self-contained page, and its figures as files. The only `import matplotlib`.

A figure is drawn once, its text and axes in a colour of its own: on the page that becomes the colour of the page's
text, light or dark; as a file it becomes black on white. Nothing holds a date or a random id of its own: the same
results make the same page.
"""

import io
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from pipeline import findings
from pipeline.contract import Array
from pipeline.environment import Environment
from pipeline.findings import Case
from pipeline.params import Params
from pipeline.statistics import Estimate, ratio, spread
from pipeline.timing import BUSY, LEDGER

INK = "#010203"
# Of a middle lightness, to be told apart on white and on black; markers differ too.
COLOURS = ("#4e94d8", "#e0861c", "#35a06b", "#d4574a", "#a477c9", "#4e94d8", "#a477c9")
MARKERS = "osD^vos"
LEDGER_COLOURS = dict(
    zip(
        LEDGER,
        (
            "#9aa0a8", "#6f7680", "#7a5fb5", "#35a06b", "#8cc665", "#e0861c",
            "#d4574a", "#4e94d8", "#2aa7a7", "#c9a227", "#b86fa9", "#d0d3d8",
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
    """What is known of an implementation; `restored`: its timing is older than this run of the pipeline."""

    problem: str
    timing: dict[str, Any]
    restored: bool
    benchmarked: dict[str, Any]
    cases: list[Case]
    losses: list[float]


class SideBySide(NamedTuple):
    """Implementations that took turns in one process, by their names, and where and when."""

    case: Case
    measured: dict[str, Any]


def write(
    params: Params,
    environment: Environment,
    comparison: dict[str, Any],
    results: dict[str, Result],
    side_by_side: SideBySide,
) -> tuple[str, dict[str, str]]:
    """The page, as HTML, and its figures as SVG files by name."""
    with mpl.rc_context(STYLE):
        drawn = {name: _svg(figure) for name, figure in _figures(params, results).items()}
    benchmarks = {name: result.cases for name, result in results.items()}
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
        Path(__file__).with_name("report.html").read_text()
    )
    page = template.render(
        params=params,
        environment=environment,
        compared=_when(side_by_side.measured),
        busy=_busy(side_by_side.measured),
        comparison=comparison,
        claims=findings.claims(benchmarks, side_by_side.case, comparison, environment.device),
        rows=[_row(name, result, params, comparison) for name, result in results.items()],
        ledger=LEDGER,
        ledgers={name: _ledger(result) for name, result in results.items()},
        benchmarks={name: [_measured(case) for case in result.cases] for name, result in results.items()},
        even=[
            (name, case.label, findings.steps(findings.break_even(case)))
            for name, result in results.items()
            for case in result.cases
            if "build" in case.seconds
        ],
        loops={name: findings.loops(result.cases) for name, result in results.items() if result.problem == "recurrent"},
        commits=sorted({result.timing["commit"] for result in results.values()}),
        times=sorted(result.timing["measured_at"] for result in results.values()),
        hosts=sorted({result.timing["measured_on"] for result in results.values()}),
        figures={name: drawing.replace(INK, "currentColor") for name, drawing in drawn.items()},
    )
    return page, {
        name: drawing.replace(INK, "#000000").replace("<svg ", '<svg style="background: white" ', 1)
        for name, drawing in drawn.items()
    }


def _row(name: str, result: Result, params: Params, comparison: dict[str, Any]) -> dict[str, Any]:
    case = next((case for case in result.cases if case.sizes == params.sizes(result.problem)), None)
    return {
        "name": name,
        "problem": result.problem,
        **comparison["implementations"][name],
        "step": _duration(result.timing["step_seconds_median"]),
        "p95": _duration(result.timing["step_seconds_p95"]),
        "multiple": findings.times(case.multiple) if case else "not benchmarked at this size",
        "busy": _busy(result.benchmarked),
        "device": result.timing["device_name"],
        "when": _when(result.timing),
        "where": result.timing["measured_on"],
        "restored": result.restored,
    }


def _measured(case: Case) -> dict[str, Any]:
    """A benchmarked size in words: each contestant's median and quartiles, and its ratio to the step."""
    return {
        "label": case.label,
        "contestants": [
            (
                name,
                _duration(spread(samples).median),
                f"{_duration(spread(samples).lower_quartile)} … {_duration(spread(samples).upper_quartile)}",
                len(samples),
                "" if name in ("step", "build") else findings.times(ratio(samples, case.seconds["step"])),
            )
            for name, samples in case.seconds.items()
        ],
        "multiple": findings.times(case.multiple),
    }


def _ledger(result: Result) -> dict[str, str]:
    """The duration of each line of a training's ledger, and its share of the whole."""
    seconds = {line: result.timing[f"{line}_seconds"] for line in LEDGER}
    return {line: f"{_duration(each)}, {each / result.timing['wall_seconds']:.0%}" for line, each in seconds.items()}


def _when(measured: dict[str, Any]) -> str:
    return f"{measured['measured_at'][:16].replace('T', ' ')} UTC"


def _busy(measured: dict[str, Any]) -> str:
    """What makes a benchmark doubtful, or nothing."""
    others = measured["cpus_of_other_processes"]
    return f"while other processes took {others:.1f} CPUs: not to be relied on" if others > BUSY else ""


def _duration(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 0.9995:  # or 999.8 ms are 1e+03 ms
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.2g} µs"


def _figures(params: Params, results: dict[str, Result]) -> dict[str, Figure]:
    figures = {}
    for problem in dict.fromkeys(result.problem for result in results.values()):
        figures[f"loss_{problem}"] = _loss(_of(results, problem))
    figures["ledger"] = _ledgers(results)
    if two_layer := _of(results, "two_layer"):
        figures["step_time"] = _step_times(two_layer)
        if speed_ups := _speed_ups(two_layer):
            figures["speed_up"] = speed_ups
    graphs = {name: result for name, result in results.items() if any("build" in case.seconds for case in result.cases)}
    if graphs:
        figures["break_even"] = _break_even(graphs, params)
    if recurrent := _of(results, "recurrent"):
        figures["loops"] = _loops(recurrent)
    return figures


def _loss(results: dict[str, Result]) -> Figure:
    figure, axes = _new(7, 3)
    for (name, result), (colour, _) in _styled(results):
        axes.plot(result.losses, color=colour, label=name, linewidth=1.2, alpha=0.8)
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.legend()
    return figure


def _ledgers(results: dict[str, Result]) -> Figure:
    figure, axes = _new(7, 0.45 * len(results) + 1.6)
    names = list(results)
    left = np.zeros(len(names))
    for line, colour in LEDGER_COLOURS.items():
        seconds = np.array([results[name].timing[f"{line}_seconds"] for name in names])
        axes.barh(names, seconds, left=left, color=colour, label=line.replace("_", " "), height=0.62)
        left += seconds
    axes.invert_yaxis()
    axes.set(xlabel="seconds of the training stage, from the start of its process")
    figure.legend(loc="outside lower center", ncols=6, fontsize=8)
    return figure


def _step_times(results: dict[str, Result]) -> Figure:
    figure, axes = _new(7, 4)
    for (name, result), (colour, marker) in _styled(results):
        steps = [case.seconds["step"] for case in result.cases]
        _line(axes, result.cases, steps, color=colour, marker=marker, label=name)
    measured = next(iter(results.values())).cases
    floors = [case.seconds[case.floor] for case in measured]
    _line(axes, measured, floors, color=INK, linestyle="--", label="floor: the matrix products alone")
    axes.set(ylabel="seconds a step", yscale="log")
    axes.legend(fontsize=8)
    return figure


def _speed_ups(results: dict[str, Result]) -> Figure | None:
    """Over NumPy: in turn with it on a GPU; on a CPU each in multiples of the floor in its own process."""
    figure, axes = _new(7, 3.6)
    numpy = {case.label: case for case in results["numpy_arrays"].cases} if "numpy_arrays" in results else {}
    for (name, result), (colour, marker) in _styled(results):
        if name == "numpy_arrays":
            continue
        cases = [case for case in result.cases if "numpy_arrays" in case.seconds or case.label in numpy]
        if not cases:
            continue
        speeds = [_over_numpy(case, numpy) for case in cases]
        x = [findings.operations(case.sizes) for case in cases]
        axes.plot(x, [speed.value for speed in speeds], color=colour, marker=marker, label=name)
        low, high = [speed.low for speed in speeds], [speed.high for speed in speeds]
        axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
    if not axes.lines:
        return None
    axes.axhline(1, color=INK, linewidth=0.8)
    axes.axhline(findings.GPU_CLAIM, color=INK, linewidth=0.8, linestyle="--")
    text = f"{findings.GPU_CLAIM:.0f} ×, the text's claim for GPUs"
    axes.text(0.01, findings.GPU_CLAIM, text, va="bottom", transform=axes.get_yaxis_transform())
    _ticks(axes, next(iter(results.values())).cases)
    axes.set(ylabel="times as fast as numpy_arrays", yscale="log", ylim=(None, 2 * findings.GPU_CLAIM))
    axes.legend(fontsize=8, loc="center left")
    return figure


def _over_numpy(case: Case, numpy: dict[str, Case]) -> Estimate:
    if "numpy_arrays" in case.seconds:
        return ratio(case.seconds["numpy_arrays"], case.seconds["step"])
    return findings.against(numpy[case.label], case)


def _break_even(graphs: dict[str, Result], params: Params) -> Figure:
    """Seconds over steps, of the graph what it costs up front included: at the training's size, else the smallest."""
    figure = Figure(figsize=(7, 3.2))
    figure.patch.set_alpha(0)
    panels = figure.subplots(1, len(graphs), squeeze=False)[0]
    for axes, ((name, result), (colour, _)) in zip(panels, _styled(graphs), strict=True):
        sizes = params.sizes(result.problem)
        case = next((case for case in result.cases if case.sizes == sizes), result.cases[0])
        build, eager, step = (float(np.median(case.seconds[each])) for each in ("build", "eager", "step"))
        even = (build - step) / (eager - step) if eager > step else 1000.0
        steps = np.linspace(1, 2.5 * even, 50)
        axes.plot(steps, build + (steps - 1) * step, color=colour, label="the graph")
        axes.plot(steps, steps * eager, color=colour, linestyle="--", label="run eagerly")
        if eager > step:
            axes.plot(even, even * eager, "o", color=INK)
            axes.annotate(f"  {even:.0f} steps", (even, even * eager), va="top", ha="left")
        axes.set(xlabel="steps", ylabel="seconds", ylim=(0, None), xlim=(0, None), facecolor="none")
        axes.set_title(f"{name}\n{case.label}", fontsize=9)
        axes.legend(fontsize=8)
    return figure


def _loops(results: dict[str, Result]) -> Figure:
    figure = Figure(figsize=(7, 3.4))
    left, right = figure.subplots(1, 2, sharey=True)
    for (name, result), (colour, marker) in _styled(results):
        milliseconds = [1e3 * float(np.median(case.seconds["step"])) for case in result.cases]
        padded = [case.sizes["batch_size"] * case.sizes["max_length"] for case in result.cases]
        left.plot([case.total_length for case in result.cases], milliseconds, marker, color=colour, label=name)
        right.plot(padded, milliseconds, marker, color=colour, label=name)
    left.set(xlabel="sum of the lengths in a batch", ylabel="milliseconds a step", ylim=(0, None), xlim=(0, None))
    right.set(xlabel="batch × longest", xlim=(0, None))
    for axes in (left, right):
        axes.set_facecolor("none")
    left.legend(fontsize=8)
    figure.patch.set_alpha(0)
    return figure


def _line(axes: Axes, measured: list[Case], seconds: list[Array], *, color: str, **style: str) -> None:
    """Medians over size, with the quartiles as a band."""
    x, spreads = [findings.operations(case.sizes) for case in measured], [spread(samples) for samples in seconds]
    axes.plot(x, [each.median for each in spreads], color=color, **style)  # pyright: ignore[reportArgumentType]
    low, high = [each.lower_quartile for each in spreads], [each.upper_quartile for each in spreads]
    axes.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
    _ticks(axes, measured)


def _ticks(axes: Axes, measured: list[Case]) -> None:
    axes.set_xscale("log")
    halves = [case.label.split(" × ") for case in measured]
    labels = [f"{' × '.join(half[:2])}\n× {' × '.join(half[2:])}" for half in halves]  # or neighbours overlap
    axes.set_xticks([findings.operations(case.sizes) for case in measured], labels)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params("x", labelsize=8)
    axes.set_xlabel("batch × inputs × hidden × outputs, spaced by the operations in a step")


def _styled(results: dict[str, Result]) -> list[tuple[tuple[str, Result], tuple[str, str]]]:
    return list(zip(results.items(), cycle(zip(COLOURS, MARKERS, strict=True)), strict=False))


def _of(results: dict[str, Result], problem: str) -> dict[str, Result]:
    return {name: result for name, result in results.items() if result.problem == problem}


def _new(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.set_facecolor("none")
    return figure, axes


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg ") :]
