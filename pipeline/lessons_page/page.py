"""The lessons as a page: for each its idea, equations, code, difference, graph, cost, and something to try.

All of it is made from the lessons' files, their problem's equations and the files of `results/`. No lesson is imported.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from textwrap import dedent
from typing import Any

from pipeline.benchmark.samples import Benchmark
from pipeline.clock import TIME_BREAKDOWN
from pipeline.contract import implementation_file, load_problem
from pipeline.environment import framework_of
from pipeline.lessons_page import drawing
from pipeline.lessons_page.equation_map import equations_by_line, functions_used
from pipeline.lessons_page.equations import equation_in, equations
from pipeline.lessons_page.exercises import EXERCISES
from pipeline.lessons_page.source_view import changes, idea, listing
from pipeline.params import Params
from pipeline.report.figures import BREAKDOWN_COLOURS, Result, Results
from pipeline.report.findings import Finding
from pipeline.report.page import breakdown, duration, render, row, ticks

# Of parity, by the name of its tolerance.
MEASURES = {
    "gradient": "gradient_relative_error",
    "loss_curve": "loss_curve_relative_difference",
    "predictions": "predictions_relative_difference",
}
FRAMEWORKS = {"numpy": "NumPy", "torch": "PyTorch", "tensorflow": "TensorFlow"}


def write(
    params: Params,
    comparison: Mapping[str, Any],
    results: Results,
    benchmark: Benchmark,
    *,
    found: Sequence[Finding],
    graphs: Mapping[str, Mapping[str, Any]],
) -> str:
    """The page, as HTML. `graphs` has the graph.json that each lesson's training left."""
    problems = {problem: load_problem(problem) for problem in dict.fromkeys(params.implementations.values())}
    latest = max(each["run_began"] for each in [benchmark.provenance, *(result.timing for result in results.values())])
    lessons = []
    for name, problem in params.implementations.items():
        source = implementation_file(problem, name).read_text()
        before = _before(name, list(params.implementations.items()))
        of_problem = equations(problems[problem].__doc__ or "")
        shown = [*functions_used(source), *functions_used(source, "__init__")]
        case = benchmark.at(problem, params.sizes(problem))
        lessons.append(
            {
                "name": name,
                "problem": problem,
                "framework": FRAMEWORKS.get(framework_of(name), framework_of(name)),
                "file": implementation_file(problem, name).as_posix(),
                "idea": prose(idea(source)),
                "equations": of_problem,
                "listing": listing(source, shown),
                "computes": equations_by_line(source, of_problem),
                "first": problem not in {each["problem"] for each in lessons},
                "before": before,
                "changes": before and changes(implementation_file(*before).read_text(), source),
                "graphs": [_drawn(each) for each in graphs[name]["graphs"]],
                "no_graph": graphs[name].get("why"),
                "row": row(name, results[name], comparison, case, latest),
                "wall": duration(results[name].timing["wall_seconds"]),
                "breakdown": _parts(results[name]),
                "findings": _answered(name, found),
                "exercise": EXERCISES.get(name),
            }
        )
    return render(
        "lessons_page/lessons.html",
        lessons=lessons,
        problems={problem: prose(module.__doc__ or "") for problem, module in problems.items()},
        tolerances=comparison["tolerances"],
        measures=MEASURES,
        doubt=benchmark.doubt,
        benchmarked=bool(benchmark.cases),
        pair=_pair(lessons),
        spans=_spans,
        drawing_style=drawing.STYLE,
    )


def prose(docstring: str) -> str:
    """A docstring as HTML: paragraphs, equations as MathML, and other indented lines as they stand."""
    html = []
    for block in re.split(r"\n\s*\n", docstring.strip()):
        lines = block.splitlines()
        if found := [equation for line in lines if (equation := equation_in(line))]:
            rows = "".join(f"<tr><td>{each.mathml}<td>{each.size}<td>{each.times}" for each in found)
            table = f'<table class="maths">{rows}</table>'
            html.append(f'<div class="scroll" tabindex="0" role="group" aria-label="Equations">{table}</div>')
        elif all(line.startswith("    ") for line in lines):
            html.append(f"<pre>{escape(dedent(block))}</pre>")
        else:
            html.append(f"<p>{ticks(' '.join(lines))}</p>")
    return "\n".join(html)


def _before(name: str, implementations: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """Problem and name of the lesson before: of the same problem, or else the last one in the same framework."""
    names = [each for each, _ in implementations]
    earlier, problem = implementations[: names.index(name)], dict(implementations)[name]
    same_problem = [each for each in earlier if each[1] == problem]
    same_framework = [each for each in earlier if framework_of(each[0]) == framework_of(name)]
    last = next(iter(same_problem[-1:] or same_framework[-1:]), None)
    return last and (last[1], last[0])


def _parts(result: Result) -> list[dict[str, Any]]:
    """The lines of a training's time breakdown, each with its share of the whole."""
    words = breakdown(result)
    wall = result.timing["wall_seconds"]
    return [
        {
            "line": line.replace("_", " "),
            "words": words[line],
            "share": result.timing[f"{line}_seconds"] / wall,
            "colour": BREAKDOWN_COLOURS[line],
        }
        for line in TIME_BREAKDOWN
    ]


def _answered(name: str, found: Sequence[Finding]) -> list[Finding]:
    """The claims that are about this lesson, or else those in which another is compared with it."""
    about = [each for each in found if each.claim.subject == name]
    return about or [each for each in found if each.claim.other == name]


def _pair(lessons: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A lesson that builds a graph for each batch, and one of the same problem that builds one for all."""
    for problem in dict.fromkeys(each["problem"] for each in lessons):
        of_problem = [each for each in lessons if each["problem"] == problem]
        several = next((each for each in of_problem if len(each["graphs"]) > 1), None)
        one = next((each for each in of_problem if len(each["graphs"]) == 1), None)
        if several and one:
            return {"dynamic": several, "static": one, "forward": _forward(one["graphs"][0])}
    return None


def _forward(graph: Mapping[str, Any]) -> dict[str, Any]:
    """The forward part of a graph, which is what autograd's graphs show, with its picture."""
    groups = {node["id"]: node["group"] for node in graph["nodes"]}
    edges = [each for each in graph["edges"] if "forward" in (groups[each["source"]], groups[each["target"]])]
    edges = [each for each in edges if {groups[each["source"]], groups[each["target"]]} <= {"forward", "data"}]
    used = {each[end] for each in edges for end in ("source", "target")}
    nodes = [node for node in graph["nodes"] if node["group"] == "forward" or node["id"] in used]
    return _drawn({"title": f"the forward part of {graph['title']}", "nodes": nodes, "edges": edges})


def _drawn(graph: Mapping[str, Any]) -> dict[str, Any]:
    """A graph with its picture, and how wide that is."""
    svg = drawing.svg(graph)
    return {**graph, "svg": svg, "width": re.findall(r'width="([\d.]+)"', svg)[0]}


def _spans(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """1, 2, 3, 5 as 1 to 3 and 5 to 5."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
