"""The result files of the stages. Only this module names, writes and checks them.

    environment.json                    what the experiment runs on
    benchmark_plan.json                 what of params.yaml the benchmark depends on
    data/PROBLEM/                       random data and initial weights (pipeline/training/generate.py)
    reference/PROBLEM.safetensors       the float64 reference
    models/NAME/weights.safetensors     weights after training
    models/NAME/outputs.safetensors     what is judged: losses, predictions before and after training, first gradient
    results/NAME/history.csv            step, train_loss
    results/NAME/metrics.json           train_loss, steps
    results/NAME/timing.json            what the training took, and on what
    graphs/NAME.json                    the graphs of a step (pipeline/graphs/graph.py)
    parity/NAME.json                    held-out loss and R², and the differences that parity is judged by
    results/curves/PROBLEM.csv          the loss curves of all implementations: step, train_loss, implementation
    results/predictions/PROBLEM.csv     target, prediction: a sample of the test set, by the first implementation
    results/fits/NAME.csv               target, before, after: a sample of the test set, and what is predicted of it
    results/parity.json                 the parity report
    results/benchmark.csv               every sample of the benchmark
    results/benchmark.json              where and when they were taken
    results/bench.csv, bench.json       the same of `make bench`, if it was run
    results/seeds.csv                   the experiments of `make seeds`, if it was run
    report.html, report/*.svg           the report
    lessons.html                        each lesson: idea, maths, code, graph, cost
    summary.json                        a few numbers, by which states of the experiment are compared
    state.json                          the digest of all of these, by which MLflow knows them

pipeline/results.py says what is in the JSON files. pipeline/array_files.py writes arrays; this file imports no NumPy. A
file is first written as .NAME.….part in the same folder and then renamed, so it is never half written.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.environment import Environment

ENVIRONMENT = Path("environment.json")
BENCHMARK_PLAN = Path("benchmark_plan.json")
PARITY_REPORT = Path("results/parity.json")
BENCHMARK = Path("results/benchmark.csv")
BENCHMARK_PROVENANCE = Path("results/benchmark.json")
BENCH = Path("results/bench.csv")  # of `make bench`, if it was run
BENCH_PROVENANCE = Path("results/bench.json")
SEEDS = Path("results/seeds.csv")  # of `make seeds`, if it was run
REPORT = Path("report.html")
LESSONS = Path("lessons.html")
SUMMARY = Path("summary.json")
FIGURES = Path("report")
PARITY = Path("parity")
GRAPHS = Path("graphs")
STATE = Path("state.json")
UNCACHED = (ENVIRONMENT, BENCHMARK_PLAN, STATE)  # DVC keeps these out of its cache
PART = ".part"  # the name of a file while it is written


def data_folder(problem: str) -> Path:
    return Path("data", problem)


def reference_file(problem: str) -> Path:
    return Path("reference", f"{problem}.safetensors")


def weights_file(name: str) -> Path:
    return Path("models", name, "weights.safetensors")


def outputs_file(name: str) -> Path:
    return Path("models", name, "outputs.safetensors")


def result_file(name: str, file: str) -> Path:
    return Path("results", name, file)


def parity_file(name: str) -> Path:
    return PARITY / f"{name}.json"


def graph_file(name: str) -> Path:
    return GRAPHS / f"{name}.json"


def curves_file(problem: str) -> Path:
    return Path("results", "curves", f"{problem}.csv")


def predictions_file(problem: str) -> Path:
    return Path("results", "predictions", f"{problem}.csv")


def fit_file(name: str) -> Path:
    return Path("results", "fits", f"{name}.csv")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=PART, delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.flush()
            with suppress(OSError):  # a file system without permissions
                os.fchmod(file.fileno(), 0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder, which is removed afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_parts() -> None:
    """Remove the unfinished files of a killed stage. Call it only while no stage writes."""
    folders = ("data", "reference", "models", "results", "parity", "graphs", "report")
    for part in (*Path().glob(f".*{PART}"), *(path for folder in folders for path in Path(folder).rglob(f".*{PART}"))):
        shutil.rmtree(part) if part.is_dir() else part.unlink()


def md5(path: Path) -> str:
    """The md5 of a file, as md5sum prints and dvc.lock records it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The content of a file that an earlier stage wrote. Raises UserError when it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing. `dvc repro` makes it.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it and run `dvc repro`.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (it holds no keys). Delete it and run `dvc repro`.")
    return content


def read_environment() -> Environment:
    from pydantic import TypeAdapter, ValidationError

    from pipeline.environment import Environment

    try:
        return TypeAdapter(Environment).validate_json(json.dumps(read_json(ENVIRONMENT)), strict=True)
    except ValidationError as error:
        what = f"{'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}"
        raise UserError(f"{ENVIRONMENT} is damaged ({what}). Delete it and run `dvc repro`.") from None


def write_rows(path: Path, header: str, rows: Iterable[tuple]) -> None:
    lines = (",".join(str(value) for value in row) for row in rows)
    write_bytes(path, "\n".join([header, *lines, ""]).encode())


def read_history(name: str) -> tuple[list[int], list[float]]:
    """The steps whose loss was kept, and their losses. Raises UserError when the file is missing or damaged."""
    steps, losses = _read_numbers(result_file(name, "history.csv"), ("step", "train_loss"), f"train@{name}")
    return [int(step) for step in steps], losses


def read_predictions(problem: str) -> tuple[list[float], list[float]]:
    """Targets and their predictions. Raises UserError when the file is missing or damaged."""
    targets, predictions = _read_numbers(predictions_file(problem), ("target", "prediction"), "evaluate")
    return targets, predictions


def read_fit(name: str) -> list[list[float]]:
    """Targets, and their predictions before and after training. Raises UserError as above."""
    return _read_numbers(fit_file(name), ("target", "before", "after"), "evaluate")


def _read_numbers(path: Path, columns: tuple[str, ...], stage: str) -> list[list[float]]:
    try:
        rows = read_rows(path)
        numbers = [[float(row[column]) for row in rows] for column in columns]
    except FileNotFoundError:
        raise UserError(f"{path} is missing. `dvc repro {stage}` makes it.") from None
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is damaged ({what}). Delete it and run `dvc repro {stage}`.") from None
    if not rows or not all(math.isfinite(number) for column in numbers for number in column):
        raise UserError(f"{path} is damaged (numbers are missing). Delete it and run `dvc repro {stage}`.")
    return numbers


def read_samples(path: Path = BENCHMARK) -> list[dict[str, str]]:
    """The rows of a table of samples. Raises UserError when the file is missing."""
    try:
        return read_rows(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing. `dvc repro benchmark` makes it.") from None


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
