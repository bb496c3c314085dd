"""The MLflow store: how it is reached, by one sender at a time, and what happens when it cannot be reached.

The store is MLFLOW_TRACKING_URI, or mlflow.db beside params.yaml. Only MLflow's client talks to it, so MLflow's own
settings for authentication, TLS, proxies and timeouts apply.
"""

import json
import os
import re
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any

from pipeline import files
from pipeline.errors import UserError
from pipeline.running.locks import open_lock, take

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # it logs a traceback of what it raises
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# An unreachable server costs seconds. With MLflow's own defaults it costs minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
DATABASE_ATTEMPTS = 4  # to open a database; MLflow has no setting for it, and by default makes 10 in 100 s

EXPERIMENT = "seven-ways"
# The part of the UI that shows training runs, and the columns of its page: the address names a tag of the experiment.
TRAINING = "workflowType=machine_learning&viewStateShareKey=columns"
COLUMNS = ["attributes.`Duration`", "tags.`parity`", "tags.`device_name`"]
COLUMNS += [f"metrics.`{metric}`" for metric in ("held_out_loss", "r2", "step_microseconds", "times_matrix_products")]
SHARED_VIEW = {"selectedColumns": COLUMNS, "columnOrder": COLUMNS, "columnWidths": dict.fromkeys(COLUMNS, 130)}
# This version of MLflow's UI takes the kind of an experiment from the address; others take it from the tag.
VIEW = {"mlflow.sharedViewState.columns": json.dumps(SHARED_VIEW), "mlflow.experimentKind": "custom_model_development"}
LIVE_SECONDS = 2.0  # between two batches of losses of a training that is under way
LIVE_IS_OFF = "Live logging is off; `track` sends the results."


def root() -> Path:
    """The project. `dvc exp run --temp` and `--queue` work in a copy of it, and DVC_ROOT names the original."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, a relative sqlite path anchored at the project; by default the project's own mlflow.db."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    scheme, separator, path = uri.partition(":///")
    return f"sqlite:///{root() / path}" if separator and scheme == "sqlite" else uri


def address(experiment: str) -> str:
    """Where a person sees the runs. MLflow's own address of an experiment opens a page for language models."""
    uri = tracking_uri()
    server = os.environ.get("MLFLOW_UI") or (uri if uri.startswith("http") else None)
    return _redact(f"{server}/#/experiments/{experiment}/runs?{TRAINING}" if server else f"{uri}, by `make ui`")


@contextmanager
def warning(
    remedy: str = "The results are on disk; the next `dvc repro` or `make track` sends them.",
) -> Iterator[None]:
    """Turn any failure of MLflow into one warning. A UserError is about a file of the project, and passes."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        uri = _redact(tracking_uri())
        print(f"WARNING: MLflow at {uri} was not brought up to date: {_cause(error)}. {remedy}", file=sys.stderr)


@contextmanager
def sending() -> Iterator[tuple[Any, str]]:
    """A client and the experiment's id, for one sender of this checkout at a time. Use it inside `warning`.

    It withdraws the receipt, so that after a kill the next `track` asks the store, and marks as failed the runs that a
    killed sender left running.
    """
    with _lock():
        client, experiment = _open()
        _write_receipts({uri: receipt for uri, receipt in _receipts().items() if uri != tracking_uri()})
        for run in client.search_runs(
            [experiment], f"tags.checkout = '{checkout()}' and attributes.status = 'RUNNING'"
        ):
            client.set_terminated(run.info.run_id, "FAILED")
        yield client, experiment


def connect() -> tuple[Any, str]:
    """A client and the experiment's id, for a command that needs the store. Raises UserError when it is unreachable."""
    try:
        with _lock():
            return _open()
    except Exception as error:
        uri, cause = _redact(tracking_uri()), _cause(error)
        raise UserError(f"MLflow at {uri} cannot be read: {cause}. Start it, or set MLFLOW_TRACKING_URI.") from None


def find(beginning: str) -> tuple[Any, str, Any, Any]:
    """A client, the experiment's id, the run whose id begins so, and the run of the state that it belongs to.

    Raises UserError when there is none, or more than one, or the store cannot be reached.
    """
    client, experiment = connect()
    query = f"attributes.run_id LIKE '{beginning}%'"
    runs = client.search_runs([experiment], query) if beginning.isalnum() else []
    if len(runs) != 1:
        number = len(runs) or "No"
        raise UserError(f"{number} runs of the store have an id that begins with {beginning}. Give more of it.")
    return client, experiment, runs[0], client.get_run(runs[0].data.tags.get("mlflow.parentRunId", runs[0].info.run_id))


def children(client: Any, parent: Any) -> list[Any]:
    """The finished runs below a parent, one for each implementation."""
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and attributes.status = 'FINISHED'"
    return list(client.search_runs([parent.info.experiment_id], query))


def finished(client: Any, experiment: str, query: str) -> str | None:
    """The id of a finished run that the UI shows, if the query finds one."""
    runs = client.search_runs([experiment], f"{query} and attributes.status = 'FINISHED'", max_results=1)
    return runs[0].info.run_id if runs else None


def log_losses(client: Any, run_id: str, losses: Iterable[tuple[int, float]]) -> None:
    """The training loss at each step, in batches of a thousand, the most that MLflow takes."""
    from mlflow.entities import Metric

    at = int(datetime.now().timestamp() * 1000)
    metrics = [Metric("train_loss", loss, at, step) for step, loss in losses]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])


def live_log(name: str) -> Callable[[int, float], None] | None:
    """With MLFLOW_LIVE=1, a function that takes the losses of a training under way and shows them in MLflow.

    A thread sends them, so the training never waits. MLflow's asynchronous logging waits at exit for each batch that a
    hanging server does not answer. In the GPU image the frameworks' environments have no mlflow: live logging is off.
    """
    if os.environ.get("MLFLOW_LIVE") != "1":
        return None
    losses: deque[tuple[int, float]] = deque(maxlen=10_000)

    def send() -> None:  # until the process ends; the next sender ends the run
        with warning(LIVE_IS_OFF):
            with sending() as (client, experiment):
                tags = {"role": "live", "implementation": name, "checkout": checkout()}
                run_id = client.create_run(experiment, run_name=f"{name} (under way)", tags=tags).info.run_id
            while not Event().wait(LIVE_SECONDS):
                log_losses(client, run_id, [losses.popleft() for _ in range(len(losses))])

    with warning(LIVE_IS_OFF):
        import mlflow  # noqa: F401 (before the first step, which it would slow down)

        Thread(target=send, daemon=True).start()
        return lambda step, loss: losses.append((step, loss))
    return None


def receipt(state: str) -> str | None:
    """The experiment's id, if this checkout has sent this state to the store. Asks no server and imports no mlflow."""
    uri, path = tracking_uri(), tracking_uri().removeprefix("sqlite:///")
    sent = _receipts().get(uri, {})
    deleted = path != uri and not Path(path).exists()
    return sent.get("experiment") if sent.get("state") == state and not deleted else None


def write_receipt(state: str, experiment: str) -> None:
    _write_receipts(_receipts() | {tracking_uri(): {"state": state, "experiment": experiment}})


def checkout() -> str:
    """A name for this checkout that stays the same from one container to the next."""
    path = root() / "mlruns" / ".checkout"
    if not path.exists():
        files.write_bytes(path, uuid.uuid4().hex.encode())
    return path.read_text(encoding="utf-8")


def _open() -> tuple[Any, str]:
    """A client of the store, and the id of the experiment, which is made if the store has none."""
    import mlflow

    uri = tracking_uri()
    if not uri.startswith("http"):
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = DATABASE_ATTEMPTS
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        location = (root() / "mlruns").as_uri() if uri.startswith("sqlite:") else None
        return client, client.create_experiment(EXPERIMENT, artifact_location=location, tags=VIEW)
    for key, value in VIEW.items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return client, experiment.experiment_id


@contextmanager
def _lock() -> Iterator[None]:
    """One process of this checkout at a time: a new sqlite store does not survive two that make its tables at once."""
    folder = root() / "mlruns"
    folder.mkdir(exist_ok=True)
    with open_lock(folder / ".lock") as lock:
        take(lock)
        yield


def _receipts() -> dict[str, dict[str, str]]:
    """By store, what was sent. A damaged file counts as none, so the store is asked."""
    with suppress(UserError, OSError):
        content = files.read_json(root() / "mlruns" / "receipts.json")
        return {uri: sent for uri, sent in content.items() if isinstance(sent, dict)}
    return {}


def _write_receipts(receipts: dict[str, dict[str, str]]) -> None:
    files.write_json(root() / "mlruns" / "receipts.json", receipts)


def _cause(error: Exception) -> str:
    text = " ".join(str(error).split()).rpartition("Caused by ")[2]  # requests states the cause at the end
    return _redact(f"{type(error).__name__}: {text[:300]}")


def _redact(text: str) -> str:
    """Without the user and password of an address."""
    return re.sub(r"//[^/@\s]+@", "//", text)
