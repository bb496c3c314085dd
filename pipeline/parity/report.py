"""The stages `compare` and `gate`. `compare` writes the parity report: how far each implementation is from the float64
reference, and whether that is within the tolerances. `gate` ends the pipeline if an implementation is not."""

import json
import subprocess
import sys
from collections.abc import Mapping

from pipeline import files
from pipeline.errors import UserError
from pipeline.params import Params, load_params
from pipeline.results import Evaluation, FirstWrong, Judged, ParityReport
from pipeline.text import columns

TIMEOUT = 300  # seconds for an explanation
RIGHT = (
    "Two small steps in float64 agree with the equations in every quantity, so no line is wrong: the difference comes "
    "from rounding, from a setting such as precision or learning_rate, or from many steps."
)


def compare() -> None:
    params = load_params()
    evaluations = {name: Evaluation.read(files.parity_file(name)) for name in params.implementations}
    report = judge(params, evaluations)
    rows = {
        name: row.model_copy(update={"first_wrong": first_wrong(name, row.problem)}) if row.failed else row
        for name, row in report.implementations.items()
    }
    report = report.model_copy(update={"implementations": rows})
    report.write(files.PARITY_REPORT)
    print(table(report))
    print("\n".join(sentences(report)), end="\n" if sentences(report) else "")


def gate() -> None:
    """Raises UserError when an implementation fails the parity check: report and MLflow show it by then."""
    report = ParityReport.read(files.PARITY_REPORT)
    failed = {name: row.failed for name, row in report.implementations.items() if row.failed}
    if failed:
        by = "; ".join(f"{name} by {', '.join(measures)}" for name, measures in failed.items())
        raise UserError(
            f"These implementations fail the parity check: {by}. {files.REPORT} shows by how much. "
            f"{' '.join(sentences(report))} Correct the implementation (`make explain NAME={next(iter(failed))}` shows "
            "each line), or change the tolerances in params.yaml under parity."
        )
    print(table(report))


def sentences(report: ParityReport) -> list[str]:
    """For each implementation that failed, a sentence with the first mistake and its line."""
    return [f"{name}: {row.first_wrong.sentence}" for name, row in report.implementations.items() if row.first_wrong]


def first_wrong(name: str, problem: str) -> FirstWrong:
    """Explain an implementation on the device of the experiment, in a separate process with its framework."""
    device = files.read_environment().device
    command = [sys.executable, "-m", "pipeline.parity.explain", name, problem, device, "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=TIMEOUT, check=False)
        explanation = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, OSError, ValueError, IndexError):
        return FirstWrong(
            sentence=f"The line is not known: `make explain NAME={name}` says why.", quantity="", line=None
        )
    if explanation["is_right"]:
        return FirstWrong(sentence=RIGHT, quantity="", line=None)
    line = (explanation["lines"] or [None])[0]
    return FirstWrong(sentence=explanation["sentence"], quantity=explanation["quantity"], line=line)


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
