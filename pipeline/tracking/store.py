"""An MLflow store, and the protocol of sending to it: one sender at a time, nothing twice, and a store that cannot be
reached costs a warning.

The store is MLFLOW_TRACKING_URI, or mlflow.db beside params.yaml.
"""

import fcntl
import hashlib
import json
import os
import sqlite3
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.errors import UserError

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A server that does not answer costs seconds, not minutes: the next `dvc repro` tries again.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

EXPERIMENT = "seven-ways"
# The part of the UI that shows training runs, and the columns of its page: the address names a tag of the experiment.
TRAINING = "workflowType=machine_learning&viewStateShareKey=columns"
COLUMNS = {
    "attributes.`Duration`": 90,
    "tags.`parity`": 90,
    "metrics.`held_out_loss`": 120,
    "metrics.`r2`": 90,
    "metrics.`step_microseconds`": 150,
    "metrics.`times_lower_bound`": 150,
    "tags.`device_name`": 150,
}
VIEW = {
    "mlflow.sharedViewState.columns": json.dumps(
        {"selectedColumns": list(COLUMNS), "columnOrder": list(COLUMNS), "columnWidths": COLUMNS}
    ),
    # This version of MLflow's UI takes the kind from the address; others take it from the tag.
    "mlflow.experimentKind": "custom_model_development",
}
REACH_SECONDS = 3.0  # how long a server may take to answer at all

# `dvc exp run --temp` and `--queue` work in a copy of the project; DVC_ROOT names the original, where the store is.
ROOT = Path(os.environ.get("DVC_ROOT", ".")).resolve()


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, a relative sqlite path anchored at the project; by default the project's own mlflow.db."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    scheme, separator, path = uri.partition(":///")
    return f"sqlite:///{ROOT / path}" if separator and scheme == "sqlite" else uri


def prepare() -> tuple[str, str]:
    """Make the store's tables if it is a new file, one process at a time; its URI and the experiment's id."""
    with lock():
        return tracking_uri(), open_store(tracking_uri())[1]


def open_store(uri: str) -> tuple[Any, str]:
    """A client of the store, and the id of the experiment, which is made if it is not there."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        for key, value in VIEW.items():
            if experiment.tags.get(key) != value:
                client.set_experiment_tag(experiment.experiment_id, key, value)
        return client, experiment.experiment_id
    location = (ROOT / "mlruns").as_uri() if uri.startswith("sqlite:") else None
    return client, client.create_experiment(EXPERIMENT, artifact_location=location, tags=VIEW)


def address(uri: str, experiment: str) -> str:
    """Where the runs are to be seen: MLflow's own address of an experiment opens a page for language models."""
    server = os.environ.get("MLFLOW_UI") or (uri if uri.startswith("http") else None)
    return f"{server}/#/experiments/{experiment}/runs?{TRAINING}" if server else f"{uri}, by `make ui`"


def send_losses(client: Any, run_id: str, losses: Iterable[tuple[int, float]]) -> None:
    """The training loss at each step, a thousand at a time: MLflow takes no more."""
    from mlflow.entities import Metric

    at = int(datetime.now().timestamp() * 1000)
    metrics = [Metric("train_loss", loss, at, step) for step, loss in losses]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])


def find(beginning: str) -> tuple[Any, str, Any, Any]:
    """A client, the experiment's id, the run whose id begins so, and the run of the state that it belongs to.

    Raises UserError when there is none, or more than one, or the store cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    uri = tracking_uri()
    try:
        probe(uri)
        client, experiment = open_store(uri)
    except (OSError, MlflowException) as error:
        raise UserError(f"MLflow at {uri} cannot be read ({error}). Start it, or set MLFLOW_TRACKING_URI.") from None
    found, token = [], None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        found += [run for run in page if run.info.run_id.startswith(beginning)]
        token = page.token
        if not token:
            break
    if len(found) != 1:
        raise UserError(
            f"{len(found) or 'No'} runs of the store have an id that begins with {beginning}. Give more of it."
        )
    (run,) = found
    return client, experiment, run, client.get_run(run.data.tags.get("mlflow.parentRunId", run.info.run_id))


def children(client: Any, parent: Any) -> list[Any]:
    """The finished runs below a parent, one for each implementation."""
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and attributes.status = 'FINISHED'"
    return list(client.search_runs([parent.info.experiment_id], query))


def register(client: Any, name: str, model_id: str, run_id: str) -> None:
    """Make a model the newest of its implementation that passed parity: models:/NAME@parity-passed."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(name, f"models:/{model_id}", run_id, model_id=model_id)
    client.set_registered_model_alias(name, "parity-passed", version.version)
    # What the model's own page takes it from, and MLflow sets in its fluent interface alone.
    tag = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": tag})


def finished(client: Any, experiment: str, query: str) -> str | None:
    runs = client.search_runs([experiment], f"{query} and attributes.status = 'FINISHED'", max_results=1)
    return runs[0].info.run_id if runs else None


def shown(uri: str, state: str) -> bool:
    """Whether the store still has the runs that were sent for this state.

    Asks the store itself, but not through mlflow, whose import alone takes longer than a `dvc repro` with nothing to do
    should. When in doubt the answer is no, and the full way finds out.
    """
    receipt = read_receipts().get(uri, {"state": None})
    if receipt["state"] != state:
        return False
    try:
        if uri.startswith("sqlite:"):
            with sqlite3.connect(f"file:{uri.removeprefix('sqlite:///')}?mode=ro", uri=True) as store:
                query = "SELECT count(*) FROM runs WHERE run_uuid = ? AND lifecycle_stage = 'active'"
                return all(store.execute(query, [run_id]).fetchone()[0] for run_id in receipt["run_ids"])
        if uri.startswith(("http://", "https://")):
            return all(_active(f"{uri}/api/2.0/mlflow/runs/get?run_id={run_id}") for run_id in receipt["run_ids"])
    except (sqlite3.Error, OSError):
        return False
    return False


def _active(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=REACH_SECONDS) as answer:
        return json.load(answer)["run"]["info"]["lifecycle_stage"] == "active"


def probe(uri: str) -> None:
    """Raise OSError when a server does not answer within a few seconds; MLflow itself would try for minutes."""
    if uri.startswith(("http://", "https://")):
        with suppress(urllib.error.HTTPError):  # an error is an answer, too
            urllib.request.urlopen(f"{uri}/health", timeout=REACH_SECONDS).close()


@contextmanager
def warning(uri: str) -> Iterator[None]:
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
def lock() -> Iterator[None]:
    """One process of this checkout at a time: a new sqlite store does not survive two that make its tables at once."""
    folder = ROOT / "mlruns"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def receipts() -> Path:
    return ROOT / "mlruns" / "receipts.json"


def read_receipts() -> dict[str, Any]:
    return files.read_json(receipts()) if receipts().exists() else {}


def forget(uri: str) -> None:
    """Have the next `track` look at the store itself: a run that is about to be made may be left running by a kill."""
    kept = {key: receipt for key, receipt in read_receipts().items() if key != uri}
    files.write_json(receipts(), kept)


def checkout() -> str:
    """A name for this checkout that stays the same from one container to the next."""
    path = ROOT / "mlruns" / ".checkout"
    if not path.exists():
        files.write_bytes(path, uuid.uuid4().hex.encode())
    return path.read_text()


def md5(path: Path) -> str:
    """As md5sum has it, and dvc.lock."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
