"""MLflow, read back through its own client: what is shown, once, in any store, reachable or not."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import mlflow
import numpy as np
import pytest
from conftest import Clone, outside_variables
from mlflow.entities import Run

from pipeline.array_files import read_arrays
from pipeline.clock import BUSY, TIME_BREAKDOWN
from pipeline.contract import load_problem
from pipeline.training import progress

# MLflow, in this process, uses what SQLAlchemy deprecates and warns of its own types: not ours to fix.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload``", "ignore:.*Any type hint is inferred")

TWO = {"numpy_arrays": "two_layer", "torch_loop": "recurrent"}
TRACK = (sys.executable, "-m", "stages.track")


@pytest.fixture(scope="module")
def clone(make_clone: Callable[..., Clone]) -> Clone:
    clone = make_clone(*TWO)
    clone.run("dvc", "repro")
    return clone


def runs(uri: str | Path, query: str = "") -> list[Run]:
    mlflow.set_tracking_uri(f"sqlite:///{uri}" if isinstance(uri, Path) else uri)
    return mlflow.search_runs(experiment_names=["seven-ways"], filter_string=query, output_format="list")  # pyright: ignore


def rows(store: Path) -> int:
    """How many runs a sqlite store holds, asked without disturbing whoever is writing it."""
    try:
        with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
            return connection.execute("SELECT count(*) FROM runs").fetchone()[0]
    except sqlite3.OperationalError:  # no file or no tables yet
        return 0


def children(uri: str | Path) -> dict[str, Run]:
    found = runs(uri, "tags.role = 'implementation'")
    assert len({run.info.run_name for run in found}) == len(found), "an implementation is shown twice"
    return {str(run.info.run_name): run for run in found}


def seconds(run: Run) -> float:
    assert run.info.end_time is not None
    return (run.info.end_time - run.info.start_time) / 1000


def test_a_run_for_each_implementation_below_a_parent(clone: Clone):
    store = clone.path / "mlflow.db"
    (parent,) = runs(store, "tags.role = 'pipeline'")
    client = mlflow.MlflowClient()
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} >= {
        "report.html",
        "lessons.html",
        "comparison.json",
        "benchmark.csv",
    }
    assert "figures/time_breakdown.svg" in {file.path for file in client.list_artifacts(parent.info.run_id, "figures")}
    shown = children(store)
    assert shown.keys() == TWO.keys()
    for name, run in shown.items():
        assert run.info.status == "FINISHED"
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert {"timing.json", "evaluation.json"} <= files
        tags, metrics, params = run.data.tags, run.data.metrics, run.data.params
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["implementation"] == name
        assert tags["problem"] == TWO[name]
        assert tags["framework"] == name.split("_")[0]
        assert tags["framework_version"]
        assert (tags["device_requested"], tags["device"]) == ("auto", "cpu")
        assert tags["device_name"]
        assert len(tags["git.commit"]) == 40
        assert tags["git.dirty"] == "true"  # params.yaml is changed
        assert tags["dvc.stage"] == f"train@{name}"
        assert tags["timing.restored"] == "false"
        assert tags["parity"] == "passed"
        assert {"md5.data", "md5.environment", "md5.params", "timing.measured_at"} <= tags.keys()
        md5 = subprocess.run(["md5sum", clone.path / "params.yaml"], capture_output=True, text=True, check=True).stdout
        assert tags["md5.params"] == md5.split()[0]
        assert {
            "held_out_loss",
            "r2",
            "gradient_relative_error",
            "step_microseconds",
            *(f"{line}_seconds" for line in TIME_BREAKDOWN),
        } <= metrics.keys()
        quiet = json.loads((clone.path / "results/benchmark.json").read_text())["cpus_of_other_processes"] <= BUSY
        assert ({"times_lower_bound", "times_lower_bound_from"} <= metrics.keys()) == quiet
        assert params["train.learning_rate"] == "0.05"
        assert params[f"data.{TWO[name]}.inputs"] == ("20" if TWO[name] == "two_layer" else "4")
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train_loss")
        losses = np.loadtxt(clone.path / f"results/{name}/history.csv", delimiter=",", skiprows=1)
        assert [(point.step, point.value) for point in history] == [(step, loss) for step, loss in losses]


def test_a_run_says_when_it_ran_where_it_comes_from_and_what_came_of_it(clone: Clone):
    store = clone.path / "mlflow.db"
    for name, run in children(store).items():
        timing = json.loads((clone.path / f"results/{name}/timing.json").read_text())
        assert seconds(run) == pytest.approx(timing["wall_seconds"], abs=0.01)
        tags = run.data.tags
        assert tags["mlflow.source.git.commit"] == timing["commit"][:40]
        assert tags["mlflow.source.name"] == f"stages/train.py {name}"
        assert f"{timing['device_name']}, {timing['threads']} threads" in tags["mlflow.note.content"]
        assert "| Parity | passed |" in tags["mlflow.note.content"]
    (parent,) = runs(store, "tags.role = 'pipeline'")
    assert 3 < seconds(parent) < 300
    assert "numpy_arrays" in parent.data.tags["mlflow.note.content"]
    assert {
        "worst_parity.gradient",
        "claims_that_hold",
        "step_microseconds.torch_loop",
        "wall_seconds",
    } <= parent.data.metrics.keys()
    assert parent.data.metrics["wall_seconds"] == seconds(parent)
    client = mlflow.MlflowClient()
    certificate = client.load_table(parent.info.experiment_id, "certificate.json", run_ids=[parent.info.run_id])
    assert set(certificate["implementation"]) == set(TWO)
    experiment = mlflow.MlflowClient().get_experiment_by_name("seven-ways")
    assert experiment
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_model_that_passed_parity_is_registered_and_has_its_numbers(clone: Clone):
    client = mlflow.MlflowClient(f"sqlite:///{clone.path / 'mlflow.db'}")
    for name, run in children(clone.path / "mlflow.db").items():
        version = client.get_model_version_by_alias(name, "parity-passed")
        assert version.run_id == run.info.run_id
        model = mlflow.pyfunc.load_model(f"models:/{name}@parity-passed")
        folder = clone.path / "data" / TWO[name]
        inputs = {key: np.load(path) for key in ("x", "lengths") if (path := folder / f"test_{key}.npy").exists()}
        weights = read_arrays(clone.path / f"models/{name}/weights.safetensors")
        np.testing.assert_allclose(model.predict(inputs), load_problem(TWO[name]).predict(weights, *inputs.values()))
        assert run.outputs
        logged = client.get_logged_model(run.outputs.model_outputs[0].model_id)
        assert {"held_out_loss", "r2"} <= {metric.key for metric in logged.metrics or []}


@pytest.mark.faults
def test_a_clean_environment_with_the_recorded_requirements_predicts(clone: Clone, tmp_path: Path):
    mlflow.set_tracking_uri(f"sqlite:///{clone.path / 'mlflow.db'}")
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
    found = tmp_path / "predictions.npy"
    environment = outside_variables() | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    command = [python, "-I", "-c", predict, clone.path / "data/recurrent", found]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    weights = read_arrays(clone.path / "models/torch_loop/weights.safetensors")
    inputs = [np.load(clone.path / f"data/recurrent/test_{key}.npy") for key in ("x", "lengths")]
    np.testing.assert_allclose(np.load(found), load_problem("recurrent").predict(weights, *inputs))


def test_the_training_set_with_a_true_digest(clone: Clone):
    for name, run in children(clone.path / "mlflow.db").items():
        assert run.inputs
        (dataset,) = run.inputs.dataset_inputs
        manifest = clone.path / "data" / TWO[name] / "manifest.json"
        md5 = subprocess.run(["md5sum", manifest], capture_output=True, text=True, check=True).stdout.split()[0]
        assert (dataset.dataset.name, dataset.dataset.digest) == (TWO[name], md5)


def test_the_model_loads_and_predicts_and_nothing_is_pickled(clone: Clone):
    store = clone.path / "mlflow.db"
    for name in children(store):
        (model,) = mlflow.search_logged_models(  # pyright: ignore[reportAttributeAccessIssue]
            experiment_ids=[runs(store)[0].info.experiment_id], filter_string=f"name = '{name}'", output_format="list"
        )
        folder = clone.path / "data" / TWO[name]
        inputs = {key: np.load(path) for key in ("x", "lengths") if (path := folder / f"test_{key}.npy").exists()}
        weights = read_arrays(clone.path / f"models/{name}/weights.safetensors")
        expected = load_problem(TWO[name]).predict(weights, *inputs.values())
        np.testing.assert_allclose(mlflow.pyfunc.load_model(model.model_uri).predict(inputs), expected, rtol=1e-12)
        files = [path for path in Path(model.artifact_location.removeprefix("file://")).rglob("*") if path.is_file()]
        assert files
        assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".joblib")]


def test_what_git_ignores_is_not_sent(clone: Clone, tmp_path: Path):
    secret = clone.path / "pipeline/secret.key"
    secret.write_text("a password")
    with (clone.path / ".git/info/exclude").open("a") as file:
        file.write("/pipeline/secret.key\n")
    try:
        store = tmp_path / "no-secret.db"
        clone.run(*TRACK, env={"MLFLOW_TRACKING_URI": f"sqlite:///{store}"})
        assert children(store).keys() == TWO.keys()
    finally:
        secret.unlink()
    sent = [path for path in (clone.path / "mlruns").rglob("*") if path.is_file()]
    assert any(path.name == "served_model.py" for path in sent)
    assert not [path for path in sent if path.name == "secret.key" or b"a password" in path.read_bytes()]


def test_nothing_is_sent_twice(clone: Clone):
    before = len(runs(clone.path / "mlflow.db"))
    for _ in range(2):
        assert "shows the current results" in clone.run(*TRACK).stdout
    (clone.path / "mlruns/receipts.json").rename(clone.path / "mlruns/gone.json")
    assert "shows 2 results" in clone.run(*TRACK).stdout
    assert len(runs(clone.path / "mlflow.db")) == before


def test_a_new_store_is_filled_without_training(clone: Clone, tmp_path: Path):
    store = tmp_path / "new.db"
    assert clone.stages_run("dvc", "repro") == []
    clone.run("dvc", "repro", env={"MLFLOW_TRACKING_URI": f"sqlite:///{store}"})
    assert children(store).keys() == TWO.keys()
    store.unlink()
    clone.run("dvc", "repro", env={"MLFLOW_TRACKING_URI": f"sqlite:///{store}"})
    shown = children(store)
    assert shown.keys() == TWO.keys()
    assert {run.data.tags["timing.restored"] for run in shown.values()} == {"true"}


def test_a_run_deleted_in_the_ui_comes_back(clone: Clone):
    store = clone.path / "mlflow.db"
    client = mlflow.MlflowClient(f"sqlite:///{store}")
    client.delete_run(children(store)["torch_loop"].info.run_id)
    assert "torch_loop" not in children(store)
    clone.run(*TRACK)
    assert children(store).keys() == TWO.keys()


def test_a_sender_that_was_killed_leaves_no_run_running(clone: Clone, tmp_path: Path):
    store = tmp_path / "killed.db"
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    process = subprocess.Popen(TRACK, cwd=clone.path, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while rows(store) < 2:  # until the first implementation's run is there
        assert time.monotonic() < deadline
    process.kill()
    process.wait()
    clone.run(*TRACK, env={"MLFLOW_TRACKING_URI": f"sqlite:///{store}"})
    found = runs(store)
    assert not [run for run in found if run.info.status == "RUNNING"]
    finished = [
        run.info.run_name for run in found if run.info.status == "FINISHED" and run.data.tags["role"] != "pipeline"
    ]
    assert set(finished) == set(TWO)
    assert len(finished) == len(TWO)


def test_a_stage_that_dies_is_a_failed_run(clone: Clone, tmp_path: Path):
    store = tmp_path / "failed.db"
    params = clone.params()
    clone.write_params(params | {"train": params["train"] | {"learning_rate": 1e30}})
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    clone.run(sys.executable, "-m", "stages.train", "numpy_arrays", succeeds=False, env=environment)
    clone.write_params(params)
    (run,) = runs(store)
    assert (run.info.run_name, run.info.status) == ("numpy_arrays", "FAILED")
    assert "the loss is" in run.data.tags["error"]


def test_what_a_killed_report_of_a_failure_left_is_ended_by_the_next(clone: Clone, tmp_path: Path):
    store, params = tmp_path / "left.db", clone.params()
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    clone.run(*TRACK, env=environment)
    clone.write_params(params | {"train": params["train"] | {"learning_rate": 1e30}})
    clone.run(sys.executable, "-m", "stages.train", "numpy_arrays", succeeds=False, env=environment)
    clone.write_params(params)
    (failed,) = runs(store, "tags.role = 'failure'")
    mlflow.MlflowClient().update_run(failed.info.run_id, "RUNNING")  # as if it had been killed before it ended it
    clone.run(*TRACK, env=environment)
    assert not [run for run in runs(store) if run.info.status == "RUNNING"]
    assert children(store).keys() == TWO.keys()


def test_a_terminated_stage_is_a_failed_run(clone: Clone, tmp_path: Path):
    store = tmp_path / "terminated.db"
    params = clone.params()
    steps = params["train"]["two_layer"] | {"steps": 100_000_000}
    clone.write_params(params | {"train": params["train"] | {"two_layer": steps}})
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.train", "numpy_arrays"],
        cwd=clone.path,
        env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}"},
    )
    time.sleep(4)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    clone.write_params(params)
    (run,) = runs(store)
    assert run.info.status == "FAILED"


@pytest.mark.faults
def test_a_training_under_way_can_be_watched(clone: Clone, tmp_path: Path):
    store, params = tmp_path / "live.db", clone.params()
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{store}", "MLFLOW_LIVE": "1"}
    steps = params["train"]["two_layer"] | {"steps": 100_000_000}
    clone.write_params(params | {"train": params["train"] | {"two_layer": steps}})
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.train", "numpy_arrays"], cwd=clone.path, env=os.environ | environment
    )
    try:
        seen, deadline = 0, time.monotonic() + 300  # on a machine that is busy with other tests
        while seen < 3:
            assert time.monotonic() < deadline
            if rows(store):
                (run,) = runs(store)
                assert (run.info.status, run.data.tags["role"]) == ("RUNNING", "live")
                seen = len(mlflow.MlflowClient().get_metric_history(run.info.run_id, "train_loss"))
            time.sleep(0.3)
    finally:
        process.terminate()
        process.wait()
        clone.write_params(params)
    clone.run("dvc", "repro", env=environment)
    assert not runs(store, "tags.role = 'live'")
    assert children(store).keys() == TWO.keys()
    assert not [run for run in runs(store) if run.info.status == "RUNNING"]


def test_a_server_that_hangs_keeps_no_training_waiting(clone: Clone, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(clone.path)
    monkeypatch.setattr(progress, "LIVE_SECONDS", 0.0)
    with proxy("hangs") as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        live = progress.Live("numpy_arrays")
        start = time.monotonic()
        for step in range(50_000):
            live.show(step, 1.0)
        assert time.monotonic() - start < 2.5  # 50 µs each, of calls that take milliseconds to seconds
        live.close()


def test_first_use_by_four_processes_at_once(clone: Clone, tmp_path: Path):
    store = tmp_path / "four.db"
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    four = [
        subprocess.Popen(
            TRACK, cwd=clone.path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in four:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "WARNING" not in errors
        assert "MLflow shows" in output
    assert children(store).keys() == TWO.keys()
    assert len(runs(store)) == 3


def test_temporary_experiments_land_in_the_same_store(clone: Clone):
    store = clone.path / "mlflow.db"
    clone.run("git", "add", "-A")
    clone.run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "params")
    before = {run.info.run_id for run in runs(store)}
    clone.run("dvc", "exp", "run", "--temp", "-n", "elsewhere", "-S", "train.learning_rate=0.02")
    new = [run for run in runs(store) if run.info.run_id not in before]
    assert sorted(str(run.info.run_name) for run in new) == ["elsewhere", *sorted(TWO)]
    assert {run.data.tags["dvc.experiment"] for run in new} == {"elsewhere"}
    assert {run.data.params["train.learning_rate"] for run in new} == {"0.02"}


@pytest.mark.parametrize("address", ["closed", "silent"])
def test_an_unreachable_server_costs_a_warning_and_seconds(clone: Clone, address: str):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if address == "closed":
            listener.close()
        start = time.monotonic()
        done = clone.run("dvc", "repro", env={"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"})
        assert time.monotonic() - start < 15
    assert done.stderr.count("WARNING") == 1
    assert "the next `dvc repro` delivers them" in done.stderr


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    yield from running_server(tmp_path)


def running_server(tmp_path: Path) -> Iterator[str]:
    """A tracking server with a store of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        f"{sys.executable} -m mlflow server --port {port} --workers 1 "
        f"--backend-store-uri sqlite:///{tmp_path}/server.db --artifacts-destination {tmp_path}/artifacts".split(),
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not answers(port):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_server_that_could_not_be_reached_is_brought_up_to_date(clone: Clone, server: str):
    environment = {"MLFLOW_TRACKING_URI": server}
    assert "shows 2 results" in clone.run("dvc", "repro", env=environment).stdout
    assert children(server).keys() == TWO.keys()
    assert "shows the current results" in clone.run("dvc", "repro", env=environment).stdout
    assert len(runs(server)) == 3


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on to a server, but answers the last of `passed` as no server should."""

    behind, passed, broken = "", 0, ""

    def do_GET(self) -> None:
        if self.path == "/health" or type(self).passed > 0:
            type(self).passed -= self.path != "/health"
            return self.pass_on()
        kind = self.broken
        if kind == "hangs":
            time.sleep(30)
        elif kind.isdigit():
            self.answer(int(kind), b"no")
        elif kind == "HTML":
            self.answer(200, b"<html>Welcome to the hotel's network</html>")
        else:  # half a body, then nothing or the end
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"run": {')
            self.wfile.flush()
            if kind == "hangs in the middle":
                time.sleep(30)
            self.close_connection = True
        return None

    do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815 (as http.server has them)

    def pass_on(self) -> None:
        if not self.behind:
            return self.answer(200, b"OK")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
        request = urllib.request.Request(self.behind + self.path, body, headers, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                self.answer(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            self.answer(error.code, error.read())
        return None

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def proxy(broken: str, behind: str = "", passed: int = 0) -> Iterator[str]:
    handler = type("Handler", (Proxy,), {"behind": behind, "passed": passed, "broken": broken})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def tracked(clone: Clone, uri: str) -> str:
    """What `track` says to stderr, within ten seconds of it."""
    start = time.monotonic()
    done = clone.run(*TRACK, env={"MLFLOW_TRACKING_URI": uri})
    assert time.monotonic() - start < 10 + 3  # 3 for starting Python and importing MLflow
    return done.stderr


@pytest.mark.faults
@pytest.mark.parametrize(
    "broken", ["hangs", "hangs in the middle", "500", "401", "403", "HTML", "half a body"], ids=lambda kind: kind
)
def test_a_server_that_answers_as_none_should_costs_a_sentence(clone: Clone, broken: str):
    with proxy(broken) as uri:
        said = tracked(clone, uri)
    assert said.count("WARNING: MLflow at http://127.0.0.1") == 1
    assert len(said.splitlines()) == 1, said
    assert "the next `dvc repro` delivers them" in said


@pytest.mark.faults
def test_what_a_server_lost_in_the_middle_is_delivered_later_and_nothing_twice(clone: Clone, server: str):
    for passed in (4, 12, 30):
        with proxy("hangs", behind=server, passed=passed) as uri:
            assert "WARNING" in tracked(clone, uri)
    assert "WARNING" not in clone.run(*TRACK, env={"MLFLOW_TRACKING_URI": server}).stderr
    found = runs(server)
    assert not [run for run in found if run.info.status == "RUNNING"]
    finished = [run for run in found if run.info.status == "FINISHED"]
    assert sorted(str(run.info.run_name) for run in finished if run.data.tags["role"] != "pipeline") == sorted(TWO)
    assert len(finished) == 3


@pytest.mark.faults
def test_a_store_that_is_locked_or_of_a_newer_mlflow(clone: Clone, tmp_path: Path):
    store = tmp_path / "other.db"
    clone.run(*TRACK, env={"MLFLOW_TRACKING_URI": f"sqlite:///{store}"})
    (clone.path / "mlruns/receipts.json").unlink()
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        assert "database is locked" in tracked(clone, f"sqlite:///{store}")
        connection.execute("ROLLBACK")
        connection.execute("UPDATE alembic_version SET version_num = 'of the year 2030'")
        connection.commit()
    assert "out-of-date" in tracked(clone, f"sqlite:///{store}") or "schema" in tracked(clone, f"sqlite:///{store}")
    with closing(sqlite3.connect(store)) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (3,)


def test_a_store_that_is_no_store_costs_a_warning(clone: Clone, tmp_path: Path):
    store = tmp_path / "broken.db"
    store.write_text("this is no database, but long enough to be taken for one" * 100)
    done = clone.run(*TRACK, env={"MLFLOW_TRACKING_URI": f"sqlite:///{store}"})
    assert "WARNING: MLflow at sqlite" in done.stderr


def test_the_ui_on_a_port_that_is_taken(clone: Clone):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        done = clone.run(sys.executable, "-m", "commands.ui", port, succeeds=False)
    assert f"port {port} of 127.0.0.1 is taken" in done.stderr


def test_the_ui_of_a_server_is_the_servers(clone: Clone):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"  # which never answers
        done = clone.run(sys.executable, "-m", "commands.ui", "0", succeeds=False, env={"MLFLOW_TRACKING_URI": uri})
    assert done.stderr == f"ERROR: MLFLOW_TRACKING_URI names a server, and its UI is there: {uri}\n"
