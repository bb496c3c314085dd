"""A new user's first `dvc repro`: all implementations, in a fresh clone, with the committed params."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import browser
import pytest
import yaml
from conftest import LESSONS, REPOSITORY, Clone
from stores import FILTERS, children, database, runs, started_ui

from pipeline import files, results
from pipeline.parity import report
from pipeline.report.findings import CLAIMS

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def first_run(make_clone: Callable[..., Clone]) -> tuple[Clone, str]:
    """The default params, run once, and what `dvc repro` printed."""
    clone = make_clone()
    return clone, clone.run("dvc", "repro").stdout


@pytest.fixture
def whole(first_run: tuple[Clone, str]) -> Clone:
    return first_run[0]


def test_first_run_ends_with_the_parity_table_the_pages_and_the_next_command(first_run: tuple[Clone, str]):
    clone, output = first_run
    last = output.partition("Running stage 'gate':")[2].splitlines()
    assert len(last) <= 24, "more than a screen"
    table = report.table(results.ParityReport.read(clone.path / files.PARITY_REPORT)).splitlines()
    pages = "Open lessons.html and report.html in a browser. `make ui` shows the runs in MLflow."
    following = "Try next: dvc exp run -S train.learning_rate=0.1"
    assert last[2 : 2 + len(table) + 2] == [*table, pages, following]
    timing = output.partition("Running stage 'benchmark':")[2].partition("Updating lock file")[0].splitlines()
    assert len(timing) <= 14, timing


@FILTERS
@pytest.mark.browser
def test_runs_page_of_a_first_run_shows_its_numbers(whole: Clone):
    """It takes the pictures of the documents: PICTURES=docs pytest -m browser tests/test_default_run.py"""
    columns = ("parity", "held_out_loss", "step_microseconds", "worst_parity", "device")
    (state,) = runs(database(whole), "tags.role = 'pipeline'")
    run = children(database(whole))["torch_function"]
    assert run.outputs
    (model,) = run.outputs.model_outputs
    pages = {
        "mlflow-state": (f"runs/{state.info.run_id}", ["claims_that_hold", "Child runs", "numpy_arrays"]),
        "mlflow-run": (f"runs/{run.info.run_id}", ["Held-out loss", "A step", "train_loss"]),
        "mlflow-model": (f"models/{model.model_id}", ["torch_function", "Metrics (", "Source run"]),
    }
    with started_ui(whole) as (address, _):
        server = address.partition("/#")[0]
        text, picture = browser.runs_page(server, *LESSONS, *columns, "passed")
        pictures = {"mlflow": picture}
        for name, (page, expected) in pages.items():
            pictures[name] = browser.mlflow_page(
                f"{server}/#/experiments/1/{page}?workflowType=machine_learning", *expected, alone=True
            )[1]
    parity = json.loads((whole.path / "results/parity.json").read_text())["implementations"]
    assert all(str(row["test_loss"])[:6] in text for row in parity.values())
    if folder := os.environ.get("PICTURES"):
        for name, picture in pictures.items():
            Path(folder, f"{name}.png").write_bytes(picture)


def test_default_params_pass_the_parity_check_for_all_implementations(whole: Clone):
    comparison = json.loads((whole.path / "results/parity.json").read_text())
    assert comparison["passed"]
    assert set(comparison["implementations"]) == set(LESSONS)
    params = whole.params()
    paths = [f"results/{name}/{file}.json" for name in LESSONS for file in ("metrics", "timing")]
    paths += [f"parity/{name}.json" for name in LESSONS]
    metrics = json.loads(whole.run("dvc", "metrics", "show", "--json", *paths).stdout)[""][
        "data"
    ]  # a command of the docs
    for name, problem in LESSONS.items():
        evaluation = metrics[f"parity/{name}.json"]["data"]
        assert {"test_loss", "test_r2", "parity"} <= evaluation.keys()
        assert evaluation["test_loss"] < evaluation["initial_test_loss"] / 2, "it does not learn visibly"
        assert metrics[f"results/{name}/metrics.json"]["data"]["steps"] == params["problems"][problem]["train"]["steps"]
        assert {
            "device",
            "device_name",
            "threads",
            "breakdown_seconds",
            "wall_seconds",
            "step_seconds_median",
            "step_seconds_p95",
            "examples_per_second",
            "peak_memory_bytes",
        } <= metrics[f"results/{name}/timing.json"]["data"].keys()


def test_summary_metrics_of_experiments_fit_on_a_screen(whole: Clone):
    shown = json.loads(whole.run("dvc", "metrics", "show", "--json").stdout)[""]["data"]
    assert list(shown) == ["summary.json"]
    summary = shown["summary.json"]["data"]
    columns = [key for value in summary.values() for key in (value if isinstance(value, dict) else [value])]
    assert len(columns) <= 24
    assert set(summary["step_microseconds"]) == set(LESSONS)
    assert 0 <= summary["claims_that_hold"] <= sum(bool(claim.criterion) for claim in CLAIMS)
    assert summary["worst_parity"]["gradient"] < whole.params()["parity"]["float32"]["gradient"]
    experiments = whole.run("dvc", "exp", "show", "--csv", "--only-changed", "--drop", ".*/.*").stdout
    assert "held_out_loss.two_layer" in experiments.splitlines()[0]


def test_data_equal_the_committed_ones_and_results_are_within_tolerance(whole: Clone):
    committed, made = (yaml.safe_load((root / "dvc.lock").read_text())["stages"] for root in (REPOSITORY, whole.path))
    for problem in sorted(set(LESSONS.values())):
        stage = f"generate@{problem}"
        assert made[stage]["outs"] == committed[stage]["outs"], f"{stage} does not give the data of dvc.lock"
    expected = json.loads((REPOSITORY / "docs/results/parity.json").read_text())["implementations"]
    rows = json.loads((whole.path / "results/parity.json").read_text())["implementations"]
    for name in expected:
        assert rows[name]["initial_test_loss"] == pytest.approx(expected[name]["initial_test_loss"], rel=1e-5)
        assert rows[name]["test_loss"] == pytest.approx(expected[name]["test_loss"], rel=1e-3)
        assert rows[name]["test_r2"] == pytest.approx(expected[name]["test_r2"], abs=1e-3)


def test_loss_curves_of_a_problem_are_in_one_chart(whole: Clone):
    plots = json.loads(whole.run("dvc", "plots", "show", "--json").stdout)
    for problem in set(LESSONS.values()):
        (chart,) = (
            plots["data"][f"results/curves/{problem}.csv"]
            if "data" in plots
            else plots[f"results/curves/{problem}.csv"]
        )
        content = json.dumps(chart)
        assert all(name in content for name in LESSONS if LESSONS[name] == problem)
        assert f"results/predictions/{problem}.csv" in plots.get("data", plots)


def test_second_repro_runs_only_environment_and_track(whole: Clone):
    assert whole.stages_run("dvc", "repro") == []


def test_forced_runs_are_byte_identical(whole: Clone):
    """A second run from the beginning: models and all other files without timings are bitwise equal."""
    patterns = ("models/**/*", "data/**/*", "reference/*", "results/*/[hm]*", "results/parity.json", "parity/*")
    before = whole.digests(*patterns)
    assert sum(name.startswith("models") for name in before) == 2 * len(LESSONS)
    whole.run("dvc", "repro", "-f", "compare")  # and its dependencies
    assert whole.digests(*patterns) == before


def test_tf32_rounding_is_within_its_tolerances_and_beyond_those_of_float32(whole: Clone):
    done = whole.run(sys.executable, str(REPOSITORY / "tests/tf32.py"), env={"PYTHONPATH": str(whole.path)})
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(row["name"], row["rounding"]) for row in rows} == {
        (name, rounding) for name in ("torch_autograd", "torch_loop") for rounding in ("nearest", "cut")
    }
    parity = whole.params()["parity"]
    for measure in parity["tf32"]:
        assert max(row[measure] for row in rows) <= parity["tf32"][measure], measure
    assert max(row["gradient"] for row in rows) > 10 * parity["float32"]["gradient"]
