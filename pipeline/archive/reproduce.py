"""A run again, from its id in the store: the commit and what was changed then, in a folder of its own, and a verdict.

bitwise identical    every digest is equal
within tolerance     weights differ, on other hardware or versions, but losses and predictions are within parity
differs              beyond tolerance, or different although hardware and versions are the same
cannot               a sentence on what is missing
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import files
from pipeline.array_files import read_arrays
from pipeline.environment import resolve
from pipeline.git import PATCH
from pipeline.params import Params, load_params
from pipeline.parity.evaluation import relative_difference
from pipeline.tracking import store

FOLDER = Path(".dvc/tmp/reproduce")
IDENTICAL, WITHIN, DIFFERS, CANNOT = "bitwise identical", "within tolerance", "differs", "cannot"
EXIT = {IDENTICAL: 0, WITHIN: 0, DIFFERS: 1, CANNOT: 2}
FACTS = ("cpu_name", "device_name", "driver", "threads", "precision", "deterministic", "python", "versions")


class CannotError(Exception):
    """What keeps a run from being reproduced, and what to do."""


class Row(NamedTuple):
    what: str
    then: str
    now: str
    equal: str  # yes, no, or by how much it differs


class Verdict(NamedTuple):
    run_id: str
    verdict: str
    reason: str
    rows: list[Row]


def reproduce(beginning: str) -> Verdict:
    """Run again what the run of this id, or its unique beginning, ran."""
    client, experiment, run, parent = store.find(beginning)
    try:
        with files.scratch(FOLDER / run.info.run_id) as folder:
            verdict = _again(client, run, parent, folder)
    except CannotError as error:
        verdict = Verdict(run.info.run_id, CANNOT, str(error), [])
    path = Path("reproduced", f"{run.info.run_id}.json")
    files.write_json(path, verdict._asdict() | {"rows": [row._asdict() for row in verdict.rows]})
    tags = {"role": "reproduction", "reproduces": run.info.run_id, "verdict": verdict.verdict}
    tags |= {"mlflow.note.content": table(verdict)}
    shown = client.create_run(experiment, run_name=f"{run.info.run_name} again", tags=tags).info.run_id
    client.log_artifact(shown, str(path))
    client.set_terminated(shown)
    return verdict


def table(verdict: Verdict) -> str:
    lines = ["| what | then | now | equal? |", "|---|---|---|---|"]
    lines += [f"| {row.what} | {row.then} | {row.now} | {row.equal} |" for row in verdict.rows]
    return "\n".join([*(lines if verdict.rows else []), "", f"{verdict.verdict}: {verdict.reason}"])


def check_out(client: Any, parent: Any, folder: Path) -> Path:
    """The code that a state was made with, its commit and what differed from that, in a clone below `folder`.

    Raises CannotError on what is missing.
    """
    tags = parent.data.tags
    if tags.get("reproducible", "yes") != "yes":
        raise CannotError(tags["reproducible"])
    commit = tags["git.commit"]
    if subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True, check=False).returncode:
        raise CannotError(f"the commit {commit} is not in this clone. Fetch it: git fetch origin {commit}")
    checkout = folder / "checkout"
    download(client, parent.info.run_id, [PATCH], folder)
    _git("clone", "--quiet", "--shared", "--no-checkout", ".", str(checkout))
    _git("-C", str(checkout), "checkout", "--quiet", commit)
    if (folder / PATCH).stat().st_size:
        _git("-C", str(checkout), "apply", "--binary", str((folder / PATCH).resolve()))
    return checkout


def _again(client: Any, run: Any, parent: Any, folder: Path) -> Verdict:
    then, checkout = folder / "then", check_out(client, parent, folder)
    download(client, parent.info.run_id, ["environment.json"], then)
    environment = files.read_json(then / "environment.json")
    with chdir(checkout):  # whose lessons they name
        params = load_params()
    name = run.data.tags.get("implementation")
    children = [run] if name else store.children(client, parent)
    names = [child.data.tags["implementation"] for child in children]
    differing = _hardware(params, environment, checkout)
    _repro(checkout, [f"evaluate@{each}" for each in names])
    rows, worst = [], 0.0
    for child in children:
        found = _compare(client, child, params, then / child.info.run_id, checkout)
        rows += found[0]
        worst = max(worst, found[1])
    if all(row.equal != "no" for row in rows):
        return Verdict(run.info.run_id, IDENTICAL, "every digest is equal", rows)
    if worst <= 1 and differing:
        return Verdict(run.info.run_id, WITHIN, f"these differ: {'; '.join(differing)}", rows)
    why = "beyond the tolerances of its params" if worst > 1 else "although hardware and versions are the same"
    return Verdict(run.info.run_id, DIFFERS, why, rows)


def _hardware(params: Params, then: Mapping[str, Any], checkout: Path) -> list[str]:
    """What of hardware and versions is not as it was."""
    now = resolve(params)
    if then["device"] != "cpu" and now.device == "cpu":
        raise CannotError(f"it ran on {then['device']}, {then['device_name']}, and there is no CUDA device here")
    pins = "".join(path.read_text() for path in (checkout / "requirements").glob("*.txt"))
    for package, version in now.versions.items():
        if pins and package in then["versions"] and f"=={version.split('+')[0]}" not in pins:
            raise CannotError(
                f"{package} {version} is installed, which its commit's lock does not hold: make setup in a clone of it"
            )
    return [f"{key} was {then[key]}, is {getattr(now, key)}" for key in FACTS if then.get(key) != getattr(now, key)]


def _repro(checkout: Path, targets: list[str]) -> None:
    inherited = ("DVC_ROOT", "DVC_STAGE", "DVC_EXP", "MLFLOW_", "PIPELINE_LOCK")  # other runs', and another store's
    environment = {key: value for key, value in os.environ.items() if not key.startswith(inherited)}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "dvc", "repro", *targets],
        cwd=checkout,
        env=environment,
        stdout=sys.stderr,
        check=False,
    )
    if done.returncode:
        raise CannotError("its stages fail here, as is said above")


def _compare(client: Any, child: Any, params: Params, then: Path, checkout: Path) -> tuple[list[Row], float]:
    """A row for everything that is compared, and the largest difference, in units of what parity tolerates."""
    name, problem = child.data.tags["implementation"], child.data.tags["problem"]
    download(client, child.info.run_id, ["outputs.safetensors", "timing.json"], then)
    rows = []
    for what, path in {
        "data": files.data_folder(problem) / "manifest.json",
        "weights": files.weights_file(name),
        "history": files.result_file(name, "history.csv"),
        "metrics": files.result_file(name, "metrics.json"),
        "evaluation": files.result_file(name, "evaluation.json"),
    }.items():
        before, after = child.data.tags[f"md5.{what}"], store.md5(checkout / path)
        rows.append(Row(f"{name}: {what}", before[:8], after[:8], "yes" if before == after else "no"))
    one, other = read_arrays(then / "outputs.safetensors"), read_arrays(checkout / files.outputs_file(name))
    tolerances = params.tolerances
    curve = float(np.max(np.abs(other["train_loss"] / one["train_loss"] - 1)))
    predictions = relative_difference(other["predictions"], one["predictions"])
    for what, found, limit in (
        ("loss curve", curve, tolerances.loss_curve),
        ("predictions", predictions, tolerances.predictions),
    ):
        rows.append(Row(f"{name}: {what}", "", f"differs by {found:.1e}", f"tolerance {limit:.1e}"))
    before, after = (
        json.loads(path.read_text())
        for path in (then / "timing.json", checkout / files.result_file(name, "timing.json"))
    )
    steps = [f"{1e6 * timing['step_seconds_median']:.0f} µs" for timing in (before, after)]
    rows.append(Row(f"{name}: a step", steps[0], steps[1], "not judged"))
    return rows, max(curve / tolerances.loss_curve, predictions / tolerances.predictions)


def download(client: Any, run_id: str, paths: list[str], folder: Path) -> None:
    """Artifacts of a run. Raises CannotError when one is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {each.path for each in client.list_artifacts(run_id)}
    for path in paths:
        if path not in there:
            raise CannotError(f"its artifact {path} is gone from the store")
        client.download_artifacts(run_id, path, str(folder))


def _git(*arguments: str) -> None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotError(f"git {arguments[0]} failed: {done.stderr.strip()}")
