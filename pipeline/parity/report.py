"""The stages `compare` and `gate`: the parity report, which says how far each implementation is from the float64
reference and whether that is tolerated; and the end of a pipeline in which one is not."""

from collections.abc import Mapping

from pipeline import files
from pipeline.errors import UserError
from pipeline.params import Params, load_params
from pipeline.results import Evaluation, Judged, ParityReport
from pipeline.text import columns


def compare() -> None:
    params = load_params()
    evaluations = {name: Evaluation.read(files.parity_file(name)) for name in params.implementations}
    report = judge(params, evaluations)
    report.write(files.PARITY_REPORT)
    print(table(report))


def gate() -> None:
    """Raises UserError when an implementation fails the parity check: report and MLflow show it by then."""
    failed = {name: row.failed for name, row in ParityReport.read(files.PARITY_REPORT).implementations.items()}
    if sentences := [f"{name} by {', '.join(measures)}" for name, measures in failed.items() if measures]:
        raise UserError(
            f"These implementations fail the parity check: {'; '.join(sentences)}. {files.REPORT} shows by how much. "
            "Correct the implementation, or change the tolerances in params.yaml under parity."
        )


def judge(params: Params, evaluations: Mapping[str, Evaluation]) -> ParityReport:
    """The report of these implementations, by the tolerances of `params`."""
    rows = {
        name: Judged(
            **dict(evaluation),
            problem=params.implementations[name],
            failed=evaluation.parity.over(params.tolerances),
        )
        for name, evaluation in evaluations.items()
    }
    passed = not any(row.failed for row in rows.values())
    return ParityReport(passed=passed, dtype=params.dtype, tolerances=params.tolerances, implementations=rows)


def table(report: ParityReport) -> str:
    """The report as text, a line for each implementation. ✗ marks each measure that is over its tolerance."""
    measures = list(type(report.tolerances).model_fields)
    rows = [("", "held-out loss", "R²", *(name.replace("_", " ") for name in measures), "")]
    for name, row in report.implementations.items():
        values = [f"{value:.1e}{' ✗' if measure in row.failed else ''}" for measure, value in row.parity]
        loss = f"{row.initial_test_loss:.4f} → {row.test_loss:.4f}"
        rows.append((name, loss, f"{row.test_r2:.4f}", *values, "✗ FAILED" if row.failed else "✓"))
    rows.append(("tolerance", "", "", *(f"{limit:.1e}" for _, limit in report.tolerances), ""))
    return columns(rows)
