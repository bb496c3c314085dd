"""What a run in MLflow says of itself: when it really ran, where it comes from, and a description to read."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from pipeline.benchmark.intervals import Estimate
from pipeline.benchmark.samples import Case
from pipeline.parity.report import table
from pipeline.report.findings import Finding
from pipeline.report.page import replayed


def training_span(timing: Mapping[str, Any]) -> tuple[int, int]:
    """When a training's process began and ended, in milliseconds, as MLflow counts them."""
    return _milliseconds(timing["measured_at"], -timing["wall_seconds"]), _milliseconds(timing["measured_at"])


def state_span(timings: Sequence[Mapping[str, Any]], run_began: str | None) -> tuple[int, int]:
    """When a state of the experiment was made: from the beginning of its run of the pipeline until now.

    Of restored results: what their trainings took, until the newest of them was measured.
    """
    if all(timing["run_began"] == run_began for timing in timings):
        return _milliseconds(timings[0]["run_began"]), int(datetime.now().timestamp() * 1000)
    newest = max(timing["measured_at"] for timing in timings)
    return _milliseconds(newest, -sum(timing["wall_seconds"] for timing in timings)), _milliseconds(newest)


def source(name: str, commit: str) -> dict[str, str]:
    """The tags that MLflow shows as Source and Version."""
    return {"mlflow.source.name": name, "mlflow.source.type": "LOCAL", "mlflow.source.git.commit": commit}


def numbers(measured: Mapping[str, Any], multiple: Estimate | None) -> dict[str, float]:
    """The metrics of an implementation's run: those that are compared most under the names that the report has."""
    names = {"test_loss": "held_out_loss", "test_r2": "r2", "step_seconds_median": "step_microseconds"}
    found = {names.get(key, key): value for key, value in measured.items() if type(value) in (int, float)}
    found["step_microseconds"] = round(1e6 * found["step_microseconds"], 2)
    if multiple:
        keys = ("times_lower_bound", "times_lower_bound_from", "times_lower_bound_to")
        found |= {key: round(number, 3) for key, number in zip(keys, multiple, strict=True)}
    return found


def of_result(name: str, timing: Mapping[str, Any], row: Mapping[str, Any], case: Case | None, restored: bool) -> str:
    """The description of an implementation's run, in Markdown."""
    multiple = case.multiple(name) if case and name in case.seconds else None
    step = f"{1e6 * timing['step_seconds_median']:,.0f} µs"
    broken = ", ".join(f"{step:,}" for step in timing["continued_at"])
    rows = {
        "Device": f"{timing['device_name']}, {timing['threads']} threads",
        "Held-out loss": f"{row['initial_test_loss']:.4g} → {row['test_loss']:.4g}, R² {row['test_r2']:.3f}",
        "Parity": f"breached: {', '.join(row['breaches'])}" if row["breaches"] else "passed",
        "A step": f"{step}; in the benchmark {multiple} the lower bound" if multiple else step,
        "Measured": f"{timing['measured_at'][:19]} UTC on {timing['measured_on']}"
        + (", restored here" if restored else ""),
        **({"Replayed": replayed(timing)} if replayed(timing) else {}),
        **({"Taken up again": f"at step {broken}"} if broken else {}),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def of_state(comparison: Mapping[str, Any], found: Sequence[Finding]) -> str:
    """The description of a state: the certificate, and the verdict on each claim of the text."""
    verdicts = [f"- {each.claim.text} **{each.verdict}**: {each.text}" for each in found]
    return "\n".join(["```", table(dict(comparison)), "```", *verdicts])


def _milliseconds(at: str, seconds: float = 0) -> int:
    return int((datetime.fromisoformat(at) + timedelta(seconds=seconds)).timestamp() * 1000)
