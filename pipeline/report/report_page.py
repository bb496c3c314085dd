"""The report: one self-contained page.

Everything on it comes from the files in `results/`, so the same results make the same page. It states the times of the
measurements, never "now", so a page that DVC restores from its cache is still true.
"""

import math
from collections.abc import Iterator
from typing import Any

from pipeline.benchmark.candidates import Candidate
from pipeline.benchmark.intervals import FASTER, spread, verdict
from pipeline.benchmark.monitor import sentence
from pipeline.benchmark.samples import Benchmark, Case
from pipeline.clock import TIME_BREAKDOWN
from pipeline.contract import load_problem
from pipeline.environment import Environment
from pipeline.params import Params
from pipeline.problems import mean_squared_error, noise_deviation
from pipeline.report import figures
from pipeline.report.figures import Predictions, Results
from pipeline.report.findings import Ablation, Finding, ablations, break_even, loops
from pipeline.report.page import breakdown, duration, render, row, when
from pipeline.report.seeds import Seeds, better, failures, interval
from pipeline.results import ParityReport


def write(
    params: Params,
    environment: Environment,
    parity: ParityReport,
    results: Results,
    benchmark: Benchmark,
    *,
    predictions: Predictions,
    statements: list[Finding],
    bench: list[Benchmark],
    seeds: Seeds | None,
) -> tuple[str, dict[str, str]]:
    """The page, as HTML, and its figures as SVG files by name.

    `predictions` are of the first implementation of each problem. `bench` is what `make bench` measured, and `seeds`
    the result of `make seeds`, if they were run.
    """
    sizes = {problem: params.problems[problem].sizes for problem in params.used_problems}
    # Problems with another loss have no known bound, and their predictions are no estimates of the targets.
    squared = [problem for problem in params.used_problems if load_problem(problem).loss is mean_squared_error]
    teacher = params.data.target == "teacher"
    noise = noise_deviation(params.data.noise, teacher=teacher)
    shown = {problem: predictions[problem] for problem in squared}
    band = noise if teacher else 0.0
    drawn = figures.draw(results, benchmark, sizes, seeds, predictions=shown, noise=band)
    measured = [*benchmark.measured, *(result.timing for result in results.values())]
    latest = max(provenance.run_began for provenance in measured)
    page = render(
        "report/report.html",
        params=params,
        environment=environment,
        parity=parity,
        benchmark=benchmark,
        when=when,
        gpu=benchmark.gpu and sentence(benchmark.gpu),
        ablations=_on_one_scale(ablations(benchmark, parity, sizes)),
        findings=statements,
        squared=squared,
        noise=noise,
        fitted=list(_fitted(params)),
        rows=[
            row(name, result, parity, benchmark.at(result.problem, sizes[result.problem]), latest)
            for name, result in results.items()
        ],
        alternatives=[
            {"label": case.label, "rows": rows, "when": when(source.provenance), "doubt": case.doubt}
            for source in [benchmark, *bench]
            for case in source.cases
            if (rows := _alternatives(case, list(results)))
        ],
        fastest=list(_fastest(params, results, benchmark)),
        time_breakdown=TIME_BREAKDOWN,
        breakdowns={name: breakdown(result.timing) for name, result in results.items()},
        cases=[_samples(case) for case in benchmark.cases],
        fewest=min((len(processes) for case in benchmark.cases for processes in case.seconds.values()), default=0),
        disturbed=len(benchmark.disturbed),
        turns=benchmark.turns,
        retaken=benchmark.retaken,
        even=[
            (name, case.label, count)
            for name in results
            for case in benchmark.cases
            if (ratio := case.ratio(Candidate(name), Candidate(name, "eager"))) and verdict(ratio) == FASTER
            if (count := break_even(case, name))
        ],
        loops={
            name: loops(benchmark.of(result.problem), name)
            for name, result in results.items()
            if any(case.sequence_total for case in benchmark.of(result.problem))
        },
        seeds=seeds and _over_seeds(seeds),
        commits=sorted({provenance.commit for provenance in measured}),
        times=sorted(provenance.measured_at for provenance in measured),
        hosts=sorted({provenance.measured_on for provenance in measured}),
        figures={name: figures.for_page(drawing) for name, drawing in drawn.items()},
    )
    return page, {name: figures.for_file(drawing) for name, drawing in drawn.items()}


def _fitted(params: Params) -> Iterator[tuple[str, int, int]]:
    """Each problem with how many weights are fitted to how many examples."""
    for problem in params.used_problems:
        data = params.problems[problem].data
        shapes = load_problem(problem).weight_shapes(data).values()
        yield problem, sum(math.prod(shape) for shape in shapes), data.train_examples


def _fastest(params: Params, results: Results, benchmark: Benchmark) -> Iterator[tuple[str, str, str]]:
    """Each problem with the implementation whose median step is shortest, and the duration of that step. The benchmark
    decides, where all were interleaved; without it, the trainings do."""
    for problem in params.used_problems:
        case, names = benchmark.at(problem, params.problems[problem].sizes), params.names_of(problem)
        if case and not case.disturbed and all(Candidate(name) in case.seconds for name in names):
            seconds = {name: case.median(Candidate(name)) for name in names}
        else:
            seconds = {name: results[name].timing.step_seconds_median for name in names}
        name = min(seconds, key=seconds.__getitem__)
        yield problem, name, duration(seconds[name])


def _over_seeds(seeds: Seeds) -> dict[str, Any]:
    passed, number = seeds.passed()
    return {
        "passed": passed,
        "number": number,
        "rows": [{**row._asdict(), "loss": interval(row.loss), "r2": interval(row.r2)} for row in seeds.rows()],
        "limits": seeds.limits,
        "parameters": seeds.parameters,
        "better": [*failures(seeds), *better(seeds)],
    }


def _on_one_scale(answers: list[Ablation]) -> list[dict[str, Any]]:
    """Each headline with the ends and the middle of its interval, in per cent of a logarithmic scale with 1 at 50."""

    def logarithm(value: float) -> float:
        return math.log(value) if value > 0 else -math.inf

    ends = [abs(logarithm(end)) for answer in answers if answer.ratio for end in answer.ratio]
    widest = max([math.log(2), *filter(math.isfinite, ends)])
    places = [
        answer.ratio
        and [
            50 + 48 * max(-1.0, min(1.0, logarithm(end) / widest))
            for end in (answer.ratio.low, answer.ratio.value, answer.ratio.high)
        ]
        for answer in answers
    ]
    return [
        {"idea": answer.idea, "verdict": answer.verdict, "text": answer.text, "marks": marks}
        for answer, marks in zip(answers, places, strict=True)
    ]


# The lesson with the same idea as each of pipeline/benchmark/peers.
LESSON_OF = {
    "torch_module": "torch_autograd",
    "numpy_jax": "numpy_arrays",
    "tensorflow_keras": "tensorflow_graph",
    "torch_examples": "torch_loop",
    "tensorflow_examples": "tensorflow_scan",
}


def _alternatives(case: Case, names: list[str]) -> list[dict[str, Any]]:
    """The implementations at a size, each with its hand-tuned variant and its peers: what a user might write
    instead."""
    return [
        {
            "name": name,
            "other": other,
            "file": f"pipeline/benchmark/{kind}/{other.name}.py",
            "ratio": case.ratio(Candidate(name), other),
        }
        for kind in ("tuned", "peers")
        for name in names
        for other in case.seconds
        if other.kind == kind and LESSON_OF.get(other.name, other.name) == name
    ]


def _samples(case: Case) -> dict[str, Any]:
    """Every candidate at a size in words: median, quartiles, number of samples, and ratio to the matrix products
    alone."""
    rows = []
    for candidate, processes in case.seconds.items():
        of_all = spread(list(processes.values()))
        rounds = max(len(samples) for samples in processes.values())
        ratio = (case.multiple(candidate) or "") if candidate.is_step else ""
        quartiles = f"{duration(of_all.lower_quartile)} … {duration(of_all.upper_quartile)}"
        rows.append((candidate, duration(of_all.median), quartiles, f"{len(processes)} × {rounds}", ratio))
    return {"label": case.label, "problem": case.problem, "rows": rows}
