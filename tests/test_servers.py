"""An unusable MLflow store gives one warning from `track` and one error from a command; no result is lost."""

import json
import os
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from conftest import Clone
from stores import (
    FILTERS,
    TWO,
    Send,
    answering,
    assert_one_warning,
    children,
    database,
    http,
    running_server,
    runs,
    server_double,
)

import commands.__main__
from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.tracking import store
from pipeline.tracking.runs import log_results

pytestmark = FILTERS
SLOW = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}  # where nothing hangs
NOT_MLFLOW = "This is not MLflow's answer"
DEFAULT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": store.FIRST_ANSWER}  # the limits of a user who has set none
ANSWERS = {
    "a login page": (http("<html><form>password</form></html>", "text/html"), NOT_MLFLOW),
    "a list": (http("[]"), NOT_MLFLOW),
    "a string": (http('"x"'), NOT_MLFLOW),
    "null": (http("null"), NOT_MLFLOW),
    "an empty object": (http("{}"), NOT_MLFLOW),
    "nothing": (http(""), NOT_MLFLOW),
    "wrong types": (http('{"experiment": [1], "runs": 5}'), NOT_MLFLOW),
    "another experiment": (http('{"experiment": {"experiment_id": "3", "name": "x"}}'), NOT_MLFLOW),
    "bytes": (http("\x00\x1b[31m\x7f"), NOT_MLFLOW),
    "half a body": (http('{"experiment": {}}')[:-4], "IncompleteRead"),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", NOT_MLFLOW),
    "an alert of TLS": (b"\x15\x03\x01\x00\x02\x02\x46", NOT_MLFLOW),
    "an end": (b"", "closed the connection"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from running_server(tmp_path_factory.mktemp("server"))


@pytest.mark.environments
def test_server_that_is_not_mlflow_gives_one_warning_and_results_are_sent_later(send: Send, project: Clone):
    assert send(f"sqlite:///{project.path}/before.db") == ""
    for content, cause in ANSWERS.values():
        with answering(content) as uri:
            errors = send(uri)
            assert_one_warning(errors, uri, cause)
            assert errors.removesuffix("\n").isprintable()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("MLFLOW_TRACKING_URI", uri)
                with pytest.raises(UserError, match=f"^MLflow at {uri} cannot be read: .*{cause}"):
                    store.find("abc")
    assert send(database(project)) == ""
    assert children(database(project)).keys() == TWO.keys()


@pytest.mark.environments
def test_store_that_fails_after_opening_gives_an_error(project: Clone, monkeypatch: pytest.MonkeyPatch):
    client, experiment = store.connect()
    monkeypatch.setattr(client._client, "search_runs", lambda *_: json.loads("{"))
    with pytest.raises(UserError, match=r"^MLflow at sqlite:.*cannot be read: JSONDecodeError"):
        client.search_runs([experiment])
    with store.warning():  # where results are on disk it is a warning
        client.search_runs([experiment])


@pytest.mark.environments
@pytest.mark.parametrize("command", ["reproduce", "export", "track", "ui"])
def test_damaged_database_gives_one_line_from_each_command(finished_pipeline: Clone, command: str, tmp_path: Path):
    (tmp_path / "damaged").write_text("no database, but long enough to be taken for one" * 100)
    arguments = {"reproduce": ["abc"], "export": ["abc"], "ui": ["0"]}.get(command, [])
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/damaged"}
    succeeds = None if command == "reproduce" else command == "track"
    done = finished_pipeline.run(
        sys.executable, "-m", "commands", command, *arguments, succeeds=succeeds, env=environment
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith("WARNING: " if command == "track" else "ERROR: ")
    assert "Restore a backup of the database, or move it away" in line


# TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private certificate of 127.0.0.1, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {path}.key -out {path}"
    command += " -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(command.split(), check=True, capture_output=True)
    return path


@pytest.mark.environments
def test_private_certificate_is_trusted_when_named(send: Send, server: str, certificate: Path):
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, f"{certificate}.key")
    with server_double(behind=server, passed=10_000, tls=tls) as double:
        assert_one_warning(send(double.uri), double.uri, "Set MLFLOW_TRACKING_SERVER_CERT_PATH to a file")
        plain = double.uri.replace("https", "http")
        assert_one_warning(send(plain), plain)
        assert send(double.uri, MLFLOW_TRACKING_SERVER_CERT_PATH=str(certificate), **SLOW) == ""
        assert children(server).keys() == TWO.keys()
        assert send(double.uri.replace("127.0.0.1", "localhost"), MLFLOW_TRACKING_INSECURE_TLS="true", **SLOW) == ""
    tls_to_plain = server.replace("http", "https")
    assert_one_warning(send(tls_to_plain), tls_to_plain, "The port does not use TLS")


# Passwords.


@pytest.mark.environments
def test_password_in_the_address_logs_in_and_is_not_written(
    send: Send, server: str, project: Clone, capsys: pytest.CaptureFixture[str]
):
    with server_double(behind=server, passed=10_000, account="me:se@cret/7") as double:
        uri = double.uri.replace("//", "//me:se%40cret%2F7@")
        for wrong in ("//me:no@", "//me:not/th%40at@"):
            assert_one_warning(send(double.uri.replace("//", wrong)), double.uri)
        assert send(uri, **SLOW) == ""
        requests = len(double.requests)
        assert send(uri) == ""  # the receipt decides
        assert len(double.requests) == requests
    assert children(server).keys() == TWO.keys()
    assert list(json.loads((project.path / "mlruns/receipts.json").read_text())) == [double.uri]
    for path in (path for path in (project.path / "mlruns").rglob("*") if path.is_file()):
        assert b"cret/7" not in path.read_bytes().replace(b"%2F", b"/"), path
    assert "cret/7" not in str([run.to_dictionary() for run in runs(server)]).replace("%2F", "/")


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("http://me:secret@host:5000", "http://host:5000"),
        ("http://me:se/cr@et@host", "http://host"),
        ("postgresql://me:secret@host/db?sslmode=require", "postgresql://host/db?sslmode=require"),
        ("postgresql://host/db?user=me&password=secret&x=1", "postgresql://host/db?user=me&password=…&x=1"),
        ("mssql+pyodbc://host/db?odbc_connect=x&PWD=secret", "mssql+pyodbc://host/db?odbc_connect=x&PWD=…"),
        ("sqlite:////home/me@host/mlflow.db", "sqlite:////home/me@host/mlflow.db"),
    ],
)
def test_messages_and_receipts_leave_out_the_password_of_an_address(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, uri: str, name: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert store.store_name() == name
    Path("mlruns").mkdir()
    Path("mlruns/receipts.json").write_text(json.dumps({uri: {"state": "an old one"}}))  # by an earlier version
    store.write_receipt("state", "1")
    assert store.receipt("state") == (None if uri.startswith("sqlite") else "1")  # no such file
    with store.warning():
        raise ValueError(f"no connection to {uri}/api, {uri}")
    with pytest.raises(UserError) as error, store.failures():
        raise ValueError(f"no connection to {uri}/api")
    texts = [*capsys.readouterr(), str(error.value), store.address("1"), Path("mlruns/receipts.json").read_text()]
    assert not [text for text in texts if "secret" in text or "et@" in text]
    assert f"MLflow at {name} was not brought up to date" in texts[1]


def test_ui_prints_the_server_address_without_its_password(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000")
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI names a server. Open its page: http://host:5000$"):
        command(monkeypatch, "ui", "0")


# Databases and artifacts.


def sql(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


@pytest.mark.environments
def test_older_schema_gives_an_error_with_the_upgrade_command(
    send: Send, project: Clone, monkeypatch: pytest.MonkeyPatch
):
    store.connect()
    uri = f"sqlite:///{shutil.copy('mlflow.db', project.path / 'older.db')}"
    sql(project.path / "older.db", "UPDATE alembic_version SET version_num = '0584bdc529eb'")
    assert_one_warning(send(uri), uri, f"run `mlflow db upgrade {uri}`.")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for call in (store.connect, lambda: store.find("abc")):
        with pytest.raises(UserError, match="Back the database up, then run `mlflow db upgrade sqlite:///"):
            call()


@pytest.mark.environments
def test_deleted_experiment_gives_a_warning_with_the_restore_command(send: Send, project: Clone):
    client, experiment = store.connect()
    client.delete_experiment(experiment)
    sentence = f"In MLflow at {database(project)} the experiment seven-ways is deleted. Restore it: "
    sentence += f"`MLFLOW_TRACKING_URI={database(project)} mlflow experiments restore -x 1`."
    errors = send(database(project))
    assert errors.startswith(f"WARNING: {sentence} The results are on disk")
    with pytest.raises(UserError) as error:
        store.connect()
    assert str(error.value) == sentence
    client.restore_experiment(experiment)
    assert send(database(project)) == ""


@pytest.mark.environments
def test_artifacts_on_s3_without_boto3_give_one_warning_and_one_run(send: Send, tmp_path: Path):
    uri = f"sqlite:///{tmp_path}/s3.db"
    mlflow.MlflowClient(uri).create_experiment(store.EXPERIMENT, artifact_location="s3://bucket")
    for _ in range(2):
        assert_one_warning(send(uri), uri, "pip install boto3")
        assert len(runs(uri)) == 1


@pytest.mark.environments
def test_database_that_does_not_answer_fails_within_10_seconds(project: Clone, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "4")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (9, silent.getsockname()[1]):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:secret@127.0.0.1:{port}/db")
            began = time.monotonic()
            with pytest.raises(
                UserError, match=rf"^MLflow at postgresql://127.0.0.1:{port}/db cannot be read"
            ) as error:
                store.connect()
            assert time.monotonic() - began < 10
            assert "secret" not in str(error.value)


# Slow servers.


@pytest.mark.environments
def test_answer_that_takes_six_seconds_is_accepted(send: Send, server: str):
    with server_double(behind=server, passed=10_000, seconds={4: 6, 30: 6}) as double:
        assert send(double.uri, **DEFAULT) == ""
    assert children(server).keys() == TWO.keys()


@pytest.mark.environments
def test_server_that_hangs_gives_a_warning_with_the_timeout_setting(send: Send, tmp_path: Path):
    for server in running_server(tmp_path):
        for passed in (0, 5, 12, 30):
            with server_double("hangs", behind=server, passed=passed) as double:
                began = time.monotonic()
                assert_one_warning(send(double.uri, **DEFAULT), double.uri, "MLFLOW_HTTP_REQUEST_TIMEOUT")
                assert time.monotonic() - began < 20
            assert len(runs(server)) <= 3  # no pile of attempts
        assert send(server, **SLOW) == ""
        assert children(server).keys() == TWO.keys()
        assert len(runs(server)) == 3


@pytest.mark.environments
def test_request_timeout_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch, project: Clone):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    store.connect()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "5"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", store.FIRST_ANSWER)
    store.connect()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == store.ANSWER


@pytest.mark.environments
def test_opening_a_store_twice_sets_no_variable(project: Clone, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert store.connect()[1] == store.connect()[1]
    assert "MLFLOW_TRACKING_URI" not in os.environ


# Folders.

NAMES = ["a#b c", "ä%zz?d=1&e;f", "a%41b"]


@pytest.mark.environments
@pytest.mark.parametrize("name", NAMES)
def test_checkout_with_special_characters_contains_its_store(finished: Clone, name: str, tmp_path: Path):
    clone = Clone(finished.path.rename(tmp_path / name))
    clone.write_params(clone.params() | {"implementations": TWO})
    before = set(tmp_path.iterdir())
    done = clone.run(sys.executable, "-m", "stages.track")
    assert (done.stderr, done.stdout) == (
        "",
        f"MLflow shows 2 results: sqlite:///{clone.path}/mlflow.db (`make ui` opens it)\n",
    )
    assert set(tmp_path.iterdir()) == before
    # A folder elsewhere: MLflow decodes a %41 in the path of a model that it loads from where it is.
    load = "import mlflow, sys; mlflow.pyfunc.load_model('models:/numpy_arrays@parity-passed', dst_path=sys.argv[1])"
    (tmp_path / "model").mkdir()
    clone.run(sys.executable, "-c", load, str(tmp_path / "model"), env={"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"})
    again = clone.run(sys.executable, "-m", "stages.track", env={"DVC_ROOT": str(clone.path)})
    assert again.stdout.startswith("MLflow shows the current results: ")


@pytest.mark.parametrize("name", NAMES)
def test_store_of_a_checkout_has_a_relative_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    experiment = tmp_path / name / ".dvc/tmp/exps/tmp1"
    experiment.mkdir(parents=True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / name))
    for folder, uri in ((tmp_path / name, "sqlite:///mlflow.db"), (experiment, "sqlite:///../../../../mlflow.db")):
        monkeypatch.chdir(folder)
        assert store.tracking_uri() == uri
        assert store.store_name() == f"sqlite:///{tmp_path / name}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////tmp/a%b.db")
    assert store.tracking_uri() == "sqlite:////tmp/a%b.db"


def test_invalid_store_address_gives_one_warning(send: Send, tmp_path: Path):
    (tmp_path / "a#b").mkdir()
    (tmp_path / "folder").write_text("")
    for uri in (f"sqlite:///{tmp_path}/folder/a%b.db", f"sqlite:///{tmp_path}/folder/%41#.db", "http://[::1", "x:///%"):
        assert_one_warning(send(uri), uri)


def locations(path: Path) -> list[str]:
    """All addresses of artifacts that a database holds."""
    with closing(sqlite3.connect(path / "mlflow.db")) as connection:
        columns = [(table, column) for table, columns in store.LOCATIONS.items() for column in columns]
        queries = [f"SELECT {column} FROM {table}" for table, column in columns]  # noqa: S608
        rows = [row for query in queries for row in connection.execute(query)]
    return [text for (text,) in rows if text.startswith("file:") and "/mlruns/0" not in text]


@pytest.mark.environments
def test_store_works_in_a_moved_or_copied_checkout(project: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log_results(load_params())
    name, other_folder = store.checkout(), tmp_path / "there"
    moved = Clone(project.path.rename(other_folder))
    monkeypatch.chdir(other_folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database(moved))
    moved.set("seed", 7)
    log_results(load_params())
    assert not project.path.exists()  # nothing was written there
    assert len(locations(other_folder)) > 10
    assert all(text.startswith(f"{other_folder.as_uri()}/mlruns") for text in locations(other_folder))
    assert store.checkout() == name
    old = runs(database(moved), "tags.role = 'pipeline'")[-1]
    assert mlflow.MlflowClient().list_artifacts(old.info.run_id)
    copy = tmp_path / "copy"
    shutil.copytree(other_folder, copy, symlinks=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy}/mlflow.db")
    artifacts = sorted((other_folder / "mlruns").iterdir())
    Clone(copy).set("seed", 8)
    log_results(load_params())
    assert sorted((other_folder / "mlruns").iterdir()) == artifacts
    assert store.checkout() != name
    assert all(text.startswith(f"{copy.as_uri()}/mlruns") for text in locations(copy))
    assert all(text.startswith(f"{other_folder.as_uri()}/mlruns") for text in locations(other_folder))


# Ports.


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["commands", *arguments])
    commands.__main__.main()


@pytest.mark.parametrize("port", ["abc", "99999", "-1", "1.5"])
def test_invalid_port_is_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch, port: str):
    with pytest.raises(UserError, match=r"lists what the command takes\.$"):
        command(monkeypatch, "ui", port)


@pytest.mark.environments
def test_privileged_port_is_refused_with_a_sentence(finished_pipeline: Clone):
    without = ["setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service"]
    done = finished_pipeline.run(*without, sys.executable, "-m", "commands", "ui", "80", succeeds=False)
    assert done.stderr.startswith("ERROR: Port 80 of 127.0.0.1 cannot be used: Permission denied. ")
