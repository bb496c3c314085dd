"""What the two pages share: their templates, and how results are put into words on them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.benchmark.samples import Case
from pipeline.clock import TIME_BREAKDOWN
from pipeline.report.figures import Result


def render(template: str, **content: Any) -> str:
    """A template of this folder, filled in. Raises jinja2.UndefinedError where it names what is not there."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    templates.filters["ticks"] = ticks
    return templates.get_template(template).render(**content)


def ticks(text: str) -> Markup:
    """Text as HTML, `what stands in ticks` as code."""
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(part) if index % 2 else part for index, part in enumerate(text.split("`")))


def row(name: str, result: Result, comparison: Mapping[str, Any], case: Case | None, latest: str) -> dict[str, Any]:
    """What was measured of an implementation. `latest` is when the newest run began that anything comes from."""
    return {
        "name": name,
        **comparison["implementations"][name],
        "step": duration(result.timing["step_seconds_median"]),
        "p95": duration(result.timing["step_seconds_p95"]),
        "multiple": (case and case.multiple(name)) or "–",
        "replayed": replayed(result.timing),
        "device": result.timing["device_name"],
        "when": when(result.timing),
        "where": result.timing["measured_on"],
        "earlier": result.timing["run_began"] < latest,
    }


def replayed(timing: Mapping[str, Any]) -> str:
    """How many steps of a training were replays of CUDA graphs, or nothing where none was."""
    steps, graphs = timing["replayed_steps"], timing["captured_graphs"]
    return f"{steps:,} steps were replays of {graphs:,} CUDA graphs" if steps else ""


def breakdown(result: Result) -> dict[str, str]:
    """The duration of each line of a training's time breakdown, and its share of the whole."""
    seconds = {line: result.timing[f"{line}_seconds"] for line in TIME_BREAKDOWN}
    return {line: f"{duration(each)}, {each / result.timing['wall_seconds']:.0%}" for line, each in seconds.items()}


def when(measured: Mapping[str, Any]) -> str:
    return f"{measured['measured_at'][:16].replace('T', ' ')} UTC"


def duration(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 0.9995:  # or 999.8 ms are 1e+03 ms
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.2g} µs"
