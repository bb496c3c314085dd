"""What a stage leaves on disk: the one place that names, writes and checks result files.

    environment.json                    what the experiment runs on
    data/PROBLEM/                       the random data and the initial weights (pipeline/training/data.py)
    reference/PROBLEM.safetensors       the float64 reference run
    models/NAME/weights.safetensors     weights after training
    models/NAME/outputs.safetensors     what is judged: losses, predictions before and after training, first gradient
    results/NAME/history.csv            step, train_loss
    results/NAME/metrics.json           train_loss, steps
    results/NAME/graph.json             the graphs that a step builds, or its operations (pipeline/graphs)
    results/NAME/timing.json            what the training took, and on what
    results/NAME/evaluation.json        held-out loss and R², and the differences that parity is judged by
    parity/NAME.json                    the same differences, with the curve; in a folder of their own (see dvc.yaml)
    results/benchmark.csv               every sample of the benchmark
    results/benchmark.json              where and when they were taken
    results/bench.csv, bench.json       the same of `make bench`, if it was run
    results/seeds.csv                   the experiments of `make seeds`, if it was run
    results/comparison.json             the parity certificate
    results/curves/PROBLEM.csv          the loss curves of all implementations: step, train_loss, implementation
    report.html, report/*.svg           what it all says
    lessons.html                        each lesson: idea, maths, code, graph, cost
    summary.json                        a few numbers, by which states of the experiment are compared

Arrays are written by pipeline/array_files.py; this file imports no NumPy, so that a `dvc repro` with nothing to do is
quick. A file is written beside its place, as .NAME.….part, and then renamed into it: it is there whole, or as before.
"""

import csv
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.environment import Environment
from pipeline.errors import UserError

ENVIRONMENT = Path("environment.json")
COMPARISON = Path("results/comparison.json")
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
PART = ".part"  # what a file is called while it is written


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


def curves_file(problem: str) -> Path:
    return Path("results", "curves", f"{problem}.csv")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=PART, delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder, which is gone afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_parts() -> None:
    """Remove what a killed stage had begun to write. Call it where no stage can be writing."""
    folders = ("data", "reference", "models", "results", "parity", "report")
    for part in (*Path().glob(f".*{PART}"), *(each for folder in folders for each in Path(folder).rglob(f".*{PART}"))):
        shutil.rmtree(part) if part.is_dir() else part.unlink()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The content of a file that an earlier stage wrote. Raises UserError when it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing. `dvc repro` makes it.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it and run `dvc repro`.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (it holds no keys). Delete it and run `dvc repro`.")
    return content


def read_environment() -> Environment:
    from pydantic import TypeAdapter, ValidationError  # a benchmark on a bare GPU machine does without

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
    path = result_file(name, "history.csv")
    try:
        rows = read_rows(path)
        found = [int(row["step"]) for row in rows], [float(row["train_loss"]) for row in rows]
    except FileNotFoundError:
        raise UserError(f"{path} is missing. `dvc repro train@{name}` makes it.") from None
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is damaged ({what}). Delete it and run `dvc repro train@{name}`.") from None
    if not rows or not all(map(math.isfinite, found[1])):
        raise UserError(f"{path} is damaged (losses are missing). Delete it and run `dvc repro train@{name}`.")
    return found


def write_history(name: str, steps: range, losses: list[float], total: int) -> None:
    """The loss at each of `steps`, and the last of them: bitwise reproducible, as a timing is not."""
    write_rows(result_file(name, "history.csv"), "step,train_loss", zip(steps, losses, strict=True))
    write_json(result_file(name, "metrics.json"), {"train_loss": losses[-1], "steps": total})


def read_samples(path: Path = BENCHMARK) -> list[dict[str, str]]:
    """The rows of a table of samples. Raises UserError when the file is missing."""
    try:
        return read_rows(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing. `dvc repro benchmark` makes it.") from None


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
