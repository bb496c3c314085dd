"""A run again from its id: the verdict, and that nothing of the user's is touched."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml
from conftest import DVC, REPOSITORY, Clone
from test_tracking import running_server

from pipeline.array_files import read_arrays, write_arrays

pytestmark = [
    pytest.mark.faults,
    pytest.mark.filterwarnings("ignore:The ``noload``", "ignore:.*Any type hint is inferred"),
]

NUMPY = "numpy_arrays"
TRACKED = ("params.yaml", "dvc.lock", "models/**/*.*", "results/**/*.*", "data/**/*.*", ".dvc/config")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from running_server(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def clone(make_clone: Callable[..., Clone], server: str) -> Clone:
    """Its params.yaml is edited and not committed, as nearly always."""
    clone = make_clone(NUMPY)
    clone.run("dvc", "repro", env={"MLFLOW_TRACKING_URI": server})
    return clone


def newest(server: str, role: str) -> str:
    """The run that was sent last: runs are given the time of their training."""
    mlflow.set_tracking_uri(server)
    found: Any = mlflow.search_runs(
        experiment_names=["seven-ways"], filter_string=f"tags.role = '{role}'", output_format="list"
    )
    return max(found, key=lambda run: run.info.end_time).info.run_id


def again(clone: Clone, server: str, run_id: str, status: int) -> str:
    before = clone.digests(*TRACKED)
    done = clone.run(
        *[sys.executable, "-m", "commands.reproduce", run_id], succeeds=None, env={"MLFLOW_TRACKING_URI": server}
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert clone.digests(*TRACKED) == before, "reproduce touched the checkout"
    assert not list((clone.path / ".dvc/tmp/reproduce").glob("*"))
    return done.stdout + done.stderr


def test_an_edited_params_file_from_the_beginning_of_an_id(clone: Clone, server: str):
    run_id = newest(server, "implementation")
    said = again(clone, server, run_id[:12], 0)
    assert "bitwise identical: every digest is equal" in said
    assert f"| {NUMPY}: weights | " in said
    verdict = json.loads((clone.path / f"reproduced/{run_id}.json").read_text())
    assert verdict["verdict"] == "bitwise identical"
    assert {row["equal"] for row in verdict["rows"]} >= {"yes", "not judged"}
    shown = mlflow.MlflowClient(server).get_run(newest(server, "reproduction"))
    assert shown.data.tags["reproduces"] == run_id
    assert shown.data.tags["verdict"] == "bitwise identical"


def test_a_whole_state_with_an_edited_and_a_new_lesson(clone: Clone, server: str):
    lesson = clone.path / f"pipeline/lessons/two_layer/{NUMPY}.py"
    text = lesson.read_text()
    lesson.write_text(text.replace("2 * (y_pred - y) / y.size", "(y_pred - y) * (2 / y.size)"))
    (clone.path / "pipeline/lessons/two_layer/numpy_again.py").write_text(text)
    secret = clone.path / "mlruns/secret.txt"  # which git ignores
    secret.write_text("a password")
    clone.edit("params.yaml", f"{NUMPY}: two_layer", f"{NUMPY}: two_layer\n  numpy_again: two_layer")
    clone.run("dvc", "repro", env={"MLFLOW_TRACKING_URI": server})
    run_id = newest(server, "pipeline")
    patch = Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="changes.patch")).read_text()  # pyright: ignore
    assert "numpy_again.py" in patch
    assert "a password" not in patch
    assert "dvc.lock" not in patch
    said = again(clone, server, run_id, 0)
    assert "bitwise identical" in said
    assert "| numpy_again: weights | " in said


def test_from_another_clone_with_git_history_alone(clone: Clone, server: str, tmp_path: Path):
    run_id = newest(server, "implementation")
    subprocess.run(["git", "clone", "-q", clone.path, tmp_path / "other"], check=True)
    other = Clone(tmp_path / "other")
    assert "bitwise identical" in again(other, server, run_id, 0)
    assert not (other.path / "data").exists()


def test_what_cannot_be_reproduced(clone: Clone, server: str, tmp_path: Path):
    run_id = newest(server, "implementation")
    other = Clone(tmp_path / "unrelated")
    shutil.copytree(clone.path, other.path, ignore=shutil.ignore_patterns(".git", "data", "models", "results", ".dvc"))
    shutil.copytree(clone.path / ".dvc", other.path / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    other.run("git", "init", "-q")
    other.run("git", "add", "-A")
    other.run("git", *identity, "commit", "-qm", "another history")
    said = again(other, server, run_id, 2)
    assert "is not in this clone. Fetch it: git fetch origin " in said
    done = clone.run(
        sys.executable, "-m", "commands.reproduce", "zzz", succeeds=False, env={"MLFLOW_TRACKING_URI": server}
    )
    assert done.stderr == "ERROR: No runs of the store have an id that begins with zzz. Give more of it.\n"
    nobody = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = clone.run(sys.executable, "-m", "commands.reproduce", "zzz", succeeds=False, env=nobody)
    assert "MLflow at http://127.0.0.1:9 cannot be read" in done.stderr
    client = mlflow.MlflowClient(server)
    parent = client.get_run(run_id).data.tags["mlflow.parentRunId"]
    client.set_tag(parent, "reproducible", "what differs from its commit are 9,000,000 bytes")
    assert "cannot: what differs from its commit are" in again(clone, server, run_id, 2)
    client.set_tag(parent, "reproducible", "yes")


def test_a_weights_last_bit_is_found(clone: Clone, server: str):
    path = clone.path / f"models/{NUMPY}/weights.safetensors"
    weights = {key: array.copy() for key, array in read_arrays(path).items()}
    bits = weights["w2"].view(np.uint32)
    bits[0, 0] ^= 1
    write_arrays(path, weights)
    clone.run(sys.executable, "-m", "stages.track", env={"MLFLOW_TRACKING_URI": server})
    parent = newest(server, "pipeline")
    said = again(clone, server, parent, 1)
    assert "differs: although hardware and versions are the same" in said
    (row,) = (line for line in said.splitlines() if line.startswith(f"| {NUMPY}: weights"))
    assert row.endswith("| no |")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU")
def test_on_more_cpus_the_weights_differ_within_tolerance(make_clone: Callable[..., Clone], server: str):
    """Each run is real: BLAS adds up in another order with one thread than with two, where products are large."""
    clone = make_clone(NUMPY)
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    clone.write_params(clone.params() | {"data": params["data"], "train": params["train"]})
    cpu = str(min(os.sched_getaffinity(0)))
    clone.run("taskset", "-c", cpu, str(DVC), "repro", env={"MLFLOW_TRACKING_URI": server})
    said = again(clone, server, newest(server, "implementation"), 0)
    assert "within tolerance: these differ: threads was 1, is " in said
    (row,) = (line for line in said.splitlines() if line.startswith(f"| {NUMPY}: weights"))
    assert row.endswith("| no |")
