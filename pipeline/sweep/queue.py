"""DVC's queue, which `dvc exp run --queue` fills: its experiments, their commits, and their removal."""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline.errors import UserError
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
    """The queued experiments in the order of the queue."""
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
    return yaml.safe_load(git("cat-file", "blob", f"{revision}:./params.yaml"))


def check_lessons(experiments: list[Experiment]) -> None:
    """Warn of untracked files, because DVC queues only files that git tracks. Raises UserError when an experiment names
    a lesson whose file is untracked.
    """
    new = untracked()
    for experiment in experiments if new else ():
        for name, problem in (params(experiment.revision).get("implementations") or {}).items():
            lesson = f"pipeline/lessons/{problem}/{name}.py"
            if lesson in new:
                raise UserError(
                    f"{experiment.name} was queued without {lesson}, which git does not know. Everything stays queued. "
                    f"git add {lesson} && dvc queue remove {experiment.name}, then queue it again."
                )
    if new:
        print(f"WARNING: Git does not know {', '.join(new)}, so no experiment has it. `git add` before you queue them.")


def untracked() -> list[str]:
    """The files of the pipeline that git neither tracks nor ignores."""
    of_pipeline = ("pipeline", "stages", "dvc.yaml", "params.yaml")
    return git("ls-files", "--others", "--exclude-standard", "--", *of_pipeline).splitlines()


def command(experiment: Experiment) -> str:
    """The command that queues an experiment again, on the commit that it was queued on."""
    before, after = _flat(params(experiment.baseline)), _flat(params(experiment.revision))
    overrides = [
        f"{'' if key in before else '+'}{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in after.items()
        if key not in before or before[key] != value
    ]
    overrides += [f"~{key}" for key in before.keys() - after.keys()]
    words = ["dvc", "exp", "run", "--queue", "-n", experiment.name]
    line = shlex.join([*words, *(word for override in overrides for word in ("-S", override))])
    changed = git("diff-tree", "-r", "--name-only", "--relative", experiment.baseline, experiment.revision).splitlines()
    if others := [path for path in changed if path not in ("params.yaml", "dvc.lock", ".dvc/tmp/repro.dat")]:
        versions = f"{experiment.baseline[:7]} {experiment.revision[:7]}"
        line += f"  # with its changes: git diff {versions} -- {shlex.join(others)}"
    elif experiment.baseline != git("rev-parse", "HEAD"):
        line += f"  # at {experiment.baseline[:7]}"
    return line


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def stages(revision: str, folder: Path | str = ".") -> dict[str, dict[str, Any]]:
    """The stages that the dvc.lock of a revision holds. `folder` is the checkout, of this revision's repository."""
    lock = git("cat-file", "blob", f"{revision}:./dvc.lock", folder=folder, default="")
    return yaml.load(lock, yaml.CSafeLoader)["stages"] if lock else {}


def ends_of_history() -> str:
    """The commits, a line for each, whose parents a shallow clone lacks."""
    path = Path(git("rev-parse", "--git-path", "shallow"))
    return path.read_text(encoding="utf-8") if path.exists() else ""


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
