"""MLflow stores for tests: what a store holds, a server, and servers that break."""

import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from conftest import Clone
    from mlflow.entities import Run

# MLflow, in this process, uses what SQLAlchemy deprecates and warns of its own types: not ours to fix.
FILTERS = pytest.mark.filterwarnings(
    "ignore:The ``noload``", "ignore:.*Any type hint is inferred", "ignore:For backward compatibility, 'str' dtypes"
)
TWO = {"numpy_arrays": "two_layer", "torch_loop": "recurrent"}
REMEDY = "The results are on disk; the next `dvc repro` or `make track` sends them."


@pytest.fixture
def project(finished: "Clone", monkeypatch: pytest.MonkeyPatch) -> "Clone":
    """A finished pipeline of two lessons without a store, in which this process works."""
    import mlflow  # noqa: F401 (it sets its log level when it is imported)
    from conftest import outside_variables

    logging.getLogger("mlflow").setLevel("CRITICAL")  # store.py reads it before it imports mlflow
    monkeypatch.chdir(finished.path)
    for variable in os.environ.keys() - outside_variables().keys():
        monkeypatch.delenv(variable)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database(finished))
    finished.write_params(finished.params() | {"implementations": TWO})
    return finished


def database(clone: "Clone") -> str:
    return f"sqlite:///{clone.path}/mlflow.db"


def runs(uri: str, query: str = "") -> "list[Run]":
    import mlflow

    mlflow.set_tracking_uri(uri)
    return mlflow.search_runs(experiment_names=["seven-ways"], filter_string=query, output_format="list")  # pyright: ignore


def children(uri: str) -> "dict[str, Run]":
    logged = runs(uri, "tags.role = 'implementation' and attributes.status = 'FINISHED'")
    assert len({run.info.run_name for run in logged}) == len(logged), "an implementation was sent twice"
    return {str(run.info.run_name): run for run in logged}


class Double(BaseHTTPRequestHandler):
    """A server, or a proxy, that passes requests on to a real server, and after `passed` of them breaks."""

    behind: str
    broken: str
    passed: int
    account: str
    seconds: dict[int, float]
    requests: list[str]
    requested: Event
    released: Event

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        self.requested.set()
        time.sleep(self.seconds.get(len(self.requests), 0))
        if self.account and self.headers["Authorization"] != f"Basic {b64encode(self.account.encode()).decode()}":
            self.answer(401, b"You are not authenticated")
        elif len(self.requests) <= self.passed:
            self.pass_on()
        elif self.broken.isdigit():
            self.answer(int(self.broken), b"no")
        elif self.broken == "HTML":
            self.answer(200, b"<html>Welcome to the hotel's network</html>")
        else:
            if "half" in self.broken:
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"run": {')
                self.wfile.flush()
            if "hangs" in self.broken:
                self.released.wait()
            self.close_connection = True

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 (as http.server has them)

    def pass_on(self) -> None:
        url = urlsplit(self.path)  # a proxy gets a whole address
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "authorization")}
        with closing(HTTPConnection(urlsplit(self.behind).netloc, timeout=60)) as connection:
            connection.request(self.command, f"{url.path}?{url.query}", body, headers)
            answer = connection.getresponse()
            self.answer(answer.status, answer.read())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Some tests need a client that gives up."""


@contextmanager
def server_double(
    broken: str = "",
    *,
    behind: str = "",
    passed: int = 0,
    account: str = "",
    seconds: dict[int, float] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Any]:
    """A server that breaks. `seconds` has the time until the answer to its n-th request."""
    facts = {"requests": [], "requested": Event(), "released": Event(), "behind": behind, "broken": broken}
    double: Any = type("Handler", (Double,), facts | {"passed": passed, "account": account, "seconds": seconds or {}})
    with QuietServer(("127.0.0.1", 0), double) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.daemon_threads, server.block_on_close = True, False
        Thread(target=server.serve_forever, daemon=True).start()
        double.uri = f"http{'s' * bool(tls)}://127.0.0.1:{server.server_port}"
        yield double
        double.released.set()
        server.shutdown()


def running_server(tmp_path: Path) -> Iterator[str]:
    """A tracking server with its own store."""
    from conftest import outside_variables

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        f"{sys.executable} -m mlflow server --port {port} --workers 1 "
        f"--backend-store-uri sqlite:///{tmp_path}/server.db --artifacts-destination {tmp_path}/artifacts".split(),
        env=outside_variables() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


Send = Callable[..., str]


@pytest.fixture
def send(project: "Clone", monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Send:
    """send(uri, VARIABLE=value …): run `track`, and return its stderr."""

    from pipeline.params import load_params
    from pipeline.tracking.runs import log_results

    def send_to(uri: str, **variables: str) -> str:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            for key, value in {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "1", **variables}.items():
                patch.setenv(key, value)
            log_results(load_params())
        return capsys.readouterr().err

    return send_to


def assert_one_warning(errors: str, uri: str, cause: str = "") -> None:
    (line,) = errors.splitlines()
    assert line.startswith(f"WARNING: MLflow at {uri} was not brought up to date: ")
    assert line.endswith(REMEDY)
    assert cause in line


@contextmanager
def answering(content: bytes) -> Iterator[str]:
    """The address of a port that sends these bytes to every connection, for any request, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with suppress(OSError):  # the listener is closed
                while True:
                    with closing(listener.accept()[0]) as connection, suppress(OSError):
                        if content.startswith(b"HTTP"):
                            connection.recv(65536)
                        connection.sendall(content)
                        connection.shutdown(socket.SHUT_WR)
                        # A close with unread bytes is a reset, which can take the answer away from the client.
                        connection.settimeout(2)
                        while connection.recv(65536):
                            pass

        Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def http(body: str, kind: str = "application/json") -> bytes:
    """A complete answer. With `Connection: close` a client does not send its next request into the end of this one."""
    head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n{body}".encode()


@contextmanager
def started_ui(clone: "Clone") -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The address that `make ui` prints, when the server answers, and its process, the first of a group."""
    from conftest import outside_variables

    command = ["make", "--no-print-directory", "-o", "setup", "ui", "PORT=0"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = subprocess.Popen(
        command,
        cwd=clone.path,
        env=outside_variables() | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout
        address, _, hint = process.stdout.readline().partition(" ")
        assert hint == "(Ctrl-C stops it)\n", process.communicate()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"{address.partition('#')[0]}health", timeout=5):
                break
            time.sleep(0.2)
        yield address, process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
