"""DVC's own queue, which `dvc exp run --queue` fills: what is in it, what it is made of, and taking it out."""

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import yaml

from pipeline.errors import UserError

BUNDLED = "refs/sweep"  # a bundle holds what refs name, and a queued experiment has none of its own


class Queued(NamedTuple):
    """A queued experiment: `revision` is the working tree to run it with, on top of the commit `baseline`."""

    name: str
    baseline: str
    revision: str

    @property
    def ref(self) -> str:
        """Where it is when it has come home."""
        return f"refs/exps/{self.baseline[:2]}/{self.baseline[2:]}/{self.name}"


def queued() -> list[Queued]:
    """What is queued, the first first."""
    from dvc.repo import Repo

    with Repo() as repo:
        entries = list(repo.experiments.celery_queue.iter_queued())
    return [Queued(entry.name or entry.stash_rev[:7], entry.baseline_rev, entry.stash_rev) for entry in entries]


def remove(experiments: Iterable[Queued]) -> None:
    """Take them out of the queue, by their revisions: names can be given twice."""
    from dvc.repo import Repo

    with Repo() as repo:
        repo.experiments.celery_queue.remove([each.revision for each in experiments])


def refs() -> set[str]:
    """The refs of all experiments that are here."""
    return set(git("for-each-ref", "--format=%(refname)", "refs/exps").splitlines())


def params(experiment: Queued) -> dict:
    return yaml.safe_load(git("show", f"{experiment.revision}:params.yaml"))


def bundle(experiments: list[Queued]) -> bytes:
    """All the commits that these are made of, with their history: `git clone` takes it."""
    path = Path(".dvc/tmp/sweep.bundle")
    refs = {f"{BUNDLED}/{each.revision}": each.revision for each in experiments}
    try:
        git("update-ref", "--stdin", said="".join(f"update {ref} {revision}\n" for ref, revision in refs.items()))
        git("bundle", "create", "--quiet", str(path), "--stdin", said="\n".join(refs))
        return path.read_bytes()
    finally:
        git("update-ref", "--stdin", said="".join(f"delete {ref}\n" for ref in refs))
        path.unlink(missing_ok=True)


def git(*arguments: str, said: str | None = None) -> str:
    """What git answers; `said` is what it reads."""
    done = subprocess.run(["git", *arguments], input=said, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"git {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()
