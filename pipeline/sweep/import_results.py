"""What comes home from a node. It counts as done when every output that its dvc.lock names is here, unchanged."""

import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path, PurePosixPath

import yaml

from pipeline import files
from pipeline.errors import UserError
from pipeline.sweep.node import Outcome
from pipeline.sweep.queue import Queued, git

CACHE = Path(".dvc/cache/files/md5")


class ArrivalError(UserError):
    """What arrived is not what the experiment's dvc.lock says."""


def objects_here() -> frozenset[str]:
    """The objects of DVC's cache, as dvc.lock names them."""
    return frozenset(f"{path.parent.name}{path.name}" for path in CACHE.glob("??/*"))


def take_in(experiment: Queued, outcome: Outcome, *, whole: bool = True) -> None:
    """Lay the objects in place, check that nothing is missing, and only then let the experiment's ref appear.

    `whole` is whether all of its stages were asked for; else what they left as it was before need not be here.
    """
    with tarfile.open(fileobj=io.BytesIO(outcome.objects)) as tar:
        for member in tar:
            name, file = PurePosixPath(member.name), tar.extractfile(member)
            if len(name.parts) != 2 or file is None:
                raise ArrivalError(f"{experiment.name}: {member.name} is no object of a cache")
            content = file.read()
            expected = "".join(name.parts)
            if hashlib.md5(content, usedforsecurity=False).hexdigest() != expected.removesuffix(".dir"):
                raise ArrivalError(f"{experiment.name}: the object {expected} has changed on its way")
            path = CACHE / name.parts[0] / name.parts[1]
            if not path.exists():
                files.write_bytes(path, content)
                path.chmod(0o444)
    bundle = Path(f".dvc/tmp/arrived.{os.getpid()}.bundle")
    arrived = f"refs/sweep/arrived/{experiment.name}"
    bundle.write_bytes(outcome.bundle)
    try:
        git("fetch", "--quiet", str(bundle), f"+{experiment.ref}:{arrived}")
        if outcome.pushed:
            _fetch(arrived)
        _check(experiment, arrived, whole)
        git("update-ref", experiment.ref, arrived)
    finally:
        bundle.unlink()
        subprocess.run(["git", "update-ref", "-d", arrived], check=False, capture_output=True)


def _fetch(ref: str) -> None:
    """Its objects, from the DVC remote that the node pushed them to."""
    from dvc.repo import Repo

    with Repo() as repo:
        repo.fetch(revs=[git("rev-parse", ref)], workspace=False)


def _check(experiment: Queued, ref: str, whole: bool) -> None:
    items = yaml.safe_load(git("show", f"{ref}:params.yaml"))["implementations"]
    known = items.keys() | set(items.values())
    before = set() if whole else _outputs(experiment.baseline)
    for stage, path, md5 in _outputs(ref) - before:
        if "@" in stage and stage.partition("@")[2] not in known:
            continue  # what dvc.lock still holds of an implementation that was taken out
        if path != str(files.ENVIRONMENT):  # which DVC keeps out of its cache
            for each in _with_content(md5):
                if not (CACHE / each[:2] / each[2:]).exists():
                    raise ArrivalError(f"{experiment.name}: {path} has not arrived")


def _outputs(revision: str) -> set[tuple[str, str, str]]:
    """The stage, path and checksum of every output that the dvc.lock of a revision names."""
    if not git("ls-tree", "--name-only", revision, "dvc.lock"):
        return set()
    stages = yaml.safe_load(git("show", f"{revision}:dvc.lock"))["stages"]
    return {(name, out["path"], out["md5"]) for name, stage in stages.items() for out in stage.get("outs", [])}


def _with_content(md5: str) -> list[str]:
    path = CACHE / md5[:2] / md5[2:]
    if not md5.endswith(".dir") or not path.exists():
        return [md5]
    return [md5, *(entry["md5"] for entry in json.loads(path.read_text()))]
