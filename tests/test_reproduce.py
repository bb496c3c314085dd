"""A run is reproduced from its id: the verdict, and the unchanged checkout."""

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
    """Its params.yaml has an uncommitted change, as is common."""
    clone = make_clone(NUMPY)
    clone.run("dvc", "repro", env={"MLFLOW_TRACKING_URI": server})
    return clone


def newest(server: str, role: str) -> str:
    """The run that was sent last. The start of a run is the start of its training."""
    mlflow.set_tracking_uri(server)
    query = f"tags.role = '{role}'"
    runs: Any = mlflow.search_runs(experiment_names=["seven-ways"], filter_string=query, output_format="list")
    return max(runs, key=lambda run: run.info.end_time).info.run_id


def reproduced(clone: Clone, server: str, run_id: str, status: int) -> str:
    before, command = clone.digests(*TRACKED), (sys.executable, "-m", "commands", "reproduce", run_id)
    done = clone.run(*command, succeeds=None, env={"MLFLOW_TRACKING_URI": server})
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert clone.digests(*TRACKED) == before, "reproduce touched the checkout"
    assert not list((clone.path / ".dvc/tmp/reproduce").glob("*"))
    return done.stdout + done.stderr


def weights_row(output: str) -> str:
    (row,) = (line for line in output.splitlines() if line.startswith(f"{NUMPY}: weights"))
    return row


def test_abbreviated_run_id_reproduces_uncommitted_params(clone: Clone, server: str):
    run_id = newest(server, "implementation")
    output = reproduced(clone, server, run_id[:12], 0)
    assert "bitwise identical: every digest is equal" in output
    assert f"{NUMPY}: weights" in output
    verdict = json.loads((clone.path / f"reproduced/{run_id}.json").read_text())
    assert verdict["verdict"] == "bitwise identical"
    assert {row[3] for row in verdict["rows"]} >= {"yes", "not judged"}
    shown = mlflow.MlflowClient(server).get_run(newest(server, "reproduction"))
    assert shown.data.tags["reproduces"] == run_id
    assert shown.data.tags["verdict"] == "bitwise identical"


def test_state_with_an_edited_and_a_new_lesson_is_reproduced(clone: Clone, server: str):
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
    output = reproduced(clone, server, run_id, 0)
    assert "bitwise identical" in output
    assert "numpy_again: weights" in output


def test_another_clone_reproduces_with_only_the_git_history(clone: Clone, server: str, tmp_path: Path):
    run_id = newest(server, "implementation")
    subprocess.run(["git", "clone", "-q", clone.path, tmp_path / "other"], check=True)
    other = Clone(tmp_path / "other")
    assert "bitwise identical" in reproduced(other, server, run_id, 0)
    assert not (other.path / "data").exists()


def test_missing_commit_run_server_or_patch_is_reported(clone: Clone, server: str, tmp_path: Path):
    run_id = newest(server, "implementation")
    other = Clone(tmp_path / "unrelated")
    shutil.copytree(clone.path, other.path, ignore=shutil.ignore_patterns(".git", "data", "models", "results", ".dvc"))
    shutil.copytree(clone.path / ".dvc", other.path / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    other.run("git", "init", "-q")
    other.commit()
    output = reproduced(other, server, run_id, 2)
    assert "is not in this clone. Fetch it: git fetch origin " in output
    output = reproduced(clone, server, "zzz", 2)
    assert output == "ERROR: No runs of the store have an id that begins with zzz. Give more digits.\n"
    assert "MLflow at http://127.0.0.1:9 cannot be read" in reproduced(clone, "http://127.0.0.1:9", "zzz", 2)
    client = mlflow.MlflowClient(server)
    parent = client.get_run(run_id).data.tags["mlflow.parentRunId"]
    client.set_tag(parent, "reproducible", "what differs from its commit are 9,000,000 bytes")
    assert "cannot: what differs from its commit are" in reproduced(clone, server, run_id, 2)
    client.set_tag(parent, "reproducible", "yes")


def another_run(client: mlflow.MlflowClient, experiment: str = "seven-ways", **tags: str) -> str:
    logged = client.get_experiment_by_name(experiment)
    identifier = logged.experiment_id if logged else client.create_experiment(experiment)
    return client.create_run(identifier, tags=tags).info.run_id


@pytest.mark.parametrize(
    ("tags", "sentence"),
    [
        ({}, "was not logged by `dvc repro` here"),
        ({"role": "failure", "implementation": NUMPY}, "is a run that failed"),
        ({"role": "live", "implementation": NUMPY}, "is the run of a training that was under way"),
        ({"role": "reproduction", "reproduces": "abc"}, "is a reproduction. Take the run that it reproduces: abc"),
        ({"role": "reproduction"}, "has no tag reproduces"),
        ({"role": "pipeline"}, "was not sent completely"),
        ({"role": "implementation", "mlflow.parentRunId": "f" * 32}, "not found"),
        ({"role": "pipeline", "experiment": "another"}, "No runs of the store have an id that begins with"),
    ],
    ids=str,
)
def test_run_of_another_kind_is_refused_with_the_reason(clone: Clone, server: str, tags: dict[str, str], sentence: str):
    client = mlflow.MlflowClient(server)
    run_id = another_run(client, **tags)
    assert sentence in reproduced(clone, server, run_id, 2)
    export = (sys.executable, "-m", "commands", "export", run_id)
    done = clone.run(*export, succeeds=False, env={"MLFLOW_TRACKING_URI": server})
    assert sentence in done.stderr
    client.delete_run(run_id)


@pytest.mark.parametrize("name", ["git.commit", "implementation", "md5.weights"])
def test_run_without_a_tag_or_its_children_cannot_be_reproduced(clone: Clone, server: str, name: str):
    client = mlflow.MlflowClient(server)
    child = newest(server, "implementation")
    parent = client.get_run(child).data.tags["mlflow.parentRunId"]
    owner = parent if name == "git.commit" else child
    value = client.get_run(owner).data.tags[name]
    client.delete_tag(owner, name)
    assert f"cannot: the run {owner} has no tag {name}" in reproduced(clone, server, parent, 2)
    client.set_tag(owner, name, value)


def test_make_prints_the_exit_status_of_the_command(clone: Clone):
    for arguments, status in ((["RUN=zzz"], "Error 2"), ([], "Error 1")):
        done = clone.run("make", "reproduce", *arguments, succeeds=None, env={"SEVEN_WAYS_IMAGE": "none"})
        assert done.returncode == 2
        assert status in done.stderr


def test_one_changed_bit_of_a_weight_is_reported_as_differing(clone: Clone, server: str):
    path = clone.path / f"models/{NUMPY}/weights.safetensors"
    weights = {key: array.copy() for key, array in read_arrays(path).items()}
    bits = weights["w2"].view(np.uint32)
    bits[0, 0] ^= 1
    write_arrays(path, weights)
    clone.run(sys.executable, "-m", "stages.track", env={"MLFLOW_TRACKING_URI": server})
    parent = newest(server, "pipeline")
    output = reproduced(clone, server, parent, 1)
    assert "differs: although hardware and versions are the same" in output
    assert weights_row(output).endswith("| no")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU")
def test_weights_on_more_cpus_are_within_tolerance(make_clone: Callable[..., Clone], server: str):
    """Each run is real: BLAS adds up in another order with one thread than with two, where products are large."""
    clone = make_clone(NUMPY)
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    clone.write_params(clone.params() | {"problems": params["problems"], "train": params["train"]})
    cpu = str(min(os.sched_getaffinity(0)))
    clone.run("taskset", "-c", cpu, str(DVC), "repro", env={"MLFLOW_TRACKING_URI": server})
    output = reproduced(clone, server, newest(server, "implementation"), 0)
    assert "within tolerance: these differ: threads was 1, is " in output
    assert weights_row(output).endswith("| no")


def test_variable_that_changes_last_bits_is_named(make_clone: Callable[..., Clone], server: str):
    """Each run is real: OpenBLAS multiplies with the instructions of the processor that the variable names."""
    clone = make_clone(NUMPY)
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    clone.write_params(clone.params() | {"problems": params["problems"], "train": params["train"]})
    clone.set("problems.two_layer.train.steps", 50)
    clone.run("dvc", "repro", env={"MLFLOW_TRACKING_URI": server, "OPENBLAS_CORETYPE": "Nehalem"})
    output = reproduced(clone, server, newest(server, "implementation"), 0)
    assert "within tolerance: these differ: OPENBLAS_CORETYPE was Nehalem, is " in output
    assert weights_row(output).endswith("| no")
