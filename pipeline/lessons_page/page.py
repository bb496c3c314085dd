"""The lessons as a page: for each its idea, equations, code, difference, graph, cost, and something to try.

The page is made from the lessons' files, their problems' equations, and the files in `results/` and `graphs/`. No
lesson is imported.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from itertools import groupby, product
from math import prod
from textwrap import dedent
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from pipeline import files
from pipeline.benchmark.candidates import Candidate
from pipeline.benchmark.intervals import verdict
from pipeline.benchmark.samples import Benchmark
from pipeline.clock import TIME_BREAKDOWN
from pipeline.contract import implementation_file, load_problem
from pipeline.environment import framework_of
from pipeline.graphs.graph import Example, Graph, read_example, read_graphs
from pipeline.lessons_page import drawing, plots
from pipeline.lessons_page.equation_map import equations_by_line
from pipeline.lessons_page.exercises import EXERCISES, Exercise
from pipeline.lessons_page.mathml import mathml
from pipeline.lessons_page.notes import NOTES, OF_ONE_EXAMPLE, gradient_twice
from pipeline.lessons_page.player import player_data
from pipeline.lessons_page.source_view import Run, changes, functions_used, idea, listing, nearest
from pipeline.params import Params
from pipeline.problems import mean_squared_error, noise_deviation
from pipeline.quantities.equations import Equation, equation_in, equations
from pipeline.report.figures import BREAKDOWN_COLOURS, Result, Results
from pipeline.report.findings import Finding
from pipeline.report.page import Row, duration, render, row, ticks
from pipeline.results import ParityReport

FRAMEWORKS = {"numpy": "NumPy", "torch": "PyTorch", "tensorflow": "TensorFlow"}
LEAST_SHARE = 0.02  # of a training's time: the legend joins all parts that took less
SIZES = {  # names of sizes in params.yaml, and their names on the page
    "batch_size": "N, examples in a batch",
    "steps": "steps of the training",
    "train_examples": "examples to train on",
    "test_examples": "held-out examples",
    "min_length": "shortest example, in time steps",
    "max_length": "longest example, in time steps",
}
LINKED = ("cannot tell", "traced", "second moment", "XLA")  # words of the page that are explained in the glossary
Fit = Sequence[Sequence[float]]  # targets, and their predictions before and after training


@dataclass(frozen=True)
class DrawnGraph:
    title: str
    recorded: bool
    counts: str  # of its nodes, in words
    svg: str
    width: int  # in pixels


@dataclass(frozen=True)
class Share:
    """A line of a training's time breakdown, or all lines that are too small to be seen."""

    line: str
    seconds: str
    percent: int
    colour: str


@dataclass(frozen=True)
class Lesson:
    name: str
    problem: str
    framework: str
    file: str
    download: str  # the file as a data: address
    idea: str  # HTML
    equations: list[Equation]
    listing: list[Run]
    computes: dict[int, list[int]]  # the numbers of equations, by line
    before: str | None  # the lesson with which it is compared
    changes: list[Run]
    notes: dict[str, str]  # HTML, by title
    graphs: list[DrawnGraph]
    static: bool  # one graph for all steps, which holds the gradient and the update
    row: Row
    wall: str
    shares: list[Share]
    curve: str  # SVG
    fit: str  # SVG
    remaining: str  # a sentence on where the remaining error comes from
    findings: list[Finding]
    exercise: Exercise | None
    example: Example
    player: str  # JSON


def read(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The graphs, the example and the fit of each implementation, read from files. Raises UserError."""
    read_by = {"graphs": read_graphs, "examples": read_example, "fits": files.read_fit}
    return {key: {name: read_one(name) for name in names} for key, read_one in read_by.items()}


def write(
    params: Params,
    parity: ParityReport,
    results: Results,
    benchmark: Benchmark,
    *,
    fits: Mapping[str, Fit],
    statements: Sequence[Finding],
    graphs: Mapping[str, Sequence[Graph]],
    examples: Mapping[str, Example],
) -> str:
    """The page, as HTML."""
    latest = max(
        measured.run_began for measured in [*benchmark.measured, *(result.timing for result in results.values())]
    )
    no_ratios = _no_ratios(benchmark)
    lessons: list[Lesson] = []
    docstrings, sources = {}, {}
    for name, problem in params.implementations.items():
        docstrings[problem] = load_problem(problem).__doc__ or ""
        file = implementation_file(problem, name)
        source, of_problem = file.read_text(encoding="utf-8"), equations(docstrings[problem])
        case = benchmark.at(problem, params.problems[problem].sizes)
        related = {other: text for other, text in sources.items() if _related(name, other, params.implementations)}
        before, sources[name] = nearest(source, related), source
        lessons.append(
            Lesson(
                name,
                problem,
                framework=FRAMEWORKS.get(framework_of(name), framework_of(name)),
                file=file.as_posix(),
                download=f"data:text/x-python;charset=utf-8,{quote(source)}",
                idea=prose(idea(source)),
                equations=of_problem,
                listing=listing(source, [*functions_used(source), *functions_used(source, "__init__")]),
                computes=equations_by_line(name, source, of_problem),
                before=before,
                changes=changes(related[before], source) if before else [],
                notes={title: prose(text) for title, text in NOTES.get(name, {}).items()},
                graphs=[draw(graph) for graph in graphs[name]],
                static=any(node.group == "update" for graph in graphs[name] if graph.recorded for node in graph.nodes),
                row=row(name, results[name], parity, case, latest),
                wall=duration(results[name].timing.wall_seconds),
                shares=shares(results[name]),
                curve=plots.curve(results[name].steps, results[name].losses, f"The training loss of {name}"),
                fit=_fit(name, params, fits[name]),
                remaining=_remaining(params, results[name], parity.implementations[name].test_loss),
                findings=_answered(name, statements, no_ratios),
                exercise=EXERCISES.get(name),
                example=examples[name],
                player=player_data(of_problem, examples[name]),
            )
        )
    return render(
        "lessons_page/lessons.html",
        params=params,
        lessons=lessons,
        problems={problem: prose(docstring) for problem, docstring in docstrings.items()},
        sizes=_sizes(params),
        squared=[problem for problem in docstrings if _is_squared(problem)],
        noise=noise_deviation(params.data.noise, teacher=params.data.target == "teacher"),
        of_one_example=prose(OF_ONE_EXAMPLE),
        gradient=_gradient(lessons, sources),
        dtype=parity.dtype,
        tolerances=dict(parity.tolerances),
        curves={problem: _apart(parity, problem) for problem in docstrings},
        no_ratios=no_ratios,
        breakdown={line: meaning for line, meaning in TIME_BREAKDOWN.items() if line != "residual"},
        extremes=list(_extremes(lessons, results)),
        slower=list(_slower(params, lessons, results, benchmark)),
        pair=_pair(lessons, graphs),
        first_static=next((lesson.name for lesson in lessons if lesson.static), ""),
        spans=_spans,
        linked=linked,
        mathml=mathml,
        style=drawing.STYLE + plots.STYLE,
    )


def prose(docstring: str) -> str:
    """A docstring as HTML: paragraphs, equations as MathML, and other indented lines unchanged."""
    html = []
    for block in re.split(r"\n\s*\n", docstring.strip()):
        lines = block.splitlines()
        if equations := [equation for line in lines if (equation := equation_in(line))]:
            rows = "".join(f"<tr><td>{mathml(row)}<td>{row.size}<td>{row.times}" for row in equations)
            table = f'<table class="maths">{rows}</table>'
            html.append(f'<div class="scroll" tabindex="0" role="group" aria-label="Equations">{table}</div>')
        elif all(line.startswith("    ") for line in lines):
            html.append(f"<pre>{_together(dedent(block.strip(chr(10))))}</pre>")
        else:
            html.append(f"<p>{linked(' '.join(lines))}</p>")
    return "\n".join(html)


def draw(graph: Graph) -> DrawnGraph:
    try:
        picture = drawing.svg(graph)
    except ImportError as error:  # a minimal system has no GLib or X11; the page is useful without pictures
        remedy = "On Debian and Ubuntu: apt-get install libglib2.0-0 libxext6 libxrender1"
        reason = f"Graphviz cannot be loaded ({error}). {remedy}"
        warn_once(f"WARNING: no picture of a graph: {reason}")
        picture = f"<p>No picture: {escape(reason)}</p>", 0
    return DrawnGraph(graph.title, graph.recorded, _counts(graph), *picture)


@cache
def warn_once(text: str) -> None:
    """Print a warning the first time, and not for each graph again."""
    print(text, file=sys.stderr)


def shares(result: Result) -> list[Share]:
    """The parts of a training's time, in whole per cents that add up to 100."""
    total, seconds = result.timing.wall_seconds, result.timing.breakdown_seconds
    shown = [line for line in TIME_BREAKDOWN if line != "residual" and seconds[line] / total >= LEAST_SHARE]
    shown.sort(key=seconds.__getitem__, reverse=True)
    rest = total - sum(seconds[line] for line in shown)
    parts = [(line.replace("_", " "), seconds[line], BREAKDOWN_COLOURS[line]) for line in shown]
    parts += [("everything else", rest, "var(--line)")] if rest > 0 else []
    percents = [int(100 * value / total) for _, value, _ in parts]
    by_remainder = sorted(range(len(parts)), key=lambda index: percents[index] - 100 * parts[index][1] / total)
    for index in by_remainder[: 100 - sum(percents)]:
        percents[index] += 1
    return [
        Share(line, duration(value), percent, colour)
        for (line, value, colour), percent in zip(parts, percents, strict=True)
    ]


def linked(text: str) -> Markup:
    """Text as HTML. The first use of each of LINKED is a link to its explanation."""
    html = ticks(text)
    for word in LINKED:
        link = Markup('<a href="#word-{}">{}</a>').format(word.replace(" ", "-"), word)
        html = html.replace(word, link, 1)
    return html


def _together(block: str) -> str:
    """Lines of text. Parts between two or more spaces are not broken."""
    parts = re.split(r"(\n| {2,})", block)
    return "".join(part if part.isspace() else f"<span>{escape(part)}</span>" for part in parts if part)


def _counts(graph: Graph) -> str:
    """How many nodes a graph has, and of what kinds. The nodes in the body of a loop count once."""
    kinds = {
        "operation": sum(node.kind in ("operation", "loop") for node in graph.nodes),
        "weight": sum(node.kind == "weight" and not node.within for node in graph.nodes),
        "input": sum(
            node.kind == "data" and not node.within and not node.label.startswith("all ") for node in graph.nodes
        ),
    }
    words = [f"{count} {kind}{'s' * (count > 1)}" for kind, count in kinds.items() if count]
    return " and ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else "".join(words)


def _related(name: str, other: str, implementations: Mapping[str, str]) -> bool:
    """Whether two lessons have the problem or the framework in common."""
    return implementations[name] == implementations[other] or framework_of(name) == framework_of(other)


def _is_squared(problem: str) -> bool:
    return load_problem(problem).loss is mean_squared_error


def _sizes(params: Params) -> list[tuple[str, list[str]]]:
    """The rows of the table of sizes: a word, and a number for each problem."""
    columns = []
    for problem in params.used_problems:
        section = params.problems[problem]
        numbers = {**vars(section.train), **vars(section.data), "weights in all": _weights(problem, section.data)}
        columns.append(numbers)
    keys: dict[str, None] = dict.fromkeys(key for column in columns for key in column)
    return [
        (SIZES.get(key, key.replace("_", " ")), [f"{column[key]:,}" if key in column else "" for column in columns])
        for key in keys
    ]


def _weights(problem: str, sizes: Any) -> int:
    """How many numbers the weights of a problem are."""
    return sum(prod(shape) for shape in load_problem(problem).weight_shapes(sizes).values())


def _fit(name: str, params: Params, fit: Fit) -> str:
    """Predictions over targets, for problems whose predictions are estimates of the targets."""
    if not _is_squared(params.implementations[name]):
        return ""
    targets, before, after = fit
    noise = params.data.noise if params.data.target == "teacher" else 0.0
    return plots.scatter(
        targets, before, after, noise, f"Predictions of {name} over targets, before and after training"
    )


def _remaining(params: Params, result: Result, test_loss: float) -> str:
    """A sentence on where the held-out loss comes from: the noise, too few examples, too few steps."""
    if not _is_squared(result.problem):
        return ""
    noise = noise_deviation(params.data.noise, teacher=params.data.target == "teacher") ** 2
    last = result.losses[-max(1, len(result.losses) // 20) :]
    train_loss = sum(last) / len(last)
    section = params.problems[result.problem]
    weights = _weights(result.problem, section.data)
    unseen, unlearned = test_loss - max(train_loss, noise), train_loss - noise
    parts = [f"{noise:.3g} is the noise in the targets, which no network can predict"]
    if unseen > 0:
        parts.append(
            f"{unseen:.2g} is the difference between held-out and training loss: {weights:,} weights "
            f"are fitted to {section.data.train_examples:,} examples"
        )
    if unlearned > 0:
        rest = f" (= {test_loss:.3g} − {noise:.3g} − {unseen:.2g})" if unseen > 0 else ""
        more = "which more steps or a larger network might lower"
        parts.append(f"{unlearned:.2g}{rest} is left on the training examples too, {more}")
    return f"Of the held-out loss of {test_loss:.3g}, {'; '.join(parts)}."


def _apart(parity: ParityReport, problem: str) -> tuple[float, float]:
    """The smallest and the largest difference of a loss curve among the implementations of a problem."""
    rows = [row for row in parity.implementations.values() if row.problem == problem]
    values = [row.parity.loss_curve for row in rows]
    return min(values, default=0.0), max(values, default=0.0)


def _gradient(lessons: Sequence[Lesson], sources: Mapping[str, str]) -> dict[str, Any] | None:
    """What `backward` leaves in `.grad`, for the first lesson that calls it."""
    for lesson in lessons:
        if ".backward()" in sources[lesson.name]:
            weight, once, twice = gradient_twice(lesson.problem)
            return {"lesson": lesson.name, "weight": weight, "once": _numbers(once), "twice": _numbers(twice)}
    return None


def _numbers(array: Any) -> str:
    rows = (", ".join(f"{value:.4f}" for value in line) for line in array)
    return f"[{', '.join(f'[{line}]' for line in rows)}]"


def _extremes(lessons: Sequence[Lesson], results: Results) -> Iterator[str]:
    """A sentence on the fastest and the slowest lesson of each problem that has several."""
    for problem in dict.fromkeys(lesson.problem for lesson in lessons):
        of_problem = [lesson.name for lesson in lessons if lesson.problem == problem]
        seconds = {name: results[name].timing.step_seconds_median for name in of_problem}
        fastest, slowest = min(seconds, key=seconds.__getitem__), max(seconds, key=seconds.__getitem__)
        if len(of_problem) > 1:
            yield (
                f"Of {problem}, a step of `{fastest}` is the fastest, and one of `{slowest}` takes "
                f"{seconds[slowest] / seconds[fastest]:.2g} times as long."
            )


def _slower(params: Params, lessons: Sequence[Lesson], results: Results, benchmark: Benchmark) -> Iterator[str]:
    """Sentences on static graphs whose step took longer than a step of a dynamic graph of the same problem."""
    for static, other in product(lessons, lessons):
        is_dynamic = other.graphs[0].recorded and not other.static
        if not static.static or not is_dynamic or static.problem != other.problem:
            continue
        times = results[static.name].timing.step_seconds_median / results[other.name].timing.step_seconds_median
        if times > 1.05:
            case = benchmark.at(static.problem, params.problems[static.problem].sizes)
            ratio = case.ratio(Candidate(static.name), Candidate(other.name)) if case else None
            checked = f" Interleaved, in the benchmark, it takes {ratio} as long ({verdict(ratio)})." if ratio else ""
            yield (
                f"a step of `{static.name}` took {times:.2g} times as long as one of `{other.name}`."
                f"{checked}{_padding(params, static, other)}"
            )


def _padding(params: Params, static: Lesson, other: Lesson) -> str:
    """What a loop in the graph computes in padding, which a loop in Python need not, where examples have lengths."""
    total, sizes = getattr(load_problem(static.problem), "sequence_total", None), params.problems[static.problem].sizes
    if not total or len(other.graphs) == 1:
        return ""
    computed = sizes["batch_size"] * sizes["max_length"]
    return (
        f" Its graph is the same for all batches, so a step computes {sizes['batch_size']} examples × "
        f"{sizes['max_length']} time steps = {computed:,} states, padding included. `{other.name}` computes as many "
        f"as the lengths add up to, {total(SimpleNamespace(**sizes)):,.0f} on average."
    )


def _no_ratios(benchmark: Benchmark) -> str:
    """Why the page gives no ratios of the benchmark's times; empty where it gives them."""
    if not benchmark.cases:
        return "This run had no benchmark, so this page gives no ratios of times."
    reason = benchmark.doubt.partition(": ")[2]
    return reason and f"This run had a benchmark, but it was disturbed and its times are not used: {reason}."


def _answered(name: str, statements: Sequence[Finding], no_ratios: str) -> list[Finding]:
    """The claims about this lesson, or else those that compare another lesson with it."""
    about = [finding for finding in statements if finding.claim.subject == name]
    about = about or [finding for finding in statements if finding.claim.other == name]
    texts = [re.sub(r" \(Times: .*\.\)$", "", finding.text) for finding in about]
    if no_ratios:
        texts = [re.sub(r"The benchmark gave no [\w -]+\.", no_ratios, text) for text in texts]
    return [finding._replace(text=text) for finding, text in zip(about, texts, strict=True)]


def _pair(lessons: Sequence[Lesson], graphs: Mapping[str, Sequence[Graph]]) -> dict[str, Any] | None:
    """A lesson that records a graph for each batch, and one of the same problem that records one for all."""
    for dynamic in lessons:
        for static in lessons:
            if dynamic.problem == static.problem and len(dynamic.graphs) > 1 and static.static:
                forward = draw(_forward(graphs[static.name][0]))
                return {"dynamic": dynamic, "static": static, "forward": forward}
    return None


def _forward(graph: Graph) -> Graph:
    """The forward part of a graph, which is what autograd's graphs show."""
    groups = {node.id: node.group for node in graph.nodes}
    edges = [
        edge
        for edge in graph.edges
        if "forward" in (ends := {groups[edge.source], groups[edge.target]}) and ends <= {"forward", "data"}
    ]
    used = {end for edge in edges for end in (edge.source, edge.target)}
    nodes = [node for node in graph.nodes if node.group == "forward" or node.id in used]
    return Graph("The forward part of its one graph, which serves both batches", graph.recorded, nodes, edges)


def _spans(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """1, 2, 3, 5 as 1 to 3 and 5 to 5."""
    spans = (list(group) for _, group in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]))
    return [(span[0][1], span[-1][1]) for span in spans]
