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
from pipeline.sweeping.node import Outcome
from pipeline.sweeping.queue import Queued, git

CACHE = Path(".dvc/cache/files/md5")


class ArrivalError(UserError):
    """What arrived is not what the experiment's dvc.lock says."""


def objects_here() -> frozenset[str]:
    """The objects of DVC's cache, as dvc.lock names them."""
    return frozenset(f"{path.parent.name}{path.name}" for path in CACHE.glob("??/*"))


def take_in(experiment: Queued, outcome: Outcome) -> None:
    """Lay the objects in place, check that nothing is missing, and only then let the experiment's ref appear."""
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
    ref = f"refs/exps/{experiment.baseline[:2]}/{experiment.baseline[2:]}/{experiment.name}"
    arrived = f"refs/sweep/arrived/{experiment.name}"
    bundle.write_bytes(outcome.bundle)
    try:
        git("fetch", "--quiet", str(bundle), f"+{ref}:{arrived}")
        _check(experiment, arrived)
        git("update-ref", ref, arrived)
    finally:
        bundle.unlink()
        subprocess.run(["git", "update-ref", "-d", arrived], check=False, capture_output=True)


def _check(experiment: Queued, ref: str) -> None:
    params = yaml.safe_load(git("show", f"{ref}:params.yaml"))
    items = params["implementations"].keys() | set(params["implementations"].values())
    for name, stage in yaml.safe_load(git("show", f"{ref}:dvc.lock"))["stages"].items():
        if "@" in name and name.partition("@")[2] not in items:
            continue  # what dvc.lock still holds of an implementation that was taken out
        for output in stage.get("outs", []):
            if output["path"] != str(files.ENVIRONMENT):  # which DVC keeps out of its cache
                for md5 in _with_content(output["md5"]):
                    if not (CACHE / md5[:2] / md5[2:]).exists():
                        raise ArrivalError(f"{experiment.name}: {output['path']} has not arrived")


def _with_content(md5: str) -> list[str]:
    path = CACHE / md5[:2] / md5[2:]
    if not md5.endswith(".dir") or not path.exists():
        return [md5]
    return [md5, *(entry["md5"] for entry in json.loads(path.read_text()))]
