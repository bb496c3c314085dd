"""The common parts of the two pages: their templates, and results in words."""

from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from pipeline.benchmark.candidates import Candidate
from pipeline.benchmark.samples import Case
from pipeline.report.figures import Result
from pipeline.results import Judged, ParityReport, Provenance, Timing


def render(template: str, **content: Any) -> str:
    """A filled-in template of this folder. Raises jinja2.UndefinedError when it uses an unknown name."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    templates.filters["ticks"] = ticks
    return templates.get_template(template).render(**content)


def ticks(text: str) -> Markup:
    """Text as HTML, with `text in backticks` as code."""
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(part) if index % 2 else part for index, part in enumerate(text.split("`")))


class Row(NamedTuple):
    """The measurements of an implementation in words, and its row of the parity report."""

    name: str
    judged: Judged
    step: str
    p95: str
    multiple: str  # of the matrix products alone, with its interval
    replays: str
    device: str
    when: str
    where: str
    earlier: bool  # measured in an earlier run than the newest measurement


def row(name: str, result: Result, parity: ParityReport, case: Case | None, latest: str) -> Row:
    """`latest` is when the newest run with a measurement began."""
    timing, multiple = result.timing, case and case.multiple(Candidate(name))
    return Row(
        name,
        parity.implementations[name],
        duration(timing.step_seconds_median),
        duration(timing.step_seconds_p95),
        str(multiple or "–"),
        timing.replays,
        timing.device_name,
        when(timing),
        timing.measured_on,
        timing.run_began < latest,
    )


def breakdown(timing: Timing) -> dict[str, str]:
    """The duration of each line of a training's time breakdown, and its share of the whole."""
    seconds = timing.breakdown_seconds.items()
    return {line: f"{duration(value)}, {value / timing.wall_seconds:.0%}" for line, value in seconds}


def when(measured: Provenance) -> str:
    return f"{measured.measured_at[:16].replace('T', ' ')} UTC"


def duration(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 0.9995:  # otherwise 999.8 ms would be 1e+03 ms
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.2g} µs"
