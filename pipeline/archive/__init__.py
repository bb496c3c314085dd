"""Reproduce or export a run. This file has what both need: a run's code and artifacts, and DVC's checksums."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.errors import UserError
from pipeline.git import check_repository, clone_at, git
from pipeline.tracking import store
from pipeline.tracking.changes import PATCH


def find(beginning: str) -> tuple[Any, str, Any, Any]:
    """The same as `store.find`, but it also raises UserError for a run that cannot be reproduced or exported."""
    client, experiment, run, parent = store.find(beginning)
    role, run_id = run.data.tags.get("role"), run.info.run_id
    if role == "reproduction":
        raise UserError(f"{run_id} is a reproduction. Take the run that it reproduces: {tag(run, 'reproduces')}")
    if role == "failure":
        raise UserError(f"{run_id} is a run that failed and has no results. Take a finished run.")
    if role == "live":
        raise UserError(f"{run_id} is the run of a training that was under way. Take the run that has its results.")
    if role not in ("pipeline", "implementation"):
        raise UserError(f"{run_id} was not logged by `dvc repro` here. Take a run that was.")
    if parent.info.status != "FINISHED" or not store.children(client, parent):
        raise UserError(f"{parent.info.run_id} was not sent completely. `make track` sends the current results again.")
    return client, experiment, run, parent


def tag(run: Any, name: str) -> str:
    """A tag of a run. Raises UserError when it was removed."""
    if name not in run.data.tags:
        raise UserError(f"the run {run.info.run_id} has no tag {name}, which was removed. Take another run.")
    return run.data.tags[name]


def check_out(client: Any, parent: Any, folder: Path) -> Path:
    """Make a clone below `folder` with the code of a state: its commit, and its changes since that commit. Returns the
    project's folder in the clone. Raises UserError when something is missing.
    """
    if (reproducible := parent.data.tags.get("reproducible", "yes")) != "yes":
        raise UserError(reproducible)
    check_repository()
    commit, clone = tag(parent, "git.commit"), folder / "checkout"
    if git("cat-file", "-t", commit, default="") != "commit":
        shallow = git("rev-parse", "--is-shallow-repository") == "true"
        remedy = "git fetch --unshallow" if shallow else f"git fetch origin {commit}"
        raise UserError(f"the commit {commit} is not in this clone. Fetch it: {remedy}")
    download(client, parent.info.run_id, [PATCH], folder)
    project = clone_at(commit, clone)
    if (folder / PATCH).stat().st_size:
        git("apply", "--binary", str((folder / PATCH).resolve()), folder=clone)
    return project


def download(client: Any, run_id: str, paths: list[str], folder: Path) -> None:
    """Artifacts of a run. Raises UserError when the store lacks one."""
    folder.mkdir(parents=True, exist_ok=True)
    artifacts = {artifact.path for artifact in client.list_artifacts(run_id)}
    for path in paths:
        if path not in artifacts:
            raise UserError(f"the store no longer has its artifact {path}. Restore the store, or take another run.")
        client.download_artifacts(run_id, path, str(folder))


def dvc_md5(path: Path, within: Iterable[str] | None = None) -> str:
    """The md5 that dvc.lock records. For a folder it is the md5 of the list of its files, or only of those in `within`.
    Empty if the path does not exist."""
    if not path.is_dir():
        return files.md5(path) if path.exists() else ""
    within = within or (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    names = sorted(within)
    listing = json.dumps([{"md5": files.md5(path / name), "relpath": name} for name in names])
    return hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir"
