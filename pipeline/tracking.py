"""The view of the results in MLflow. Files come first: all that is shown is read from what the stages left on disk.

A state of the pipeline (its parameters, environment, data and all results) is one parent run, with one run for each
implementation below it. `show_results` brings any store up to date: a new one, one that was away during training, or
one that has never seen results that DVC brought back without running them. What a store shows is not sent again.

The store is MLFLOW_TRACKING_URI, or mlflow.db beside params.yaml. A store that cannot be reached costs a warning.
"""

import fcntl
import hashlib
import json
import os
import platform
import sqlite3
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline import records
from pipeline.environment import Environment, framework_of
from pipeline.params import PARAMS, Params

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

EXPERIMENT = "seven-ways"
REACH_SECONDS = 3.0  # how long a server may take to answer at all

# `dvc exp run --temp` and `--queue` work in a copy of the project; DVC_ROOT names the original, where the store is.
ROOT = Path(os.environ.get("DVC_ROOT", ".")).resolve()


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, a relative sqlite path anchored at the project; by default the project's own mlflow.db."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    scheme, separator, path = uri.partition(":///")
    return f"sqlite:///{ROOT / path}" if separator and scheme == "sqlite" else uri


def show_results(params: Params) -> None:
    """Make the store show the current result of every implementation."""
    uri = tracking_uri()
    results = {name: _result(name, problem) for name, problem in params.implementations.items()}
    state = _state(params, results)
    with _lock():
        if _shown(uri, state):
            print(f"MLflow shows the current results: {os.environ.get('MLFLOW_UI', uri)}")
            return
        with _warning(uri):
            _probe(uri)
            run_ids = _send(uri, state, params, results)
            records.write_json(_receipts(), _read_receipts() | {uri: {"state": state, "run_ids": run_ids}})
            count = len(run_ids) - 1
            print(f"MLflow shows {count} result{'s' * (count > 1)}: {os.environ.get('MLFLOW_UI', uri)}")


def record_failure(name: str, problem: str, params: Params, environment: Environment, error: str) -> None:
    """Show a training that failed or was interrupted as a run marked failed."""
    uri = tracking_uri()
    with _lock(), _warning(uri):
        _probe(uri)
        client, experiment = _open(uri)
        tags = _tags(name, problem, params, environment) | {"role": "failure", "error": error[:5000]}
        run = client.create_run(experiment, run_name=name, tags=tags)
        client.log_batch(run.info.run_id, params=_params(params))
        client.set_terminated(run.info.run_id, "FAILED")


def prepare() -> str:
    """Make the store's tables if it is a new file, one process at a time, and return its URI."""
    with _lock():
        _open(tracking_uri())
    return tracking_uri()


def _send(uri: str, state: str, params: Params, results: dict[str, dict[str, Any]]) -> list[str]:
    """Create what the store lacks of this state; returns the ids of the parent run and of the implementations' runs."""
    client, experiment = _open(uri)
    mine = f"tags.checkout = '{_checkout()}'"
    for run in client.search_runs([experiment], f"{mine} and attributes.status = 'RUNNING'"):
        # The lock is ours, so whoever was sending these is dead.
        client.set_terminated(run.info.run_id, "FAILED")
    parent = _finished(client, experiment, f"tags.state = '{state}' and tags.role = 'pipeline'")
    if parent is None:
        parent = _send_parent(client, experiment, state, params)
    run_ids = [parent]
    for name, result in results.items():
        run_id = _finished(
            client, experiment, f"tags.`mlflow.parentRunId` = '{parent}' and tags.implementation = '{name}'"
        )
        run_ids.append(run_id or _send_result(experiment, parent, name, params, result))
    return run_ids


def _send_parent(client: Any, experiment: str, state: str, params: Params) -> str:
    name = os.environ.get("DVC_EXP_NAME") or f"pipeline {state[:7]}"
    environment = records.read_environment()
    tags = _state_tags(params, environment) | {"state": state, "role": "pipeline"}
    run_id = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    client.log_batch(run_id, params=_params(params))
    for path in (PARAMS, records.ENVIRONMENT, records.COMPARISON, records.REPORT):
        client.log_artifact(run_id, str(path))
    client.log_artifacts(run_id, str(records.FIGURES), "figures")
    client.set_terminated(run_id)
    return run_id


def _send_result(experiment: str, parent: str, name: str, params: Params, result: dict[str, Any]) -> str:
    import mlflow
    import numpy as np
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.numpy_dataset import from_numpy
    from mlflow.entities import Metric
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    problem = params.implementations[name]
    timing, evaluation = result["timing"], result["evaluation"]
    tags = _tags(name, problem, params, records.read_environment()) | {
        "role": "implementation",
        "device": timing["device"],
        "device_name": timing["device_name"],
        "timing.measured_at": timing["measured_at"],
        "timing.measured_on": timing["measured_on"],
        "timing.commit": timing["commit"],
        "timing.restored": str(records.restored(timing)).lower(),
    }
    with mlflow.start_run(experiment_id=experiment, run_name=name, parent_run_id=parent, tags=tags) as run:
        client, run_id, now = mlflow.MlflowClient(), run.info.run_id, int(datetime.now().timestamp() * 1000)
        metrics = [Metric("train_loss", loss, now, step) for step, loss in enumerate(records.read_history(name))]
        numbers = {key: value for key, value in (timing | evaluation).items() if isinstance(value, int | float)}
        metrics += [Metric(key, float(value), now, 0) for key, value in numbers.items()]
        for start in range(0, len(metrics), 1000):
            client.log_batch(run_id, metrics=metrics[start : start + 1000])
        client.log_batch(run_id, params=_params(params))
        arrays = _training_set(problem)
        dataset = from_numpy(
            {key: array for key, array in arrays.items() if key != "y"},
            source=CodeDatasetSource({"mlflow.source.name": "stages/generate.py"}),
            targets=arrays["y"],
            name=problem,
            digest=_md5(records.data_folder(problem) / "manifest.json"),
        )
        mlflow.log_input(dataset, context="training")
        for path in sorted(records.result_file(name, "").iterdir()):
            client.log_artifact(run_id, str(path))
        inputs = [TensorSpec(array.dtype, (-1, *array.shape[1:]), key) for key, array in arrays.items() if key != "y"]
        outputs = [TensorSpec(np.dtype(np.float64), (-1, *arrays["y"].shape[1:]))]
        mlflow.pyfunc.log_model(
            name=name,
            python_model="pipeline/served_model.py",
            artifacts={"weights": str(records.weights_file(name))},
            model_config={"problem": problem},
            code_paths=["pipeline"],
            input_example={key: np.array(array[:2]) for key, array in arrays.items() if key != "y"},
            signature=ModelSignature(Schema(inputs), Schema(outputs)),  # pyright: ignore[reportArgumentType]
            pip_requirements=[f"{package}=={_version(package)}" for package in ("mlflow", "numpy", "safetensors")],
        )
    return run_id


def _result(name: str, problem: str) -> dict[str, Any]:
    """What the store shows of an implementation, and the md5 of every file that it comes from."""
    files = ("history.csv", "metrics.json", "timing.json", "evaluation.json", "benchmark.csv", "benchmark.json")
    paths = [records.weights_file(name), *(records.result_file(name, file) for file in files)]
    return {
        "timing": records.read_json(records.result_file(name, "timing.json")),
        "evaluation": records.read_json(records.result_file(name, "evaluation.json")),
        "md5": {str(path): _md5(path) for path in [*paths, records.data_folder(problem) / "manifest.json"]},
    }


def _state(params: Params, results: Mapping[str, dict[str, Any]]) -> str:
    """A name for all that a parent run stands for; the same state has the same name in every store."""
    md5 = {name: result["md5"] for name, result in results.items()} | {"report": _md5(records.REPORT)}
    content = [params.model_dump(), records.read_json(records.ENVIRONMENT), md5]
    return hashlib.md5(json.dumps(content, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def _tags(name: str, problem: str, params: Params, environment: Environment) -> dict[str, str]:
    framework = framework_of(name)
    device, device_name = environment.device_of(framework)
    return _state_tags(params, environment) | {
        "implementation": name,
        "problem": problem,
        "framework": framework,
        "framework_version": environment.versions[framework],
        "device": device,
        "device_name": device_name,
        "dvc.stage": f"train@{name}",
        "md5.data": _md5(records.data_folder(problem) / "manifest.json"),
    }


def _state_tags(params: Params, environment: Environment) -> dict[str, str]:
    tags = {
        "checkout": _checkout(),
        "host": platform.node(),
        "device_requested": params.device,
        "device": environment.device,
        "device_name": environment.device_name,
        "precision": environment.precision,
        "deterministic": str(environment.deterministic).lower(),
        "md5.environment": _md5(records.ENVIRONMENT),
        "md5.params": _md5(PARAMS),
        "git.commit": records.git("rev-parse", "HEAD"),
        "git.dirty": "unknown"
        if (status := records.git("status", "--porcelain")) == "unknown"
        else str(bool(status)).lower(),
    }
    optional = {"dvc.experiment": "DVC_EXP_NAME", "image.digest": "IMAGE_DIGEST"}
    return tags | {tag: os.environ[variable] for tag, variable in optional.items() if variable in os.environ}


def _params(params: Params) -> list[Any]:
    from mlflow.entities import Param

    def flat(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in section.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return [Param(key, str(value)) for key, value in flat(params.model_dump(), "")]


def _training_set(problem: str) -> dict[str, Any]:
    import numpy as np

    folder = records.data_folder(problem)
    files = ((key, folder / f"train_{key}.npy") for key in ("x", "lengths", "y"))
    return {key: np.load(path, mmap_mode="r", allow_pickle=False) for key, path in files if path.exists()}


def _open(uri: str) -> tuple[Any, str]:
    """A client of the store, and the id of the experiment, which is made if it is not there."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        return client, experiment.experiment_id
    location = (ROOT / "mlruns").as_uri() if uri.startswith("sqlite:") else None
    return client, client.create_experiment(EXPERIMENT, artifact_location=location)


def _finished(client: Any, experiment: str, query: str) -> str | None:
    runs = client.search_runs([experiment], f"{query} and attributes.status = 'FINISHED'", max_results=1)
    return runs[0].info.run_id if runs else None


def _shown(uri: str, state: str) -> bool:
    """Whether the store still has the runs that were sent for this state.

    Asks the store itself, but not through mlflow, whose import alone takes longer than a `dvc repro` with nothing to do
    should. When in doubt the answer is no, and the full way finds out.
    """
    receipt = _read_receipts().get(uri, {"state": None})
    if receipt["state"] != state:
        return False
    try:
        if uri.startswith("sqlite:"):
            with sqlite3.connect(f"file:{uri.removeprefix('sqlite:///')}?mode=ro", uri=True) as store:
                active = store.execute("SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active'")
                return {run_id for (run_id,) in active}.issuperset(receipt["run_ids"])
        if uri.startswith(("http://", "https://")):
            return all(_active(f"{uri}/api/2.0/mlflow/runs/get?run_id={run_id}") for run_id in receipt["run_ids"])
    except (sqlite3.Error, OSError):
        return False
    return False


def _active(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=REACH_SECONDS) as answer:
        return json.load(answer)["run"]["info"]["lifecycle_stage"] == "active"


def _probe(uri: str) -> None:
    """Raise OSError when a server does not answer within a few seconds; MLflow itself would try for minutes."""
    if uri.startswith(("http://", "https://")):
        with suppress(urllib.error.HTTPError):  # an error is an answer, too
            urllib.request.urlopen(f"{uri}/health", timeout=REACH_SECONDS).close()


@contextmanager
def _warning(uri: str) -> Iterator[None]:
    """Turn the failure of a store into one warning: the results are on disk, and the next `dvc repro` delivers them."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        print(
            f"WARNING: MLflow at {uri} was not brought up to date: {reason}. "
            "The results are on disk; the next `dvc repro` delivers them.",
            file=sys.stderr,
        )


@contextmanager
def _lock() -> Iterator[None]:
    """One process of this checkout at a time: a new sqlite store does not survive two that make its tables at once."""
    folder = ROOT / "mlruns"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _receipts() -> Path:
    return ROOT / "mlruns" / "receipts.json"


def _read_receipts() -> dict[str, Any]:
    return records.read_json(_receipts()) if _receipts().exists() else {}


def _checkout() -> str:
    """A name for this checkout that stays the same from one container to the next."""
    path = ROOT / "mlruns" / ".checkout"
    if not path.exists():
        records.write_bytes(path, uuid.uuid4().hex.encode())
    return path.read_text()


def _md5(path: Path) -> str:
    """As md5sum has it, and dvc.lock."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
