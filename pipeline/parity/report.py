"""The parity certificate: what every implementation was measured to be, and whether it is within the tolerances."""

from collections.abc import Mapping
from typing import Any

from pipeline.params import Params, Tolerances


def certificate(params: Params, measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The parity certificate: for each implementation what was measured, what it breaches, and whether all passed."""
    tolerances = params.tolerances
    rows = {
        name: {"problem": params.implementations[name], **measures, "breaches": breaches(measures, tolerances)}
        for name, measures in measured.items()
    }
    return {
        "passed": not any(row["breaches"] for row in rows.values()),
        "dtype": params.dtype,
        "tolerances": tolerances.model_dump(),
        "implementations": rows,
    }


def table(comparison: dict[str, Any]) -> str:
    """The certificate as text, a line for each implementation, the figures that breach their tolerance marked ✗."""
    rows: list[tuple[str, ...]] = [("", "held-out loss", "R²", "gradient", "loss curve", "predictions", "")]
    for name, row in comparison["implementations"].items():
        figures = [
            f"{row[measure]:.1e}{' ✗' if measure in row['breaches'] else ''}"
            for measure in limits(comparison["tolerances"])
        ]
        loss = f"{row['initial_test_loss']:.4f} → {row['test_loss']:.4f}"
        rows.append((name, loss, f"{row['test_r2']:.4f}", *figures, "✗ BREACH" if row["breaches"] else "✓"))
    rows.append(("tolerance", "", "", *(f"{limit:.1e}" for limit in comparison["tolerances"].values()), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def breaches(measures: Mapping[str, Any], tolerances: Tolerances) -> list[str]:
    """The measures that are over their tolerance."""
    # `not <=` rather than `>`: a measure that is not a number breaches any tolerance.
    return [measure for measure, limit in limits(tolerances.model_dump()).items() if not measures[measure] <= limit]


def limits(tolerances: Mapping[str, float]) -> dict[str, float]:
    """The tolerance of each measure."""
    return {
        "gradient_relative_error": tolerances["gradient"],
        "loss_curve_relative_difference": tolerances["loss_curve"],
        "predictions_relative_difference": tolerances["predictions"],
    }
