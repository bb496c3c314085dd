"""DVC's own queue, which `dvc exp run --queue` fills: its experiments, their commits, and their removal."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline.git import git

BUNDLED = "refs/sweep"  # a bundle holds what refs name, and a queued experiment has no ref


class Experiment(NamedTuple):
    """A queued experiment: `revision` is the working tree to run it with, on top of the commit `baseline`."""

    name: str
    baseline: str
    revision: str

    @property
    def ref(self) -> str:
        """Its ref when it is done."""
        return f"refs/exps/{self.baseline[:2]}/{self.baseline[2:]}/{self.name}"


def queued() -> list[Experiment]:
    """The queued experiments, the first first."""
    from dvc.repo import Repo

    with Repo() as repo:
        entries = list(repo.experiments.celery_queue.iter_queued())
    return [Experiment(entry.name or entry.stash_rev[:7], entry.baseline_rev, entry.stash_rev) for entry in entries]


def remove(experiments: Iterable[Experiment]) -> None:
    """Remove experiments from the queue by their revisions, because names may not be unique."""
    from dvc.repo import Repo

    with Repo() as repo:
        repo.experiments.celery_queue.remove([experiment.revision for experiment in experiments])


def refs(under: str = "refs/exps") -> set[str]:
    """The refs of the experiments that are done."""
    return set(git("for-each-ref", "--format=%(refname)", under).splitlines())


def params(revision: str) -> dict[str, Any]:
    return yaml.safe_load(git("show", f"{revision}:params.yaml"))


def stages(revision: str, folder: Path | str = ".") -> dict[str, dict[str, Any]]:
    """The stages that the dvc.lock of a revision holds."""
    lock = git("show", f"{revision}:dvc.lock", folder=folder, default="")
    return yaml.load(lock, yaml.CSafeLoader)["stages"] if lock else {}


def bundle(experiments: list[Experiment]) -> bytes:
    """The commits of these experiments with their history, as a git bundle."""
    path = Path(".dvc/tmp/sweep.bundle")
    refs = {f"{BUNDLED}/{experiment.revision}": experiment.revision for experiment in experiments}
    try:
        git("update-ref", "--stdin", stdin="".join(f"update {ref} {revision}\n" for ref, revision in refs.items()))
        git("bundle", "create", "--quiet", str(path), "--stdin", stdin="\n".join(refs))
        return path.read_bytes()
    finally:
        git("update-ref", "--stdin", stdin="".join(f"delete {ref}\n" for ref in refs))
        path.unlink(missing_ok=True)
