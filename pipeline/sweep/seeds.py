"""Many seeds: the same experiment on other random numbers, queued, and all its results here as one table."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
import yaml

from pipeline import files
from pipeline.errors import UserError
from pipeline.git import git, run_dvc
from pipeline.params import PARAMS
from pipeline.results import Evaluation
from pipeline.sweep import queue
from pipeline.sweep.objects import entries, path_of

# Params that change no result of a training, wherever they are in params.yaml. `seed` has a column of its own.
NO_SETTING = {"seed", "benchmark", "implementations", "parity", "checkpoint_seconds"}


def stages() -> tuple[str, ...]:
    """The stages of a seed. Parity is judged over all seeds, so a seed that fails the parity check stops nothing."""
    return ("evaluate",)


def enqueue(count: int) -> None:
    """Queue the seeds 0 … count - 1 that are neither done nor queued, with the params of the working tree."""
    setting = _setting(yaml.safe_load(PARAMS.read_text(encoding="utf-8")))
    known = [params for _, params, _ in _experiments()] + [queue.params(queued.revision) for queued in queue.queued()]
    seeds = {params["seed"] for params in known if _setting(params) == setting}
    missing = [seed for seed in range(count) if seed not in seeds]
    if missing:
        override = f"seed={','.join(map(str, missing))}"
        done = run_dvc(".", "exp", "run", "--queue", "-S", override, capture_output=True)
        if done.returncode:
            raise UserError(f"the seeds cannot be queued: {done.stderr.strip()}")
    print(f"{len(missing)} of {count} seeds are queued; the others are here or were queued already.")


def collect() -> int:
    """Write results/seeds.csv: a row for each experiment of this commit and each implementation. Returns how many rows.

    Its columns: the experiment, its seed, the params in which experiments differ, the implementation, its problem, and
    what `evaluate` measured.
    """
    rows, settings = [], []
    for name, params, lock in _experiments():
        for implementation, problem in params["implementations"].items():
            if measures := _measures(lock, params, implementation, problem):
                settings.append(_setting(params))
                row = {"experiment": name, "seed": params["seed"], "implementation": implementation, "problem": problem}
                rows.append(row | measures)
    if rows:
        table, swept = pd.DataFrame(rows, dtype=object), pd.DataFrame(settings, dtype=object).sort_index(axis=1)
        for key in reversed(swept.columns[swept.astype(str).nunique() > 1]):
            table.insert(2, key, swept[key])
        files.write_bytes(files.SEEDS, table.sort_values("seed", kind="stable").to_csv(index=False).encode())
    return len(rows)


def _experiments() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, params and dvc.lock's stages of each experiment of this commit."""
    head = git("rev-parse", "HEAD")
    for ref in sorted(queue.refs(f"refs/exps/{head[:2]}/{head[2:]}")):
        yield ref.rpartition("/")[2], queue.params(ref), queue.stages(ref)


def _setting(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The params by their dotted names, without those that are no setting."""
    flat: dict[str, Any] = {}
    for key in section.keys() - NO_SETTING:
        value = section[key]
        flat |= _setting(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _measures(lock: dict[str, Any], params: dict[str, Any], name: str, problem: str) -> dict[str, float] | None:
    """What `evaluate` measured, if it did so on a training with these params: the experiment may be of some stages."""
    names = (f"generate@{problem}", f"reference@{problem}", f"train@{name}")
    if not {*names, "evaluate"} <= lock.keys():
        return None
    chain = [lock[stage] for stage in names]
    made = {out["path"]: out["md5"] for stage in chain for out in stage.get("outs", [])}
    used = [(dep["path"], dep["md5"]) for stage in chain for dep in stage.get("deps", [])]
    recorded = [item for stage in chain for item in stage.get("params", {}).get(str(PARAMS), {}).items()]
    if any(made.get(path, md5) != md5 for path, md5 in used) or any(
        _at(params, key) != value for key, value in recorded
    ):
        return None
    evaluations = {out["path"]: out["md5"] for out in lock["evaluate"]["outs"]}[str(files.PARITY)]
    path = path_of(entries(evaluations).get(f"{name}.json", ""))
    outputs = files.outputs_file(name)
    if not path.is_file():
        return None
    evaluation = Evaluation.read(path)
    if entries(made[str(outputs.parent)]).get(outputs.name) != evaluation.outputs_md5:
        return None  # `evaluate` did not run after this training
    return {"test_loss": evaluation.test_loss, "test_r2": evaluation.test_r2, **dict(evaluation.parity)}


def _at(params: Any, key: str) -> Any:
    for part in key.split("."):
        params = params.get(part) if isinstance(params, dict) else None
    return params
