"""MLflow: the logged results, read back through its client; no result twice; and a store that cannot be reached."""

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import browser
import mlflow
import numpy as np
import pytest
from conftest import LESSONS, TINY, Clone, mounted, outside_variables
from mlflow.entities import Run
from stores import (
    FILTERS,
    TWO,
    Send,
    assert_one_warning,
    children,
    database,
    running_server,
    runs,
    server_double,
    started_ui,
)

from pipeline.array_files import read_arrays
from pipeline.benchmark import samples
from pipeline.benchmark.candidates import Candidate
from pipeline.clock import TIME_BREAKDOWN
from pipeline.contract import load_problem
from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.tracking import store
from pipeline.tracking.runs import log_results

pytestmark = FILTERS
TRACK = (sys.executable, "-m", "stages.track")
TRAIN = (sys.executable, "-m", "stages.train", "numpy_arrays")


@pytest.fixture(scope="module")
def clone(finished_pipeline: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A finished pipeline whose restored results `dvc repro` has sent to a new store. Tests must not change it."""
    path = tmp_path_factory.mktemp("tracking") / "project"
    shutil.copytree(finished_pipeline.path, path, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlruns"))
    clone = Clone(path)
    assert clone.stages_run("dvc", "repro") == []
    return clone


def milliseconds(run: Run) -> int:
    assert run.info.end_time
    return run.info.end_time - run.info.start_time


def md5sum(path: Path) -> str:
    return subprocess.run(["md5sum", path], capture_output=True, text=True, check=True).stdout.split()[0]


# Logged results.


def test_run_of_each_implementation_has_its_metrics_and_tags(clone: Clone):
    (parent,) = runs(database(clone), "tags.role = 'pipeline'")
    client = mlflow.MlflowClient()
    implementations = children(database(clone))
    assert implementations.keys() == LESSONS.keys()
    measured = samples.read(clone.path / "results/benchmark.csv", clone.path / "results/benchmark.json")
    for name, run in implementations.items():
        tags, metrics, problem = run.data.tags, run.data.metrics, LESSONS[name]
        timing = json.loads((clone.path / f"results/{name}/timing.json").read_text())
        manifest = md5sum(clone.path / "data" / problem / "manifest.json")
        expected = {
            "mlflow.parentRunId": parent.info.run_id,
            "mlflow.source.git.commit": timing["commit"][:40],
            "mlflow.source.name": f"stages/train.py {name}",
            "implementation": name,
            "problem": problem,
            "framework": name.split("_")[0],
            "dvc.stage": f"train@{name}",
            "device_requested": "auto",
            "device": "cpu",
            "git.dirty": "true",  # params.yaml is changed
            "parity": "passed",
            "timing.restored": "true",
            "timing.measured_at": timing["measured_at"],
            "md5.params": md5sum(clone.path / "params.yaml"),
            "md5.environment": md5sum(clone.path / "environment.json"),
            "md5.weights": md5sum(clone.path / f"models/{name}/weights.safetensors"),
            "md5.data": manifest,
        }
        assert expected.items() <= tags.items()
        assert {"framework_version", "device_name", "host"} <= tags.keys()
        assert len(tags["git.commit"]) == 40
        assert f"{timing['device_name']}, {timing['threads']} threads" in tags["mlflow.note.content"]
        assert "| Parity | passed |" in tags["mlflow.note.content"]
        numbers = {"held_out_loss", "r2", "parity.gradient", "step_microseconds"}
        assert numbers | {f"breakdown_seconds.{line}" for line in TIME_BREAKDOWN} <= metrics.keys()
        training = TINY["problems"][problem]
        sizes = training["data"] | {"batch_size": training["train"]["batch_size"]}
        case = next(case for case in measured.of(problem) if case.sizes.items() <= sizes.items())
        multiple = case.multiple(Candidate(name))  # None where other tests disturbed all processes
        keys = {"times_matrix_products", "times_matrix_products_from", "times_matrix_products_to"}
        assert (keys <= metrics.keys()) == bool(multiple)
        assert run.data.params["train.learning_rate"] == "0.05"
        assert milliseconds(run) == pytest.approx(1000 * timing["wall_seconds"], abs=10)
        history = client.get_metric_history(run.info.run_id, "train_loss")
        losses = np.loadtxt(clone.path / f"results/{name}/history.csv", delimiter=",", skiprows=1)
        assert [(point.step, point.value) for point in history] == [(step, loss) for step, loss in losses]
        assert run.inputs
        (dataset,) = run.inputs.dataset_inputs
        assert (dataset.dataset.name, dataset.dataset.digest) == (problem, manifest)
        artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert {"timing.json", "outputs.safetensors"} <= artifacts


def test_run_of_a_state_has_the_report_and_the_files_to_reproduce_it(clone: Clone):
    (parent,) = runs(database(clone), "tags.role = 'pipeline'")
    client, run_id, metrics = mlflow.MlflowClient(), parent.info.run_id, parent.data.metrics
    artifacts = {file.path for file in client.list_artifacts(run_id)}
    assert {"report.html", "lessons.html", "parity.json", "benchmark.csv", "dvc.lock", "changes.patch"} <= artifacts
    assert "figures/time_breakdown.svg" in {file.path for file in client.list_artifacts(run_id, "figures")}
    assert "numpy_arrays" in parent.data.tags["mlflow.note.content"]
    assert {"worst_parity.gradient", "claims_that_hold", "step_microseconds.torch_loop"} <= metrics.keys()
    assert metrics["wall_seconds"] == milliseconds(parent) / 1000
    assert metrics["implementations"] == len(LESSONS)
    rows = children(database(clone))
    assert metrics["worst_parity"] == max(run.data.metrics["worst_parity"] for run in rows.values())
    table = client.load_table(parent.info.experiment_id, "parity_table.json", run_ids=[run_id])
    assert set(table["implementation"]) == set(LESSONS)
    assert client.get_experiment("1").tags["mlflow.experimentKind"] == "custom_model_development"


def test_model_that_passes_the_parity_check_is_registered_and_predicts(clone: Clone):
    client = mlflow.MlflowClient(database(clone))
    for name, run in children(database(clone)).items():
        assert client.get_model_version_by_alias(name, "parity-passed").run_id == run.info.run_id
        model = mlflow.pyfunc.load_model(f"models:/{name}@parity-passed")
        folder = clone.path / "data" / LESSONS[name]
        inputs = {key: np.load(path) for key in ("x", "lengths") if (path := folder / f"test_{key}.npy").exists()}
        weights = read_arrays(clone.path / f"models/{name}/weights.safetensors")
        expected = load_problem(LESSONS[name]).predict(weights, *inputs.values())
        np.testing.assert_allclose(model.predict(inputs), expected, rtol=1e-12)
        assert run.outputs
        logged = client.get_logged_model(run.outputs.model_outputs[0].model_id)
        assert {"held_out_loss", "r2"} <= {metric.key for metric in logged.metrics or []}
        assert name in logged.tags["mlflow.modelVersions"]
        suffixes = {path.suffix for path in Path(logged.artifact_location.removeprefix("file://")).rglob("*")}
        assert ".safetensors" in suffixes
        assert not suffixes & {".pkl", ".pickle", ".pt", ".joblib"}


@pytest.mark.faults
def test_model_predicts_in_a_clean_environment_of_its_requirements(clone: Clone, tmp_path: Path):
    mlflow.set_tracking_uri(database(clone))
    requirements = mlflow.pyfunc.get_model_dependencies("models:/torch_loop@parity-passed")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", requirements], check=True)
    predict = """
import sys, mlflow, numpy as np
model = mlflow.pyfunc.load_model("models:/torch_loop@parity-passed")
folder = sys.argv[1]
np.save(sys.argv[2], model.predict({key: np.load(f"{folder}/test_{key}.npy") for key in ("x", "lengths")}))
"""
    predictions = tmp_path / "predictions.npy"
    environment = outside_variables() | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    command = [python, "-I", "-c", predict, clone.path / "data/recurrent", predictions]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    weights = read_arrays(clone.path / "models/torch_loop/weights.safetensors")
    inputs = [np.load(clone.path / f"data/recurrent/test_{key}.npy") for key in ("x", "lengths")]
    np.testing.assert_allclose(np.load(predictions), load_problem("recurrent").predict(weights, *inputs))


def test_implementation_that_fails_the_parity_check_is_not_registered(project: Clone):
    path = project.path / "results/parity.json"
    report = json.loads(path.read_text())
    report["implementations"]["numpy_arrays"]["failed"] = ["gradient", "loss_curve"]
    path.unlink()  # it may be a link to DVC's cache
    path.write_text(json.dumps(report | {"passed": False}))
    log_results(load_params())
    implementations = children(database(project))
    tags = implementations["numpy_arrays"].data.tags
    assert tags["parity"] == "failed: gradient, loss_curve"
    assert "| Parity | failed: gradient, loss_curve |" in tags["mlflow.note.content"]
    assert implementations["torch_loop"].data.tags["parity"] == "passed"
    (parent,) = runs(database(project), "tags.role = 'pipeline'")
    assert parent.data.tags["parity"] == "failed: numpy_arrays"
    assert [model.name for model in mlflow.MlflowClient().search_registered_models()] == ["torch_loop"]


def test_files_that_git_ignores_are_not_sent(project: Clone):
    (project.path / "pipeline/secret.key").write_text("a password")
    with (project.path / ".git/info/exclude").open("a") as file:
        file.write("/pipeline/secret.key\n")
    log_results(load_params())
    artifacts = [path for path in (project.path / "mlruns").rglob("*") if path.is_file()]
    assert {"served_model.py", "changes.patch"} <= {path.name for path in artifacts}
    assert not [path for path in artifacts if path.name == "secret.key" or b"a password" in path.read_bytes()]


def test_links_into_the_dvc_cache_are_sent_as_files(project: Clone, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """As `dvc config cache.type symlink` makes them."""
    for path in [path for folder in ("models", "results") for path in (project.path / folder).rglob("*.*")]:
        if path.is_file():
            path.rename(tmp_path / f"{path.parent.name}-{path.name}")
            path.symlink_to(tmp_path / f"{path.parent.name}-{path.name}")
    log_results(load_params())
    assert capsys.readouterr().err == ""
    assert not [path for path in (project.path / "mlruns").rglob("*") if path.is_symlink()]


# Times of logging, and no result twice.


def test_current_results_are_tracked_without_importing_mlflow(clone: Clone):
    imported = "import sys; from stages import track; track.main(); print({'mlflow', 'requests'} & sys.modules.keys())"
    assert clone.run(sys.executable, "-c", imported).stdout.endswith("set()\n")


def test_damaged_receipt_sends_nothing_twice(project: Clone, capsys: pytest.CaptureFixture[str]):
    receipts, uri = project.path / "mlruns/receipts.json", database(project)
    log_results(load_params())
    for content in ("", "{", "[1]", f'{{"{uri}": 1}}', f'{{"{uri}": {{}}}}', f'{{"{uri}": {{"state": null}}}}'):
        capsys.readouterr()
        receipts.write_text(content)
        log_results(load_params())
        log_results(load_params())
        (again, trusted), errors = (text.splitlines() for text in capsys.readouterr())
        assert again.startswith("MLflow shows 2 results: ")
        assert trusted.startswith("MLflow shows the current results: ")
        assert errors == []
    assert len(runs(uri)) == 3


def test_run_deleted_in_the_ui_is_sent_again_by_make_track(project: Clone):
    log_results(load_params())
    mlflow.MlflowClient().delete_run(children(database(project))["torch_loop"].info.run_id)
    log_results(load_params())
    assert children(database(project)).keys() == {"numpy_arrays"}
    log_results(load_params(), again=True)
    assert children(database(project)).keys() == TWO.keys()
    assert len(runs(database(project))) == 3


def test_deleted_store_is_filled_again(project: Clone):
    log_results(load_params())
    project.path.joinpath("mlflow.db").unlink()
    project.run(*TRACK)
    assert children(f"{database(project)}?timeout=5").keys() == TWO.keys()  # an address that MLflow has not opened yet


def test_incomplete_runs_of_a_killed_sender_are_replaced(project: Clone):
    kill = """
import os, signal
from pipeline.tracking import store
store.log_losses = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from stages import track
track.main()
"""
    assert project.run(sys.executable, "-c", kill, succeeds=False).returncode == -signal.SIGKILL
    assert [run.info.status for run in runs(database(project))].count("RUNNING") == 1
    log_results(load_params())
    statuses = [run.info.status for run in runs(database(project))]
    assert statuses == ["FINISHED"] * 3
    assert children(database(project)).keys() == TWO.keys()


def test_failed_training_is_logged_as_a_failed_run(project: Clone):
    log_results(load_params())
    params = project.params()
    project.write_params(params | {"train": params["train"] | {"learning_rate": 1e30}})
    project.run(*TRAIN, succeeds=False)
    project.write_params(params)
    (failed,) = runs(database(project), "tags.role = 'failure'")
    assert (failed.info.run_name, failed.info.status) == ("numpy_arrays", "FAILED")
    assert "the loss is" in failed.data.tags["error"]
    mlflow.MlflowClient().update_run(failed.info.run_id, "RUNNING")  # as after a kill of its sender
    log_results(load_params())
    assert {run.info.status for run in runs(database(project))} == {"FINISHED", "FAILED"}
    assert len(runs(database(project))) == 4


@pytest.mark.faults
def test_four_processes_creating_a_store_at_once_send_nothing_twice(project: Clone):
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(TRACK, cwd=project.path, **pipes) for _ in range(4)]
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert (process.returncode, errors) == (0, "")
        assert "MLflow shows" in output
    assert children(database(project)).keys() == TWO.keys()
    assert len(runs(database(project))) == 3


@pytest.mark.faults
def test_temporary_experiment_is_sent_to_the_same_store(project: Clone):
    project.write_params(project.params() | {"implementations": {"numpy_arrays": "two_layer"}})
    project.run("git", "add", "-A")
    project.run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "params")
    project.run("dvc", "exp", "run", "--temp", "-n", "elsewhere", "-S", "train.learning_rate=0.02")
    new = runs(database(project))
    assert sorted(str(run.info.run_name) for run in new) == ["elsewhere", "numpy_arrays"]
    assert {run.data.tags["dvc.experiment"] for run in new} == {"elsewhere"}
    assert {run.data.params["train.learning_rate"] for run in new} == {"0.02"}


# A running training.


def test_running_training_is_shown_and_terminated_training_is_failed(project: Clone):
    uri = database(project)
    project.set("problems.two_layer.train.steps", 100_000_000)
    process = subprocess.Popen(TRAIN, cwd=project.path, env=os.environ | {"MLFLOW_LIVE": "1"})
    try:
        losses: list[Any] = []
        while len(losses) < 3:
            assert process.poll() is None
            time.sleep(0.5)
            with suppress(sqlite3.OperationalError), closing(sqlite3.connect("file:mlflow.db?mode=ro", uri=True)) as db:
                losses = db.execute("SELECT * FROM metrics").fetchall()
    finally:
        process.terminate()
        process.wait()
        project.set("problems.two_layer.train.steps", 30)
    assert process.returncode == 143
    shown = {run.data.tags["role"]: run.info.status for run in runs(uri)}
    assert shown == {"live": "FAILED", "failure": "FAILED"}
    log_results(load_params())
    assert not runs(uri, "tags.role = 'live'")
    assert children(uri).keys() == TWO.keys()


def test_training_does_not_wait_for_a_hanging_server(project: Clone, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_LIVE", "1")
    with server_double("hangs") as double:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", double.uri)
        log = store.live_log("numpy_arrays")
        assert log
        for step in range(100_000):
            log(step, 1.0)
        assert double.requested.wait(60)
        assert not double.released.is_set()  # all calls returned before the server had answered anything


def test_training_without_mlflow_gives_one_warning(
    project: Clone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert store.live_log("numpy_arrays") is None
    monkeypatch.setenv("MLFLOW_LIVE", "1")
    assert store.live_log("numpy_arrays") is None
    (warning,) = capsys.readouterr().err.splitlines()
    assert "mlflow" in warning
    assert warning.endswith("Live logging is off; `track` sends the results.")


# A store that cannot be reached.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from running_server(tmp_path_factory.mktemp("server"))


@pytest.mark.parametrize(
    ("broken", "cause"),
    [
        ("hangs", "Read timed out"),
        ("half a body, then hangs", "timed out"),
        ("half a body", "IncompleteRead"),
        ("500", "500"),
        ("401", "401"),
        ("HTML", "hotel"),
    ],
)
def test_broken_server_gets_one_request_and_gives_one_warning(send: Send, broken: str, cause: str):
    with server_double(broken) as double:
        assert_one_warning(send(double.uri), double.uri, cause)
        assert len(double.requests) == 1


def test_unreachable_server_does_not_fail_the_pipeline(clone: Clone):
    uri = "http://user:password@127.0.0.1:9"
    done = clone.run("dvc", "repro", env={"MLFLOW_TRACKING_URI": uri})
    assert_one_warning(done.stderr, "http://127.0.0.1:9", "Connection refused")
    assert "password" not in done.stdout + done.stderr
    timeout = "import os, pipeline.tracking.store; print(int(os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT']))"
    assert clone.run(sys.executable, "-c", timeout).stdout == "5\n"


def test_password_is_sent_and_a_wrong_password_gives_a_warning(send: Send, server: str):
    with server_double(behind=server, passed=10_000, account="me:secret") as double:
        assert_one_warning(send(double.uri), double.uri, "401")
        account = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "secret"}
        account |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}  # nothing hangs here, and other tests may run
        assert send(double.uri, **account) == ""
        assert children(server).keys() == TWO.keys()
        requests = len(double.requests)
        assert send(double.uri, **account) == ""  # the receipt decides
        assert len(double.requests) == requests


def test_proxy_is_used_unless_no_proxy_names_the_server(send: Send, server: str):
    with server_double(behind=server, passed=10_000) as proxy:
        variables = {"HTTP_PROXY": proxy.uri, "http_proxy": proxy.uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
        assert send("http://mlflow.invalid", **variables, NO_PROXY="", no_proxy="") == ""
        assert proxy.requests[0].startswith("GET http://mlflow.invalid/api/")
        requests = len(proxy.requests)
        assert send(server, **variables, NO_PROXY="127.0.0.1", no_proxy="127.0.0.1") == ""
        assert len(proxy.requests) == requests
    assert children(server).keys() == TWO.keys()


@pytest.mark.faults
def test_results_lost_by_a_failing_server_are_sent_later_and_once(send: Send, tmp_path: Path):
    for server in running_server(tmp_path):
        for passed in (4, 12, 30, 60):
            with server_double("hangs", behind=server, passed=passed) as double:
                assert_one_warning(send(double.uri), double.uri)
        assert send(server, MLFLOW_HTTP_REQUEST_TIMEOUT="60") == ""
        assert children(server).keys() == TWO.keys()
        assert {run.info.status for run in runs(server)} == {"FINISHED"}
        assert len(runs(server)) == 3


def test_unusable_database_gives_one_warning(send: Send, tmp_path: Path):
    uris = {name: f"sqlite:///{tmp_path}/{name}" for name in ("no-database", "folder", "locked", "newer")}
    (tmp_path / "no-database").write_text("this is no database, but long enough to be taken for one" * 100)
    assert_one_warning(send(uris["no-database"]), uris["no-database"], "not a database")
    (tmp_path / "folder").mkdir()
    assert_one_warning(send(uris["folder"]), uris["folder"], "unable to open database file")
    new = f"sqlite:///{tmp_path}/missing/folder/new"
    assert send(new) == ""  # MLflow makes the folders
    shutil.copy(tmp_path / "missing/folder/new", tmp_path / "locked")
    with closing(sqlite3.connect(tmp_path / "locked")) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        assert_one_warning(send(uris["locked"]), uris["locked"], "database is locked")
    shutil.copy(tmp_path / "missing/folder/new", tmp_path / "newer")
    with closing(sqlite3.connect(tmp_path / "newer")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'of the year 2030'")
        connection.commit()
    assert_one_warning(send(uris["newer"]), uris["newer"], "of the year 2030")
    assert len(runs(new)) == 3


def test_read_only_database_gives_one_warning(send: Send, project: Clone, tmp_path: Path):
    assert send(f"sqlite:///{tmp_path}/first") == ""
    project.write_params(project.params() | {"seed": 5})
    folder = tmp_path / "read-only"
    folder.mkdir()
    shutil.copy(tmp_path / "first", folder / "store")
    with mounted("--bind", folder, folder):
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        done = project.run(*TRACK, env={"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/store"})
    assert_one_warning(done.stderr, f"sqlite:///{folder}/store", "readonly")


@pytest.mark.parametrize("error", [OSError("no"), MemoryError("no"), AssertionError("no"), LookupError("no")], ids=repr)
def test_any_exception_of_a_store_gives_a_warning(send: Send, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(mlflow, "MlflowClient", fail)
    assert_one_warning(send("sqlite:///x.db"), f"sqlite:///{Path.cwd()}/x.db", f"{type(error).__name__}: no")


def test_interrupt_and_damaged_result_are_raised(send: Send, project: Clone, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow, "MlflowClient", interrupt)
        with pytest.raises(KeyboardInterrupt):
            send("sqlite:///x.db")
    (project.path / "results/torch_loop/timing.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        send("sqlite:///x.db")


# The UI.


def test_runs_are_in_the_order_of_the_page(clone: Clone):
    """The newest state, then its implementations as in params.yaml; then the states before it."""
    other = clone.path.parent / "other"
    shutil.copytree(clone.path, other, symlinks=True)
    changed = Clone(other)
    changed.write_params(changed.params() | {"seed": 5})
    changed.run(*TRACK)
    mlflow.set_tracking_uri(database(changed))
    shown = mlflow.search_runs(experiment_names=["seven-ways"], order_by=["tags.`order` DESC"], output_format="list")
    states = [run.data.tags["state"] for run in shown if "state" in run.data.tags]  # pyright: ignore
    names = [run.data.tags.get("implementation", "state") for run in shown]  # pyright: ignore
    assert names == ["state", *LESSONS] * 2
    receipts = json.loads((other / "mlruns/receipts.json").read_text())
    assert states[0] == receipts[database(changed)]["state"] != states[1]


@pytest.mark.browser
def test_ui_shows_the_runs_of_the_newest_state_without_a_click(clone: Clone):
    with started_ui(clone) as (address, _):
        columns = ("parity", "held_out_loss", "step_microseconds", "worst_parity", "device")
        server, _, rest = address.partition("/#")
        assert rest == f"/experiments/1/runs?{store.TRAINING}"
        text, _ = browser.runs_page(server, *LESSONS, *columns)
    cells = text.split("\n")
    assert (cells.count("passed"), cells.count("cpu")) == (1 + len(LESSONS),) * 2
    numbers = {float(cell) for cell in cells if re.fullmatch(r"-?\d+(\.\d+)?", cell)}
    (parent,) = runs(database(clone), "tags.role = 'pipeline'")
    assert parent.data.metrics["worst_parity"] in numbers
    for run in children(database(clone)).values():
        assert {run.data.metrics[name] for name in ("worst_parity", "held_out_loss", "step_microseconds")} <= numbers


def test_ctrl_c_ends_the_ui_quietly(clone: Clone):
    with started_ui(clone) as (address, process):
        with urllib.request.urlopen(address.partition("#")[0], timeout=30) as answer:
            assert answer.status == 200
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT  # of Make itself
    assert (output, errors) == ("", "")


def test_ui_on_a_port_in_use_gives_an_error(clone: Clone):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        done = clone.run(sys.executable, "-m", "commands", "ui", port, succeeds=False)
    assert f"Port {port} of 127.0.0.1 is taken" in done.stderr


def test_ui_of_a_tracking_server_prints_its_address(clone: Clone):
    uri = "http://127.0.0.1:9"
    done = clone.run(sys.executable, "-m", "commands", "ui", "0", succeeds=False, env={"MLFLOW_TRACKING_URI": uri})
    assert done.stderr == f"ERROR: MLFLOW_TRACKING_URI names a server. Open its page: {uri}\n"
