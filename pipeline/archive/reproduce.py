"""Reproduce a run of the store in a separate folder, and give a verdict.

bitwise identical every digest is equal within tolerance weights differ, on other hardware, versions or variables;
losses and predictions are within tolerance differs beyond tolerance, or different although hardware and versions are
the same cannot a sentence says what is missing
"""

import sys
from contextlib import chdir
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files
from pipeline.archive import check_out, download, find, tag
from pipeline.array_files import read_arrays
from pipeline.environment import differences, resolve
from pipeline.errors import UserError
from pipeline.params import Params, load_params
from pipeline.parity.evaluation import relative_difference
from pipeline.running.processes import run_dvc, run_stage
from pipeline.text import columns
from pipeline.tracking import store

FOLDER = Path(".dvc/tmp/reproduce")
IDENTICAL, WITHIN, DIFFERS, CANNOT = "bitwise identical", "within tolerance", "differs", "cannot"
EXIT = {IDENTICAL: 0, WITHIN: 0, DIFFERS: 1, CANNOT: 2}


@dataclass(frozen=True)
class Verdict:
    run_id: str
    verdict: str
    reason: str
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)  # what, then, now, equal?

    def __str__(self) -> str:
        """The verdict below a table in Markdown."""
        table = columns([("what", "then", "now", "equal?"), ("---",) * 4, *self.rows], " | ") if self.rows else ""
        return f"{table}\n\n{self.verdict}: {self.reason}"


def reproduce(beginning: str) -> Verdict:
    """Reproduce a run. `run_id` is its id or the unique beginning of it. Raises UserError when there is no such run or
    it cannot be reproduced.
    """
    client, experiment, run, parent = find(beginning)
    run_id = run.info.run_id
    try:
        with files.scratch(FOLDER / run_id) as folder:
            verdict = _run_again(client, run, parent, folder)
    except UserError as error:
        verdict = Verdict(run_id, CANNOT, str(error))
    path = Path("reproduced", f"{run_id}.json")
    files.write_json(path, asdict(verdict))
    tags = {"role": "reproduction", "reproduces": run_id, "verdict": verdict.verdict}
    with store.warning(f"The verdict is in {path}."):
        name, tags = f"{run.info.run_name} again", tags | {"mlflow.note.content": str(verdict)}
        logged = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        client.log_artifact(logged, str(path))
        client.set_terminated(logged)
    return verdict


def _run_again(client: Any, run: Any, parent: Any, folder: Path) -> Verdict:
    then, clone = folder / "then", check_out(client, parent, folder)
    download(client, parent.info.run_id, [str(files.ENVIRONMENT)], then)
    with chdir(clone):  # params.yaml names the lessons of the clone
        params = load_params()
    other_machine = _other_machine(params, files.read_json(then / files.ENVIRONMENT), clone)
    children = [run] if "implementation" in run.data.tags else store.children(client, parent)
    names = [tag(child, "implementation") for child in children]
    problems = {tag(child, "problem") for child in children}
    stages = [*(f"train@{name}" for name in names), *(f"reference@{problem}" for problem in sorted(problems))]
    # `evaluate` runs as a program, because DVC's stage depends on all implementations.
    trained = run_dvc(clone, "repro", *stages, stdout=sys.stderr).returncode == 0
    if not trained or run_stage(clone, "evaluate", *names, stdout=sys.stderr).returncode:
        raise UserError("a stage failed, and its error is above.")
    rows, differences = [], []
    for child in children:
        name, problem = tag(child, "implementation"), tag(child, "problem")
        rows += _digests(child, name, problem, clone)
        download(client, child.info.run_id, ["outputs.safetensors", "timing.json"], then / name)
        compared, difference = _compare(name, params, then / name, clone)
        rows += compared
        differences.append(difference)
    if all(row[3] != "no" for row in rows):
        return Verdict(run.info.run_id, IDENTICAL, "every digest is equal", rows)
    if max(differences) <= 1 and other_machine:
        return Verdict(run.info.run_id, WITHIN, f"these differ: {'; '.join(other_machine)}", rows)
    beyond = "although hardware and versions are the same" if max(differences) <= 1 else "beyond its params' tolerances"
    return Verdict(run.info.run_id, DIFFERS, beyond, rows)


def _other_machine(params: Params, then: dict[str, Any], clone: Path) -> list[str]:
    """The differences in hardware and versions. Raises UserError where the run is impossible on this machine."""
    now = resolve(params)
    if then["device"] != "cpu" and now.device == "cpu":
        device = f"{then['device']}, {then['device_name']}"
        raise UserError(f"it ran on {device}, and this machine has no CUDA device. Reproduce it on a machine with one.")
    pins = "".join(path.read_text(encoding="utf-8") for path in (clone / "requirements").glob("*.txt"))
    for package, version in now.versions.items():
        if pins and package in then["versions"] and f"=={version.split('+')[0]}" not in pins:
            remedy = "Run `make setup` and `make reproduce` in a clone of its commit."
            raise UserError(f"{package} {version} is installed, and its commit locks another version. {remedy}")
    return differences(then, asdict(now))


def _digests(run: Any, name: str, problem: str, clone: Path) -> list[tuple[str, str, str, str]]:
    """A row for each file that is bitwise reproducible."""
    paths = {"data": files.data_folder(problem) / "manifest.json", "weights": files.weights_file(name)}
    paths |= {path.partition(".")[0]: files.result_file(name, path) for path in ("history.csv", "metrics.json")}
    paths["evaluation"] = files.parity_file(name)
    digests = ((what, tag(run, f"md5.{what}"), files.md5(clone / path)) for what, path in paths.items())
    return [(f"{name}: {what}", then[:8], now[:8], "yes" if then == now else "no") for what, then, now in digests]


def _compare(name: str, params: Params, then: Path, clone: Path) -> tuple[list[tuple[str, str, str, str]], float]:
    """Rows for the losses, predictions and step time, and the largest difference as a multiple of its tolerance."""
    old, new = read_arrays(then / "outputs.safetensors"), read_arrays(clone / files.outputs_file(name))
    differences = {
        "loss curve": (float(np.max(np.abs(new["train_loss"] / old["train_loss"] - 1))), params.tolerances.loss_curve),
        "predictions": (relative_difference(new["predictions"], old["predictions"]), params.tolerances.predictions),
    }
    rows = [
        (f"{name}: {what}", "", f"differs by {difference:.1e}", f"tolerance {tolerance:.1e}")
        for what, (difference, tolerance) in differences.items()
    ]
    timings = (then / "timing.json", clone / files.result_file(name, "timing.json"))
    was, now = (f"{1e6 * files.read_json(path)['step_seconds_median']:.0f} µs" for path in timings)
    return [*rows, (f"{name}: a step", was, now, "not judged")], max(
        difference / tolerance for difference, tolerance in differences.values()
    )
