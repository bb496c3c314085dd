"""The tables of docs/reference are compared with params.yaml, dvc.yaml, the result files and the runs of a pipeline."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, Clone
from stores import FILTERS, database, runs

from commands.__main__ import commands
from pipeline.archive.reproduce import EXIT
from pipeline.benchmark.intervals import ALIKE, FASTER, SLOWER, UNKNOWN
from pipeline.benchmark.samples import Sample
from pipeline.clock import TIME_BREAKDOWN
from pipeline.report.findings import FAILS, HOLDS, ILLUSTRATION, OPEN, PARTLY
from pipeline.results import BenchmarkProvenance, Judged, ParityReport, Summary, Timing

pytestmark = FILTERS
REFERENCE = REPOSITORY / "docs/reference"
NAMES = re.compile(r"`([^`]+)`")
PARAMS: dict[str, Any] = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
STAGES: dict[str, Any] = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]


def section(page: str, heading: str = "") -> str:
    """The text below a heading of a page, up to the next heading of any level; without one, the whole page."""
    text = (REFERENCE / f"{page}.md").read_text(encoding="utf-8")
    if not heading:
        return text
    _, separator, below = text.partition(f"\n{heading}\n")
    assert separator, f"{page}.md has no {heading}"
    return re.split(r"^#+ ", below, maxsplit=1, flags=re.MULTILINE)[0]


def cells(text: str) -> Iterator[list[str]]:
    """The cells of each row of the tables in a text."""
    for line in text.splitlines():
        if line.startswith("|") and "---" not in line:
            yield [cell.strip() for cell in line.strip("|").split("|")]


def first_names(text: str) -> set[str]:
    """The names in backticks in the first column of the tables in a text."""
    return {name for row in cells(text) for name in NAMES.findall(row[0])}


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_params_are_listed_with_their_defaults():
    documented = {row[0].strip("`"): row[2].strip("`") for row in cells(section("params")) if row[0] != "key"}
    defaults = {key: f"{len(value)} sizes" if isinstance(value, list) else value for key, value in flat(PARAMS)}
    assert documented.keys() == defaults.keys()
    assert {key: yaml.safe_load(text) for key, text in documented.items()} == defaults


def test_stages_are_listed_with_their_outputs():
    documented = {re.split("[@`]", row[0])[1]: row[2] for row in cells(section("stages")) if row[0] != "stage"}
    assert documented.keys() == STAGES.keys()
    for stage, item in STAGES.items():
        entry = item.get("do", item)
        outputs = [out for kind in ("outs", "metrics", "plots") for out in entry.get(kind, [])]
        for out in outputs:
            path = next(iter(out)) if isinstance(out, dict) else out
            name = path.replace("${key}", "PROBLEM" if stage in ("generate", "reference") else "NAME")
            assert re.search(rf"`{re.escape(name)}/?`", documented[stage]), f"{stage} writes {name}"


def test_files_that_a_stage_writes_are_listed():
    listed = section("files", "## Overview")
    for row in cells(section("stages")):
        for name in NAMES.findall(row[2]):
            assert f"`{name}" in listed, name


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("## parity/NAME.json", {*Judged.model_fields} - {"problem", "failed", "first_wrong"}),
        ("## results/parity.json", {*ParityReport.model_fields, "problem", "failed", "first_wrong"}),
        ("## timing.json", {*Timing.model_fields}),
        ("### Time breakdown", {*TIME_BREAKDOWN}),
        ("## results/benchmark.csv", {*Sample._fields}),
        ("## results/benchmark.json", {"cpus", "processes", "stopped"}),
        ("## summary.json", {*Summary.model_fields}),
    ],
)
def test_fields_of_a_file_are_listed(heading: str, expected: set[str]):
    assert first_names(section("files", heading)) == expected


def test_benchmark_provenance_has_the_listed_fields():
    listed = first_names(section("files", "## timing.json")) | first_names(
        section("files", "## results/benchmark.json")
    )
    assert BenchmarkProvenance.model_fields.keys() <= listed


def test_verdicts_are_listed():
    assert first_names(section("verdicts", "## Benchmark")) == {ALIKE, FASTER, SLOWER, UNKNOWN}
    assert first_names(section("verdicts", "## Claims")) == {HOLDS, FAILS, PARTLY, OPEN, ILLUSTRATION}
    rows = [row for row in cells(section("verdicts", "## make reproduce")) if row[0] != "verdict"]
    assert {row[0].strip("`"): int(row[2]) for row in rows} == EXIT


def test_exit_statuses_of_every_command_are_listed():
    listed = first_names(section("verdicts", "## Exit statuses"))
    assert {f"python -m commands {name}" for name in commands.commands} == {
        name for name in listed if name.startswith("python -m commands")
    }


def as_pattern(name: str) -> str:
    """A documented key, in which a word in capitals stands for any name."""
    return re.sub(r"NAME|PROBLEM|LINE", r"\\w+", re.escape(name))


def assert_documented(keys: set[str], text: str) -> None:
    """Every key is in the text's tables, and every name there that is not in italics is one of the keys."""
    documented = first_names(text)
    optional = {name for row in cells(text) for name in re.findall(r"\*`([^`]+)`\*", row[0])}
    assert {key for key in keys if not any(re.fullmatch(as_pattern(name), key) for name in documented)} == set()
    missing = {name for name in documented - optional if not any(re.fullmatch(as_pattern(name), key) for key in keys)}
    assert missing == set()


def test_metrics_tags_and_params_of_a_run_are_listed(finished_pipeline: Clone):
    uri = database(finished_pipeline)
    for role, heading in (("pipeline", "## The run of a state"), ("implementation", "## The run of an implementation")):
        logged = runs(uri, f"tags.role = '{role}'")
        assert logged
        text = section("mlflow", heading)
        metrics, tags = text.split("| tag |")
        run = logged[0].data
        assert_documented(set(run.metrics), metrics)
        assert_documented(set(run.tags), tags + section("mlflow", "## Tags of both"))
        assert set(run.params) - {"problem"} == {key for key, _ in flat(finished_pipeline.params())}
