"""`make ui`: the MLflow UI over the runs made so far, on this machine alone."""

import os
import socket
import sys

from pipeline.errors import UserError
from pipeline.tracking import store
from stages import run

HOST = "127.0.0.1"


def main(port: str = "5000") -> None:
    with socket.socket() as probe:
        if probe.connect_ex((HOST, int(port))) == 0:
            raise UserError(f"port {port} of {HOST} is taken. Stop what is there, or take another: make ui PORT=5001.")
    uri = store.tracking_uri()
    if uri.startswith("http"):
        raise UserError(f"MLFLOW_TRACKING_URI names a server, and its UI is there: {uri}")
    uri, experiment = store.prepare()
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # eight helper processes that nothing here uses
    where = f"http://{HOST}:{port}/#/experiments/{experiment}/runs?{store.TRAINING}"
    print(f"{where} (Ctrl-C stops it)", flush=True)
    artifacts = str(store.ROOT / "mlruns")
    command = ["mlflow", "server", "--backend-store-uri", uri, "--artifacts-destination", artifacts]
    os.execv(sys.executable, [sys.executable, "-m", *command, "--host", HOST, "--port", port, "--workers", "1"])


if __name__ == "__main__":
    run(main, alone=False)
