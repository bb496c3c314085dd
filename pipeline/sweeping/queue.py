"""DVC's own queue, which `dvc exp run --queue` fills: what is in it, what it is made of, and taking it out."""

import subprocess
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError

BUNDLED = "refs/sweep"  # a bundle holds what refs name, and a queued experiment has none of its own


class Queued(NamedTuple):
    """A queued experiment: `revision` is the working tree to run it with, on top of the commit `baseline`."""

    name: str
    baseline: str
    revision: str


def queued() -> list[Queued]:
    """What is queued, the first first."""
    from dvc.repo import Repo

    with Repo() as repo:
        entries = list(repo.experiments.celery_queue.iter_queued())
    return [Queued(entry.name or entry.stash_rev[:7], entry.baseline_rev, entry.stash_rev) for entry in entries]


def remove(experiment: Queued) -> None:
    """Take one out of the queue, by its revision: names can be given twice."""
    from dvc.repo import Repo

    with Repo() as repo:
        repo.experiments.celery_queue.remove([experiment.revision])


def is_there(experiment: Queued) -> bool:
    """Whether it has come home already, and a sweep was killed before it took it out of the queue."""
    return bool(git("for-each-ref", f"refs/exps/{experiment.baseline[:2]}/{experiment.baseline[2:]}/{experiment.name}"))


def bundle(experiments: list[Queued]) -> bytes:
    """All the commits that these are made of, with their history: `git clone` takes it."""
    path = Path(".dvc/tmp/sweep.bundle")
    refs = {f"{BUNDLED}/{each.revision}": each.revision for each in experiments}
    try:
        for ref, revision in refs.items():
            git("update-ref", ref, revision)
        git("bundle", "create", "--quiet", str(path), *refs)
        return path.read_bytes()
    finally:
        for ref in refs:
            git("update-ref", "-d", ref)
        path.unlink(missing_ok=True)


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"git {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()
