"""What a stage leaves on disk: the one place that names, writes and checks result files.

    environment.json                    what the experiment runs on
    data/PROBLEM/                       the random data and the initial weights (pipeline/data.py)
    reference/PROBLEM.safetensors       the float64 reference run
    models/NAME/weights.safetensors     weights after training
    results/NAME/history.csv            step, train_loss
    results/NAME/metrics.json           train_loss, steps
    results/NAME/timing.json            where the training ran and what it took: the ledger of its seconds
    results/NAME/evaluation.json        held-out loss and R², and the differences that parity is judged by
    parity/NAME.json                    the same differences, with the curve; in a folder of their own (see dvc.yaml)
    results/NAME/benchmark.csv          every sample of the benchmark: seconds for so many steps, of each contestant
    results/NAME/benchmark.json         where and when it was taken
    results/comparison.json             the parity certificate
    results/curves/PROBLEM.csv          the loss curves of all implementations: step, train_loss, implementation
    report.html, report/*.svg           what it all says

Weights and other tensors are written by pipeline/tensors.py; this file imports no NumPy, so that a `dvc repro` with
nothing to do is quick. A file is written beside its place and then renamed into it: it is there whole, or as before.
"""

import csv
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.environment import Environment, framework_of
from pipeline.errors import UserError

ENVIRONMENT = Path("environment.json")
COMPARISON = Path("results/comparison.json")
REPORT = Path("report.html")
FIGURES = Path("report")
PARITY = Path("parity")


def data_folder(problem: str) -> Path:
    return Path("data", problem)


def reference_file(problem: str) -> Path:
    return Path("reference", f"{problem}.safetensors")


def weights_file(name: str) -> Path:
    return Path("models", name, "weights.safetensors")


def result_file(name: str, file: str) -> Path:
    return Path("results", name, file)


def parity_file(name: str) -> Path:
    return PARITY / f"{name}.json"


def curves_file(problem: str) -> Path:
    return Path("results", "curves", f"{problem}.csv")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The content of a file that an earlier stage wrote. Raises UserError when it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing. `dvc repro` makes it.") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Delete it and run `dvc repro`.") from None


def read_environment() -> Environment:
    try:
        return Environment(**read_json(ENVIRONMENT))
    except TypeError as error:
        raise UserError(f"{ENVIRONMENT} is damaged ({error}). Delete it and run `dvc repro`.") from None


def write_rows(path: Path, header: str, rows: Iterable[tuple]) -> None:
    lines = (",".join(str(value) for value in row) for row in rows)
    write_bytes(path, "\n".join([header, *lines, ""]).encode())


def read_history(name: str) -> list[float]:
    """The loss of each step. Raises UserError when the file is missing or damaged."""
    path = result_file(name, "history.csv")
    try:
        with path.open(newline="") as file:
            losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
        if not losses:
            raise ValueError("it holds no step")
        return losses
    except FileNotFoundError:
        raise UserError(f"{path} is missing. `dvc repro train@{name}` makes it.") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}). Delete it and run `dvc repro train@{name}`.") from None


def write_history(name: str, losses: list[float]) -> None:
    """The loss of each step and the last of them: what repeats to the bit."""
    write_rows(result_file(name, "history.csv"), "step,train_loss", enumerate(losses))
    write_json(result_file(name, "metrics.json"), {"train_loss": losses[-1], "steps": len(losses)})


def write_timing(name: str, environment: Environment, seconds: Mapping[str, float], peak_memory_bytes: int) -> None:
    """Where and when a training ran and what it took: what does not repeat. `seconds` as Stopwatch.summary has them."""
    timing = {**seconds, "peak_memory_bytes": peak_memory_bytes}
    write_json(result_file(name, "timing.json"), _circumstances(name, environment, timing))


def write_benchmark(name: str, environment: Environment, samples: list[tuple[Any, float, Any]], others: float) -> None:
    """The samples of pipeline.benchmark.benchmark, all of them, and where and when they were taken.

    `others` is how many CPUs other processes kept busy meanwhile (pipeline.timing.other_processes).
    """
    write_samples(result_file(name, "benchmark.csv"), samples)
    measured = {"samples": len(samples), "cpus_of_other_processes": round(others, 2)}
    write_json(result_file(name, "benchmark.json"), _circumstances(name, environment, measured))


def write_samples(path: Path, samples: list[tuple[Any, float, Any]]) -> None:
    header = ",".join([*vars(samples[0][0]), "total_length", "contestant", "round", "steps", "seconds"])
    write_rows(path, header, ((*vars(case).values(), total_length, *sample) for case, total_length, sample in samples))


def read_benchmark(name: str) -> list[dict[str, str]]:
    """The rows of benchmark.csv. Raises UserError when the file is missing."""
    path = result_file(name, "benchmark.csv")
    try:
        return read_rows(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing. `dvc repro benchmark@{name}` makes it.") from None


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def restored(measured: Mapping[str, Any]) -> bool:
    """Whether what was measured is older than this run of the pipeline, which writes environment.json as it starts."""
    return datetime.fromisoformat(measured["measured_at"]).timestamp() < int(ENVIRONMENT.stat().st_mtime)


def git(*arguments: str) -> str:
    """What git answers, or unknown without git or a repository: results need neither."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _circumstances(name: str, environment: Environment, measured: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured, between on what and when."""
    device, device_name = environment.device_of(framework_of(name))
    # dvc.lock changes with every stage that ran; what else has changed is not what the commit says.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    return {
        "device": device,
        "device_name": device_name,
        "threads": environment.threads,
        **measured,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "measured_on": platform.node(),
        "commit": git("rev-parse", "HEAD") + ("" if changed in ("", "unknown") else " with changes"),
    }
