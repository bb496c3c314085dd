"""Many seeds: queue the same experiment with other random numbers, and join the results in one table."""

import functools
import shlex
from collections.abc import Callable, Iterator
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pipeline import files
from pipeline.archive import dvc_md5
from pipeline.errors import UserError
from pipeline.git import cache_folder, git, run_dvc
from pipeline.measures import Measures
from pipeline.params import PARAMS
from pipeline.results import Evaluation
from pipeline.sweep import queue
from pipeline.sweep.objects import entries, path_of

MEASURES = ("test_loss", "test_r2", *Measures.model_fields)
# Params that change no result of a training, wherever they are in params.yaml. `seed` has a column of its own.
NO_SETTING = {"seed", "benchmark", "implementations", "parity", "checkpoint_seconds"}


def stages() -> tuple[str, ...]:
    """The stages of a seed. Parity is judged over all seeds, so a seed that fails the parity check stops nothing."""
    return ("evaluate",)


def enqueue(count: int) -> None:
    """Queue those seeds of 0 … count - 1 that have neither results here nor a place in the queue, with the params and
    the code of the working tree. Raises UserError when a file of the pipeline is untracked, because DVC queues only
    files that git tracks.
    """
    if new := queue.untracked():
        names = shlex.join(new)
        raise UserError(f"Git does not know {names}, so no seed would have it. git add {names}")
    missing = sorted(set(range(count)) - _here() - _queued())
    if missing:
        override = f"seed={','.join(map(str, missing))}"
        done = run_dvc(".", "exp", "run", "--queue", "-S", override, capture_output=True)
        if done.returncode:
            raise UserError(f"The seeds cannot be queued: {done.stderr.strip()}")
    print(f"{len(missing)} of {count} seeds are queued; the others are here or were queued already.")


def collect(count: int = 0) -> int:
    """Write results/seeds.csv: a row for each experiment of this commit and each implementation. Returns how many.

    Its columns: the experiment, its seed, the params in which experiments differ, the implementation, its problem, and
    what `evaluate` measured. Those columns are empty for a seed of 0 … count - 1 that failed.
    """
    rows, settings, code, cache = [], [], _code(), cache_folder()

    def add(experiment: str, params: dict[str, Any], name: str, measures: dict[str, float]) -> None:
        settings.append(_setting(params))
        problem = params["implementations"][name]
        row = {"experiment": experiment, "seed": params["seed"], "implementation": name, "problem": problem}
        rows.append(row | measures)

    for experiment, params, lock in _experiments():
        for name in params["implementations"]:
            if measures := _measures(lock, params, name, code, cache):
                add(experiment, params, name, measures)
    number = len(rows)
    here = _params()
    for seed in sorted(set(range(count)) - _here() - _queued()) if rows else ():
        for name in here["implementations"]:
            add("", here | {"seed": seed}, name, dict.fromkeys(MEASURES, nan))
    if rows:
        table: Any = pd.DataFrame(rows, dtype=object)
        swept = pd.DataFrame(settings, dtype=object).sort_index(axis=1)
        for key in reversed(swept.columns[swept.astype(str).nunique() > 1]):
            table.insert(2, key, swept[key])
        # The same code and params were run again: the results are the same.
        keys = table[table.columns[1 : list(table).index("problem")]]
        table = table[~keys.astype(str).duplicated(keep="last")]
        files.write_bytes(files.SEEDS, table.sort_values("seed", kind="stable").to_csv(index=False).encode())
    return number


def _here() -> set[int]:
    """The seeds with results of all implementations here, for the params and the code of the working tree."""
    here, code, cache = _params(), _code(), cache_folder()
    names, setting = here["implementations"], _setting(here)
    return {
        params["seed"]
        for _, params, lock in _experiments()
        if _setting(params) == setting
        and names.items() <= params["implementations"].items()
        and all(_measures(lock, params, name, code, cache) for name in names)
    }


def _queued() -> set[int]:
    setting = _setting(_params())
    queued = [queue.params(experiment.revision) for experiment in queue.queued()]
    return {params["seed"] for params in queued if _setting(params) == setting}


def _params() -> dict[str, Any]:
    return yaml.safe_load(PARAMS.read_text(encoding="utf-8"))


def _code() -> Callable[[str], str | None]:
    """A function that returns the md5 of a stage's dependency in the form of dvc.lock, if the dependency is code. For a
    folder only the files that git tracks count, because an experiment has no others."""
    names = git("ls-files", "-z", "--", "pipeline").split("\0")
    names = [name for name in names if name and Path(name).is_file()]

    @functools.cache
    def md5(path: str) -> str | None:
        within = [name.removeprefix(f"{path}/") for name in names if name.startswith(f"{path}/")]
        return dvc_md5(Path(path), within) if within or path in names else None

    return md5


def _experiments() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, params and dvc.lock's stages of each experiment of this commit."""
    head = git("rev-parse", "HEAD")
    for ref in sorted(queue.refs(f"refs/exps/{head[:2]}/{head[2:]}")):
        yield ref.rpartition("/")[2], queue.params(ref), queue.stages(ref)


def _setting(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The params by their dotted names, without those that are not settings of a training."""
    flat: dict[str, Any] = {}
    for key in section.keys() - NO_SETTING:
        value = section[key]
        flat |= _setting(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _measures(
    lock: dict[str, Any], params: dict[str, Any], name: str, code: Callable[[str], str | None], cache: Path
) -> dict[str, float] | None:
    """The evaluation of an implementation, if it belongs to a training with these params and this code and is in the
    cache. The experiment may have run only some stages."""
    problem = params["implementations"][name]
    names = (f"generate@{problem}", f"reference@{problem}", f"train@{name}")
    if not {*names, "evaluate"} <= lock.keys():
        return None
    chain = [lock[stage] for stage in names]
    made = {out["path"]: out["md5"] for stage in chain for out in stage.get("outs", [])}
    used = [(dep["path"], dep["md5"]) for stage in chain for dep in stage.get("deps", [])]
    evaluated = [(dep["path"], dep["md5"]) for dep in lock["evaluate"]["deps"]]
    recorded = [item for stage in chain for item in stage.get("params", {}).get(str(PARAMS), {}).items()]
    if (
        any(made.get(path, md5) != md5 for path, md5 in used)
        or any(_at(params, key) != value for key, value in recorded)
        or any(code(path) not in (None, md5) for path, md5 in used + evaluated)
    ):
        return None
    evaluations = {out["path"]: out["md5"] for out in lock["evaluate"]["outs"]}[str(files.PARITY)]
    path = path_of(entries(evaluations, cache).get(f"{name}.json", ""), cache)
    outputs = files.outputs_file(name)
    if not path.is_file():
        return None
    evaluation = Evaluation.read(path)
    if entries(made[str(outputs.parent)], cache).get(outputs.name) != evaluation.outputs_md5:
        return None  # `evaluate` did not run after this training
    return {"test_loss": evaluation.test_loss, "test_r2": evaluation.test_r2, **dict(evaluation.parity)}


def _at(params: Any, key: str) -> Any:
    for part in key.split("."):
        params = params.get(part) if isinstance(params, dict) else None
    return params
