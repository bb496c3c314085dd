"""The connection to the MLflow store: one sender at a time, and a warning when the store cannot be reached.

The store is MLFLOW_TRACKING_URI, or mlflow.db beside params.yaml. Only MLflow's client talks to it, so MLflow's own
settings for authentication, TLS, proxies and timeouts apply.
"""

import json
import os
import re
import sqlite3
import sys
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any

from pipeline import files
from pipeline.clock import timestamp
from pipeline.errors import UserError
from pipeline.running.locks import open_lock, take

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # it logs a traceback of the exceptions that it raises
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# With these limits an unreachable store costs seconds, with the defaults of MLflow and PostgreSQL's client minutes.
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
FIRST_ANSWER, ANSWER, AFTER_A_FAILURE = "05", "010", "01"  # seconds; the 0 tells these limits from a user's own
os.environ.setdefault(TIMEOUT, FIRST_ANSWER)
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("PGCONNECT_TIMEOUT", "4")  # for each address of a host; localhost has two

EXPERIMENT = "seven-ways"
# The address of the runs page: the part of the UI for training runs, and the name of the view below.
TRAINING = "workflowType=machine_learning&viewStateShareKey=columns"
# The widths let the first five fit beside the panel that MLflow opens in a new browser.
WIDTHS = {
    "tags.`parity`": 75,
    "metrics.`held_out_loss`": 110,
    "metrics.`step_microseconds`": 140,
    "metrics.`worst_parity`": 105,
    "tags.`device`": 75,
    "metrics.`times_matrix_products`": 165,
    "metrics.`r2`": 90,
    "metrics.`implementations`": 120,
    "attributes.`Duration`": 90,
    "tags.`device_name`": 160,
}
# The newest state comes first, then its implementations. MLflow shows children without a click only in a list that is
# sorted by something other than the time.
ORDER = "order"
SHARED_VIEW = {
    "selectedColumns": list(WIDTHS),
    "columnOrder": list(WIDTHS),
    "columnWidths": WIDTHS,
    "orderByKey": f"tags.`{ORDER}`",
    "orderByAsc": False,
}
# This version of MLflow's UI takes the kind of an experiment from the address; others take it from the tag.
VIEW = {"mlflow.sharedViewState.columns": json.dumps(SHARED_VIEW), "mlflow.experimentKind": "custom_model_development"}
LIVE_SECONDS = 2.0  # between two batches of losses of a training that is under way
LIVE_IS_OFF = "Live logging is off; `track` sends the results."
OWN_DATABASE = "mlflow.db"
# Where the database names files of mlruns/, by absolute addresses.
LOCATIONS = {
    "experiments": ["artifact_location"],
    "runs": ["artifact_uri"],
    "logged_models": ["artifact_location"],
    "model_versions": ["source", "storage_location"],
}
LOG_IN = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
REMEDIES = {  # by the text of an error; {uri} is the store's address, {0} the match of the parentheses
    "valid JSON|ParseError|BadStatusLine|code 404|ENDPOINT_NOT_FOUND|No experiment": "This is not MLflow's answer: it "
    "may be that of a login page, a proxy or another program. Log in, or correct MLFLOW_TRACKING_URI",
    "RemoteDisconnected|Connection reset": "The program there closed the connection. Check that it is MLflow's server, "
    "or correct MLFLOW_TRACKING_URI",
    r"schema \(found version": "Back the database up, then run `mlflow db upgrade {uri}`",
    "Can't locate revision": "A newer MLflow made this database. Use that version, or another store",
    "database is locked": "Another program is writing to this database. End that program, or wait for it",
    "not a database|malformed": "Restore a backup of the database, or move it away: `make track` makes another",
    r"No module named '(\w+)": "Install the missing package: `pip install {0}`",
    "CERTIFICATE_VERIFY_FAILED": "Set MLFLOW_TRACKING_SERVER_CERT_PATH to a file with the certificate to trust",
    "WRONG_VERSION_NUMBER|RECORD_LAYER": "The port does not use TLS. Write http:// in MLFLOW_TRACKING_URI",
    r"error code 40[13]|401 Client|403 Client|UNAUTHENTICATED|PERMISSION_DENIED": LOG_IN,
    "refused|NameResolution|resolve host|unreachable|No route": "Start the server, or correct MLFLOW_TRACKING_URI",
    "timed out|timeout=": "Set MLFLOW_HTTP_REQUEST_TIMEOUT=60 to wait 60 s for each answer",
}
PACKAGES = {
    "botocore": "boto3",
    "google": "google-cloud-storage",
    "azure": "azure-storage-blob",
    "psycopg": "'psycopg[binary]'",
}


class StoreError(UserError):
    """An exception of MLflow, as a sentence with the remedy."""


def root() -> Path:
    """The project's folder. `dvc exp run --temp` and `--queue` work in a copy of it, and DVC_ROOT names the
    original."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def tracking_uri() -> str:
    """The store's address for MLflow's client: MLFLOW_TRACKING_URI, by default the project's own mlflow.db.

    A relative sqlite path starts at the project. The result is relative to the working folder, so that it does not
    contain the project's path: SQLAlchemy and MLflow would take a #, % or ? there for a part of the address.
    """
    uri = _uri()
    if (path := _sqlite_path(uri)) and not Path(path).is_absolute():
        return f"sqlite:///{os.path.relpath(root() / path)}"
    return re.sub("^postgres(ql)?://", "postgresql+psycopg://", uri)  # the driver that requirements/ installs


def store_name() -> str:
    """The store's address for messages and receipts: it does not depend on the working folder, and has no password."""
    path = _sqlite_path(_uri())
    return f"sqlite:///{root() / path}" if path else _redact(_uri())


def address(experiment: str) -> str:
    """The address of the runs page. The address that MLflow prints for an experiment opens a page for language
    models."""
    view = f"/#/experiments/{experiment}/runs?{TRAINING}"
    return f"{server()}{view}" if server() else f"{store_name()} (`make ui` opens it)"


def server() -> str:
    """The address at which a browser reaches the tracking server; empty without a server."""
    return _redact(os.environ.get("MLFLOW_UI") or (_uri() if _uri().startswith("http") else ""))


@contextmanager
def warning(
    remedy: str = "The results are on disk; the next `dvc repro` or `make track` sends them.",
) -> Iterator[None]:
    """Turn any failure of MLflow into one warning. Any other UserError is about a file of the project, and is
    raised."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) and not isinstance(error, StoreError):
            raise
        sentence = f"MLflow at {store_name()} was not brought up to date: {_cause(error)}"
        print(_redact(f"WARNING: {error if isinstance(error, StoreError) else sentence} {remedy}"), file=sys.stderr)


@contextmanager
def failures() -> Iterator[None]:
    """Raise StoreError for any failure of MLflow."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise StoreError(f"MLflow at {store_name()} cannot be read: {_cause(error)}") from None


@contextmanager
def sending() -> Iterator[tuple[Any, str]]:
    """A client and the experiment's id, for one sender of this checkout at a time. Use it inside `warning`.

    The receipt is deleted first, so that after a kill the next `track` asks the store. Results that an earlier sender
    did not send completely are deleted. Other runs that a killed sender left running are marked as failed.
    """
    with _lock():
        client, experiment = _open()
        _write_receipts({uri: receipt for uri, receipt in _receipts().items() if uri != store_name()})
        unfinished = f"tags.checkout = '{checkout()}' and attributes.status != 'FINISHED'"
        for run in client.search_runs([experiment], unfinished):
            if run.data.tags.get("role") in ("pipeline", "implementation"):
                client.delete_run(run.info.run_id)
            elif run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, "FAILED")
        yield client, experiment


@contextmanager
def active_run(run_id: str) -> Iterator[None]:
    """The run to which MLflow's functions log. If logging fails, MLflow ends the run, which must not take long."""
    import mlflow

    with mlflow.start_run(run_id=run_id):
        try:
            yield
        except BaseException:
            _wait_for(AFTER_A_FAILURE)
            raise


class _Client:
    """MLflow's client. Its calls raise StoreError in place of MLflow's exceptions."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return failures()(getattr(self._client, name))


def connect() -> tuple[Any, str]:
    """A client and the experiment's id, for a command that needs the store.

    Raises UserError when the store cannot be opened, and so do the client's calls when the store fails later.
    """
    with failures(), _lock():
        client, experiment = _open()
    return _Client(client), experiment


def find(beginning: str) -> tuple[Any, str, Any, Any]:
    """A client, the experiment's id, the run whose id has this beginning, and the run of its state. Raises UserError
    when no run or several runs have it, or the store cannot be reached.
    """
    client, experiment = connect()
    query = f"attributes.run_id LIKE '{beginning}%'"
    runs = client.search_runs([experiment], query) if beginning.isalnum() and beginning.isascii() else []
    if len(runs) != 1:
        number = len(runs) or "No"
        raise UserError(f"{number} runs of the store have an id that begins with {beginning}. Give more digits.")
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
    """Log the training loss at each step, in batches of a thousand, the largest that MLflow accepts."""
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

    def send() -> None:  # until the process ends; the next sender marks the run as ended
        with warning(LIVE_IS_OFF):
            with sending() as (client, experiment):
                tags = {"role": "live", "implementation": name, "checkout": checkout(), ORDER: timestamp()}
                run_id = client.create_run(experiment, run_name=f"{name} (under way)", tags=tags).info.run_id
            while not Event().wait(LIVE_SECONDS):
                log_losses(client, run_id, [losses.popleft() for _ in range(len(losses))])

    with warning(LIVE_IS_OFF):
        import mlflow  # noqa: F401 (before the first step, which it would slow down)

        Thread(target=send, daemon=True).start()
        return lambda step, loss: losses.append((step, loss))
    return None


def receipt(state: str) -> str | None:
    """The experiment's id, if this checkout has sent this state to the store. It asks no server and does not import
    mlflow."""
    uri, path = tracking_uri(), tracking_uri().removeprefix("sqlite:///")
    sent = _receipts().get(store_name(), {})
    deleted = path != uri and not Path(path.partition("?")[0]).exists()
    return sent.get("experiment") if sent.get("state") == state and not deleted else None


def write_receipt(state: str, experiment: str) -> None:
    _write_receipts(_receipts() | {store_name(): {"state": state, "experiment": experiment}})


def checkout() -> str:
    """A name for this checkout that is the same in every container. A copy of the checkout gets another name."""
    path = root() / "mlruns" / ".checkout"
    path.parent.mkdir(exist_ok=True)
    folder = str(path.parent.stat().st_ino)  # the number of a folder stays when it is moved or mounted into a container
    name, _, of_folder = (path.read_text(encoding="utf-8") if path.exists() else "").partition(" ")
    if of_folder != folder:
        name = uuid.uuid4().hex
        files.write_bytes(path, f"{name} {folder}".encode())
    return name


def _open() -> tuple[Any, str]:
    """A client of the store, and the id of the experiment, which is created if the store lacks it."""
    import mlflow

    uri, asked_for = tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    _wait_for(FIRST_ANSWER)
    if not uri.startswith("http"):
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = 1  # attempts to open a database; by default 10 in 100 s, and there is no setting
        _bring_locations_up_to_date()
    warnings.filterwarnings("ignore", "Unverified HTTPS")  # users who set MLFLOW_TRACKING_INSECURE_TLS know the risk
    mlflow.set_tracking_uri(uri)
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # that call has set the variable
    if asked_for is not None:
        os.environ["MLFLOW_TRACKING_URI"] = asked_for
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    _wait_for(ANSWER)
    if experiment is None:
        location = (root() / "mlruns").as_uri() if uri.startswith("sqlite:") else None
        return client, client.create_experiment(EXPERIMENT, artifact_location=location, tags=VIEW)
    if experiment.name != EXPERIMENT or not experiment.experiment_id:
        raise ValueError(f"No experiment {EXPERIMENT} is in the answer")
    if experiment.lifecycle_stage == "deleted":
        command = f"`MLFLOW_TRACKING_URI={_redact(_uri())} mlflow experiments restore -x {experiment.experiment_id}`"
        raise StoreError(f"In MLflow at {store_name()} the experiment {EXPERIMENT} is deleted. Restore it: {command}.")
    for key, value in VIEW.items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return client, experiment.experiment_id


def _bring_locations_up_to_date() -> None:
    """Correct the paths of mlruns/ in the project's own database after the project was moved, copied or mounted
    elsewhere."""
    database, now = root() / OWN_DATABASE, (root() / "mlruns").as_uri()
    if root() / _sqlite_path(_uri()) != database or database.is_symlink() or not database.exists():
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(database)) as connection, connection:  # MLflow reports errors
        query = "SELECT artifact_location FROM experiments WHERE name = ?"
        for (then,) in connection.execute(query, (EXPERIMENT,)).fetchall():
            if then != now and then.startswith("file:") and then.endswith("/mlruns"):
                for table, column in ((table, column) for table, columns in LOCATIONS.items() for column in columns):
                    update = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608
                    connection.execute(update, (now, len(then) + 1, len(then), then))


@contextmanager
def _lock() -> Iterator[None]:
    """One process of this checkout at a time: two that create the tables of a new sqlite store at once damage it."""
    folder = root() / "mlruns"
    folder.mkdir(exist_ok=True)
    with open_lock(folder / ".lock") as lock:
        take(lock)
        yield


def _receipts() -> dict[str, dict[str, str]]:
    """The receipts by store. A damaged file counts as no receipt, so the store is asked."""
    with suppress(UserError, OSError):
        content = files.read_json(root() / "mlruns" / "receipts.json")
        return {_redact(uri): sent for uri, sent in content.items() if isinstance(sent, dict)}
    return {}


def _write_receipts(receipts: dict[str, dict[str, str]]) -> None:
    files.write_json(root() / "mlruns" / "receipts.json", receipts)


def _cause(error: Exception) -> str:
    """The cause of an error and the remedy, as sentences."""
    whole = f"{type(error).__name__}: {error}"
    text = " ".join(str(error).split()).rpartition("Caused by ")[2][:300]  # requests gives the cause at the end
    text = "".join(filter(str.isprintable, f"{type(error).__name__}: {text}")).rstrip(".")
    for pattern, remedy in REMEDIES.items():
        if match := re.search(pattern, whole):
            package = match[1] if match.re.groups else ""
            text += ". " + remedy.format(PACKAGES.get(package, package), uri=_uri())
            break
    return _redact(f"{text}.")


def _redact(text: str) -> str:
    """Without the user and password of an address, and without the passwords in its query."""
    uri = _uri().rstrip("/")
    text = text.replace(uri, re.sub("://(?!/).*@", "://", uri))  # with any characters in the password
    text = re.sub(r"://[^/\s]*@", "://", text)
    return re.sub(r"(?i)([?&][^=&\s]*(?:pass|pwd|secret|token|key)[^=&\s]*=)[^&\s]*", r"\1…", text)


def _uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{OWN_DATABASE}"


def _sqlite_path(uri: str) -> str:
    """The path of a sqlite address, with its query; of another address an empty string."""
    return uri.removeprefix("sqlite:///") if uri.startswith("sqlite:///") else ""


def _wait_for(seconds: str) -> None:
    """Set how long MLflow waits for each answer, unless the user has set it."""
    if os.environ.get(TIMEOUT, FIRST_ANSWER).startswith("0"):
        os.environ[TIMEOUT] = seconds
