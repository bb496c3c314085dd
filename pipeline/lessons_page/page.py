"""The lessons as a page: for each its idea, equations, code, difference, graph, cost, and something to try.

It is made from the lessons' files, their problems' equations, and the files of `results/` and `graphs/`. No lesson is
imported.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from textwrap import dedent
from typing import Any

from pipeline.benchmark.samples import Benchmark
from pipeline.clock import TIME_BREAKDOWN
from pipeline.contract import implementation_file, load_problem
from pipeline.environment import framework_of
from pipeline.graphs.graph import Graph
from pipeline.lessons_page import drawing
from pipeline.lessons_page.equation_map import equations_by_line
from pipeline.lessons_page.exercises import EXERCISES, Exercise
from pipeline.lessons_page.mathml import mathml
from pipeline.lessons_page.source_view import Run, changes, functions_used, idea, listing
from pipeline.params import Params
from pipeline.quantities.equations import Equation, equation_in, equations
from pipeline.report.figures import BREAKDOWN_COLOURS, Result, Results
from pipeline.report.findings import Finding
from pipeline.report.page import Row, breakdown, duration, render, row, ticks
from pipeline.results import ParityReport

FRAMEWORKS = {"numpy": "NumPy", "torch": "PyTorch", "tensorflow": "TensorFlow"}


@dataclass(frozen=True)
class DrawnGraph:
    title: str
    recorded: bool
    nodes: int
    svg: str
    width: int  # in pixels


@dataclass(frozen=True)
class Share:
    """A line of a training's time breakdown, with its share of the whole."""

    line: str
    words: str
    share: float
    colour: str


@dataclass(frozen=True)
class Lesson:
    name: str
    problem: str
    framework: str
    file: str
    idea: str  # HTML
    equations: list[Equation]
    listing: list[Run]
    computes: dict[int, list[int]]  # the numbers of equations, by line
    before: tuple[str, str] | None  # problem and name of the lesson before
    changes: list[Run]
    graphs: list[DrawnGraph]
    row: Row
    wall: str
    breakdown: list[Share]
    findings: list[Finding]
    exercise: Exercise | None


def write(
    params: Params,
    parity: ParityReport,
    results: Results,
    benchmark: Benchmark,
    *,
    statements: Sequence[Finding],
    graphs: Mapping[str, Sequence[Graph]],
) -> str:
    """The page, as HTML."""
    latest = max(
        measured.run_began for measured in [*benchmark.measured, *(result.timing for result in results.values())]
    )
    lessons, docstrings = [], {}
    for name, problem in params.implementations.items():
        docstrings[problem] = load_problem(problem).__doc__ or ""
        file, before = implementation_file(problem, name), _before(name, params.implementations)
        source, of_problem = file.read_text(encoding="utf-8"), equations(docstrings[problem])
        case = benchmark.at(problem, params.problems[problem].sizes)
        lessons.append(
            Lesson(
                name,
                problem,
                framework=FRAMEWORKS.get(framework_of(name), framework_of(name)),
                file=file.as_posix(),
                idea=prose(idea(source)),
                equations=of_problem,
                listing=listing(source, [*functions_used(source), *functions_used(source, "__init__")]),
                computes=equations_by_line(name, source, of_problem),
                before=before,
                changes=changes(implementation_file(*before).read_text(encoding="utf-8"), source) if before else [],
                graphs=[draw(graph) for graph in graphs[name]],
                row=row(name, results[name], parity, case, latest),
                wall=duration(results[name].timing.wall_seconds),
                breakdown=_shares(results[name]),
                findings=_answered(name, statements),
                exercise=EXERCISES.get(name),
            )
        )
    return render(
        "lessons_page/lessons.html",
        lessons=lessons,
        problems={problem: prose(docstring) for problem, docstring in docstrings.items()},
        tolerances=dict(parity.tolerances),
        doubt=benchmark.doubt,
        benchmarked=bool(benchmark.cases),
        pair=_pair(lessons, graphs),
        spans=_spans,
        mathml=mathml,
        drawing_style=drawing.STYLE,
    )


def prose(docstring: str) -> str:
    """A docstring as HTML: paragraphs, equations as MathML, and other indented lines as they stand."""
    html = []
    for block in re.split(r"\n\s*\n", docstring.strip()):
        lines = block.splitlines()
        if equations := [equation for line in lines if (equation := equation_in(line))]:
            rows = "".join(f"<tr><td>{mathml(row)}<td>{row.size}<td>{row.times}" for row in equations)
            table = f'<table class="maths">{rows}</table>'
            html.append(f'<div class="scroll" tabindex="0" role="group" aria-label="Equations">{table}</div>')
        elif all(line.startswith("    ") for line in lines):
            html.append(f"<pre>{escape(dedent(block))}</pre>")
        else:
            html.append(f"<p>{ticks(' '.join(lines))}</p>")
    return "\n".join(html)


def draw(graph: Graph) -> DrawnGraph:
    try:
        picture = drawing.svg(graph)
    except ImportError as error:  # a minimal system has no GLib or X11; the page is still of use
        remedy = "On Debian and Ubuntu: apt-get install libglib2.0-0 libxext6 libxrender1"
        reason = f"Graphviz cannot be loaded ({error}). {remedy}"
        print(f"WARNING: no picture of a graph: {reason}", file=sys.stderr)
        picture = f"<p>No picture: {escape(reason)}</p>", 0
    return DrawnGraph(graph.title, graph.recorded, len(graph.nodes), *picture)


def _before(name: str, implementations: Mapping[str, str]) -> tuple[str, str] | None:
    """Problem and name of the last lesson before this one with the same problem, or else with the same framework."""
    names = list(implementations)
    earlier = names[: names.index(name)]
    same_problem = [other for other in earlier if implementations[other] == implementations[name]]
    same_framework = [other for other in earlier if framework_of(other) == framework_of(name)]
    last = same_problem[-1:] or same_framework[-1:]
    return (implementations[last[0]], last[0]) if last else None


def _shares(result: Result) -> list[Share]:
    words, timing = breakdown(result.timing), result.timing
    return [
        Share(
            line.replace("_", " "),
            words[line],
            timing.breakdown_seconds[line] / timing.wall_seconds,
            BREAKDOWN_COLOURS[line],
        )
        for line in TIME_BREAKDOWN
    ]


def _answered(name: str, statements: Sequence[Finding]) -> list[Finding]:
    """The claims that are about this lesson, or else those in which another is compared with it."""
    about = [finding for finding in statements if finding.claim.subject == name]
    return about or [finding for finding in statements if finding.claim.other == name]


def _pair(lessons: Sequence[Lesson], graphs: Mapping[str, Sequence[Graph]]) -> dict[str, Any] | None:
    """A lesson that records a graph for each batch, and one of the same problem that records one for all."""
    recorded = [lesson for lesson in lessons if lesson.graphs[0].recorded]
    for dynamic in recorded:
        for static in recorded:
            if dynamic.problem == static.problem and len(dynamic.graphs) > 1 == len(static.graphs):
                return {"dynamic": dynamic, "static": static, "forward": draw(_forward(graphs[static.name][0]))}
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
    title = graph.title[0].lower() + graph.title[1:]
    return Graph(f"the forward part of {title}", graph.recorded, nodes, edges)


def _spans(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """1, 2, 3, 5 as 1 to 3 and 5 to 5."""
    spans = (list(group) for _, group in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]))
    return [(span[0][1], span[-1][1]) for span in spans]
