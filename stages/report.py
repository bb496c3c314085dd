"""report.html and report/: what was run, what it took, and what that says of the text's claims."""

from pipeline import records, report
from pipeline.findings import cases
from pipeline.params import Params, load_params
from stages import run


def main() -> None:
    params = load_params()
    results = {name: _result(name, params) for name in params.implementations}
    (together,) = cases(records.read_benchmark("side_by_side"))
    side_by_side = report.SideBySide(together, records.read_json(records.result_file("side_by_side", "benchmark.json")))
    comparison = records.read_json(records.COMPARISON)
    page, figures = report.write(params, records.read_environment(), comparison, results, side_by_side)
    for name, figure in figures.items():
        records.write_bytes(records.FIGURES / f"{name}.svg", figure.encode())
    records.write_bytes(records.REPORT, page.encode())
    print(f"{records.REPORT} shows the results")


def _result(name: str, params: Params) -> report.Result:
    timing = records.read_json(records.result_file(name, "timing.json"))
    return report.Result(
        problem=params.problem_of(name),
        timing=timing,
        restored=records.restored(timing),
        benchmarked=records.read_json(records.result_file(name, "benchmark.json")),
        cases=cases(records.read_benchmark(name)),
        losses=records.read_history(name),
    )


if __name__ == "__main__":
    run(main)
