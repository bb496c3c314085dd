"""Runs that are reproduced, and runs that are exported. What both need is here: a run's code and its artifacts."""

from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.git import PATCH, clone_at, git


def check_out(client: Any, parent: Any, folder: Path) -> Path:
    """Make a clone below `folder` with the code that a state was made with: its commit, and what differed from that.

    Raises UserError when something is missing.
    """
    tags = parent.data.tags
    if tags.get("reproducible", "yes") != "yes":
        raise UserError(tags["reproducible"])
    commit = tags["git.commit"]
    if git("cat-file", "-t", commit, default="") != "commit":
        raise UserError(f"the commit {commit} is not in this clone. Fetch it: git fetch origin {commit}")
    clone = folder / "checkout"
    download(client, parent.info.run_id, [PATCH], folder)
    clone_at(commit, clone)
    if (folder / PATCH).stat().st_size:
        git("apply", "--binary", str((folder / PATCH).resolve()), folder=clone)
    return clone


def download(client: Any, run_id: str, paths: list[str], folder: Path) -> None:
    """Artifacts of a run. Raises UserError when the store does not have them."""
    folder.mkdir(parents=True, exist_ok=True)
    artifacts = {artifact.path for artifact in client.list_artifacts(run_id)}
    for path in paths:
        if path not in artifacts:
            raise UserError(f"its artifact {path} is gone from the store")
        client.download_artifacts(run_id, path, str(folder))
