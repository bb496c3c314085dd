"""What `track` costs with thousands of runs in the store: python -m benchmarks.store [--states 2000] [--backend URI]

Needs the results of a `dvc repro`. Works on a copy of them, and on a store of its own: an sqlite file, or the database
that --backend names (postgresql+psycopg://USER@HOST/NAME, empty), behind an MLflow server that is started for it.
With --senders N it then has N checkouts send a state each at once, to the server over either.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import sqlalchemy as sa

PORT = 5098
TABLES = ("tags", "params", "latest_metrics", "metrics")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=2000)
    parser.add_argument("--backend", default="")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--senders", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        ignored = shutil.ignore_patterns(".venv*", "cache", "mlruns", "mlflow.db*", ".git")
        shutil.copytree(".", copy, ignore=ignored)
        backend = options.backend or f"sqlite:///{copy}/mlflow.db"
        with serve(backend, copy) if options.backend or options.senders else nothing() as address:
            environment = os.environ | {"MLFLOW_TRACKING_URI": address or backend}
            print(f"first state:        {track(copy, environment):.2f} s")
            fill(backend, options.states)
            print(f"states in the store: {options.states:,}, runs: {8 * options.states:,}")
            idle = [track(copy, environment) for _ in range(options.repeats)]
            send = [another(copy, environment, number) for number in range(options.repeats)]
            for what, seconds in {"nothing to do": idle, "one more state": send}.items():
                print(f"{what}: median {median(seconds):.2f} s of {', '.join(f'{each:.2f}' for each in seconds)}")
            if options.senders:
                at_once(copy, environment, options.senders)


def at_once(copy: Path, environment: dict[str, str], senders: int) -> None:
    copies = [Path(shutil.copytree(copy, copy.with_name(f"sender-{number}"))) for number in range(senders)]
    begun = time.perf_counter()
    with ThreadPoolExecutor(senders) as pool:
        seconds = list(pool.map(lambda number: another(copies[number], environment, 1000 + number), range(senders)))
    print(
        f"{senders} at once, a state each: all in {time.perf_counter() - begun:.1f} s, "
        f"one in {min(seconds):.1f} to {max(seconds):.1f} s"
    )


def track(copy: Path, environment: dict[str, str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "stages.track"],
        cwd=copy,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if "WARNING: MLflow at" in done.stderr:
        sys.exit(done.stderr)
    return time.perf_counter() - start


def another(copy: Path, environment: dict[str, str], number: int) -> float:
    with (copy / "report.html").open("a") as file:
        file.write(f"<!-- {number} -->")  # a state is what its files are
    return track(copy, environment)


def fill(backend: str, states: int) -> None:
    """Copy the rows of the state that is there: its runs with tags, params and metrics."""
    engine = sa.create_engine(backend)
    tables = sa.MetaData()
    tables.reflect(engine)
    runs = tables.tables["runs"]
    with engine.begin() as connection:
        there = [dict(row._mapping) for row in connection.execute(sa.select(runs).where(runs.c.status == "FINISHED"))]
        ids = [run["run_uuid"] for run in there]
        rows = {}
        for name in TABLES:
            table = tables.tables[name]
            found = connection.execute(sa.select(table).where(table.c.run_uuid.in_(ids)))
            rows[name] = [dict(row._mapping) for row in found]
        for _ in range(states):
            new = {each: uuid.uuid4().hex for each in ids} | {"state": uuid.uuid4().hex}
            connection.execute(runs.insert(), [run | {"run_uuid": new[run["run_uuid"]]} for run in there])
            for name in TABLES:
                copies = [row | {"run_uuid": new[row["run_uuid"]]} for row in rows[name]]
                for row in copies:
                    if name == "tags" and row["key"] in ("mlflow.parentRunId", "state"):
                        row["value"] = new[row["value"] if row["value"] in new else "state"]
                connection.execute(tables.tables[name].insert(), copies)


@contextmanager
def serve(backend: str, copy: Path) -> Iterator[str]:
    address = f"http://127.0.0.1:{PORT}"
    command = ["mlflow", "server", "--backend-store-uri", backend, "--artifacts-destination", str(copy / "artifacts")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with subprocess.Popen(
        [sys.executable, "-m", *command, "--port", str(PORT), "--workers", "1"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            for _ in range(120):
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.5)
            else:
                sys.exit(f"the server over {backend} does not start")
            yield address
        finally:
            server.terminate()


@contextmanager
def nothing() -> Iterator[str]:
    yield ""


if __name__ == "__main__":
    main()
