"""Import an experiment's results from its node. The import is complete when every output in its dvc.lock is here."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from pipeline import files
from pipeline.errors import UserError
from pipeline.git import cache_folder, git
from pipeline.sweep import queue
from pipeline.sweep.node import Outcome
from pipeline.sweep.objects import path_of, with_files
from pipeline.sweep.queue import Experiment


class DamagedError(UserError):
    """The results differ from those that the experiment's dvc.lock names."""


def import_results(experiment: Experiment, outcome: Outcome, *, whole: bool = True) -> None:
    """Write the objects into DVC's cache, check that nothing is missing, and only then create the experiment's ref.

    With `whole` all stages were run. Otherwise results that the baseline already had may be missing here.
    """
    cache = cache_folder()
    for md5, content in outcome.objects:
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5.removesuffix(".dir"):
            raise DamagedError(f"{experiment.name}: the object {md5} was damaged during transfer")
        path = path_of(md5, cache)
        if not path.exists():
            files.write_bytes(path, content)
            with suppress(OSError):  # not all file systems have permissions
                path.chmod(0o444)
    bundle, ref = Path(f".dvc/tmp/imported.{os.getpid()}.bundle"), f"refs/sweep/imported/{experiment.name}"
    bundle.write_bytes(outcome.bundle)
    try:
        git("fetch", "--quiet", str(bundle.resolve()), f"+{experiment.ref}:{ref}")
        if outcome.pushed:
            _fetch(ref)
        _check(experiment, ref, whole, cache)
        git("update-ref", experiment.ref, ref)
    finally:
        bundle.unlink()
        git("update-ref", "-d", ref, default="")


def _fetch(ref: str) -> None:
    """Fetch its objects from the DVC remote to which the node pushed them."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            repo.fetch(revs=[git("rev-parse", ref)], workspace=False)
    except (DvcException, OSError) as error:
        raise DamagedError(f"its results are in the DVC remote and cannot be fetched from there: {error}") from None


def _check(experiment: Experiment, ref: str, whole: bool, cache: Path) -> None:
    implementations = queue.params(ref)["implementations"]
    items = implementations.keys() | set(implementations.values())
    for stage, path, md5 in _outputs(ref) - (set() if whole else _outputs(experiment.baseline)):
        if "@" in stage and stage.partition("@")[2] not in items:
            continue  # dvc.lock keeps the stages of implementations that were removed from params.yaml
        if Path(path) in files.UNCACHED:
            continue
        if not all(path_of(object_, cache).exists() for object_ in with_files([md5], cache)):
            raise DamagedError(f"{experiment.name}: {path} has not arrived")


def _outputs(revision: str) -> set[tuple[str, str, str]]:
    """The stage, path and md5 of every output that the dvc.lock of a revision names."""
    stages = queue.stages(revision).items()
    return {(name, out["path"], out["md5"]) for name, stage in stages for out in stage.get("outs", [])}
