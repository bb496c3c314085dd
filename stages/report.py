"""report.html and report/: what was run, what it took, what the text claims. lessons.html: the lessons."""

from pipeline import files
from pipeline.benchmark import samples
from pipeline.lessons_page import page as lessons_page
from pipeline.params import load_params
from pipeline.report import report_page, seeds
from pipeline.report.figures import Result
from pipeline.report.findings import findings, summary
from stages import run


def main() -> None:
    params = load_params()
    results = {
        name: Result(problem, files.read_json(files.result_file(name, "timing.json")), *files.read_history(name))
        for name, problem in params.implementations.items()
    }
    benchmark = samples.read(files.read_samples(), files.read_json(files.BENCHMARK_PROVENANCE))
    comparison = files.read_json(files.COMPARISON)
    bench = []
    if files.BENCH.exists():
        bench.append(samples.read(files.read_samples(files.BENCH), files.read_json(files.BENCH_PROVENANCE)))
    environment = files.read_environment()
    sizes = {problem: params.sizes(problem) for problem in params.implementations.values()}
    found = findings(benchmark, comparison, sizes)
    over = seeds.read(params) if files.SEEDS.exists() else None
    report, figures = report_page.write(
        params, environment, comparison, results, benchmark, found=found, bench=bench, seeds=over
    )
    for stale in files.FIGURES.glob("*.svg"):
        stale.unlink()
    for name, figure in figures.items():
        files.write_bytes(files.FIGURES / f"{name}.svg", figure.encode())
    files.write_bytes(files.REPORT, report.encode())
    graphs = {name: files.read_json(files.result_file(name, "graph.json")) for name in results}
    lessons = lessons_page.write(params, comparison, results, benchmark, found=found, graphs=graphs)
    files.write_bytes(files.LESSONS, lessons.encode())
    files.write_json(files.SUMMARY, summary(comparison, {name: each.timing for name, each in results.items()}, found))
    print(f"{files.REPORT} shows the results, {files.LESSONS} the lessons")


if __name__ == "__main__":
    run(main)
