"""Many seeds: the same experiment on other random numbers, queued, and all that is here of it as one table."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import yaml

from pipeline import files
from pipeline.params import Params
from pipeline.sweep import queue
from pipeline.sweep.import_results import CACHE

# Params that change no result of a training, or what is judged rather than what is done. `seed` has its own column.
NO_SETTING = ("seed", "benchmark", "implementations", "parity", "train.checkpoint_seconds")


def stages(params: Params) -> tuple[str, ...]:
    """What a seed needs: it is judged here, over all seeds, so a breach of one does not stop it."""
    return tuple(f"evaluate@{name}" for name in params.implementations)


def enqueue(count: int) -> None:
    """Queue the seeds 0 … count - 1 that are neither here nor queued, with the params of the working tree."""
    from pipeline.params import PARAMS

    now = yaml.safe_load(PARAMS.read_text())
    setting = _setting(now)
    known = [found for _, found in _here()] + [queue.params(each) for each in queue.queued()]
    there = {found["seed"] for found in known if _setting(found) == setting}
    missing = [seed for seed in range(count) if seed not in there]
    if missing:
        seeds = f"seed={','.join(map(str, missing))}"
        command = [sys.executable, "-P", "-m", "dvc", "exp", "run", "--queue", "-S", seeds]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"{len(missing)} of {count} seeds are queued; the others are here or were queued already.")


def collect() -> int:
    """Write results/seeds.csv: a row for each experiment of this commit and each implementation. Returns how many rows.

    Its columns: the experiment, its seed, the params in which experiments differ, the implementation, its problem, and
    what `evaluate` measured.
    """
    found = [(name, params, lock) for (name, lock), params in _here_with_locks()]
    settings = [_setting(params) for _, params, _ in found]
    swept = sorted({key for one in settings for key in one if any(each.get(key) != one[key] for each in settings)})
    rows = [
        (name, params["seed"], *(setting.get(key, "") for key in swept), implementation, problem, *measured.values())
        for (name, params, lock), setting in zip(found, settings, strict=True)
        for implementation, problem in params["implementations"].items()
        if (measured := _measured(lock, params, implementation, problem))
    ]
    measures = "initial_test_loss,test_loss,test_r2,gradient_relative_error,loss_curve_relative_difference,"
    header = ",".join(["experiment", "seed", *swept, "implementation", "problem", measures])
    files.write_rows(files.SEEDS, f"{header}predictions_relative_difference", sorted(rows, key=lambda row: row[1]))
    return len(rows)


def _here() -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, params) for (name, _), params in _here_with_locks())


def _here_with_locks() -> Iterator[tuple[tuple[str, dict[str, Any]], dict[str, Any]]]:
    """Name, dvc.lock and params of each experiment of this commit."""
    head = queue.git("rev-parse", "HEAD")
    for ref in sorted(queue.refs()):
        if ref.startswith(f"refs/exps/{head[:2]}/{head[2:]}/"):
            lock = yaml.load(queue.git("show", f"{ref}:dvc.lock"), yaml.CSafeLoader)["stages"]
            yield (ref.rpartition("/")[2], lock), yaml.safe_load(queue.git("show", f"{ref}:params.yaml"))


def _setting(params: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The params by their dotted names, without those that are no setting."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        name = f"{prefix}{key}"
        if name not in NO_SETTING:
            flat |= _setting(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _measured(lock: dict[str, Any], params: dict[str, Any], name: str, problem: str) -> dict[str, float] | None:
    """What `evaluate` measured, if it did so on a training with these params: the experiment may be of some stages."""
    chain = (f"generate@{problem}", f"reference@{problem}", f"train@{name}", f"evaluate@{name}")
    if any(stage not in lock for stage in chain):
        return None
    made = {out["path"]: out["md5"] for stage in chain for out in lock[stage].get("outs", [])}
    for stage in chain:
        if any(made.get(dep["path"], dep["md5"]) != dep["md5"] for dep in lock[stage].get("deps", [])):
            return None
        recorded = lock[stage].get("params", {}).get("params.yaml", {})
        if any(_at(params, key) != value for key, value in recorded.items()):
            return None
    md5 = made[str(files.result_file(name, "evaluation.json"))]
    path = CACHE / md5[:2] / md5[2:]
    return json.loads(path.read_text()) if path.exists() else None


def _at(params: Any, key: str) -> Any:
    for part in key.split("."):
        params = params.get(part) if isinstance(params, dict) else None
    return params
