"""Write report.html and report/ (results, times, claims of the text), and lessons.html."""

from pipeline import files
from pipeline.benchmark import samples
from pipeline.graphs.graph import read_structure
from pipeline.lessons_page import page as lessons_page
from pipeline.params import load_params
from pipeline.report import report_page, seeds
from pipeline.report.figures import Result
from pipeline.report.findings import findings, summary
from pipeline.results import ParityReport, Timing
from stages import run


def main() -> None:
    params, environment = load_params(), files.read_environment()
    results = {
        name: Result(problem, Timing.read(files.result_file(name, "timing.json")), *files.read_history(name))
        for name, problem in params.implementations.items()
    }
    benchmark = samples.read()
    parity = ParityReport.read(files.PARITY_REPORT)
    sizes = {problem: params.problems[problem].sizes for problem in params.used_problems}
    statements = findings(benchmark, parity, sizes, {name: read_structure(name) for name in results})
    report, figures = report_page.write(
        params,
        environment,
        parity,
        results,
        benchmark,
        predictions={problem: files.read_predictions(problem) for problem in params.used_problems},
        statements=statements,
        bench=[samples.read(files.BENCH, files.BENCH_PROVENANCE)] if files.BENCH.exists() else [],
        seeds=seeds.read_if_usable(params),
    )
    for stale in files.FIGURES.glob("*.svg"):
        stale.unlink()
    for name, figure in figures.items():
        files.write_bytes(files.FIGURES / f"{name}.svg", figure.encode())
    files.write_bytes(files.REPORT, report.encode())
    lessons = lessons_page.write(
        params, parity, results, benchmark, statements=statements, **lessons_page.read(results)
    )
    files.write_bytes(files.LESSONS, lessons.encode())
    summary(parity, {name: result.timing for name, result in results.items()}, statements).write(files.SUMMARY)


if __name__ == "__main__":
    run(main)
