"""A state of the experiment as a folder that stands on its own, an RO-Crate: code, data, weights, results, report.

It is the checkout as it was, with every file that its dvc.lock names, and beside them

    repository.bundle       the commit with its history: git clone repository.bundle
    changes.patch           what differed from that commit
    croissant/PROBLEM.json  the data sets, described for those who look for data (Croissant 1.0)
    ro-crate-metadata.json  every file with its type, size and checksum, and what was run with what (RO-Crate 1.3)
    SHA256SUMS              of all the others: sha256sum -c SHA256SUMS
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.archive.reproduce import CannotError, check_out, download
from pipeline.checkout import LOCKFILE
from pipeline.errors import UserError
from pipeline.git import PATCH
from pipeline.tracking import store

EXPORTED = Path("exported")
SUMS = "SHA256SUMS"
BUNDLE = "repository.bundle"
WRITER = Path(".venv-export/bin/python")  # has what reads and writes RO-Crates and Croissant: requirements/export.sh
NOT_EXPORTED = (".git", "cache", "tmp", "config.local")


def export(beginning: str) -> Path:
    """Write the state that the run of this id, or its unique beginning, belongs to. Returns its folder.

    Raises UserError when something of it is gone.
    """
    client, _, _, parent = store.find(beginning)
    run_id = parent.info.run_id
    target = EXPORTED / run_id
    try:
        with files.scratch(Path(".dvc/tmp/export", run_id)) as scratch:
            checkout = check_out(client, parent, scratch)
            download(client, run_id, [str(LOCKFILE), str(files.ENVIRONMENT)], checkout)
            _bring_back_outputs(checkout)
            for child in store.children(client, parent):
                weights = files.weights_file(child.data.tags["implementation"])
                if store.md5(checkout / weights) != child.data.tags["md5.weights"]:
                    raise CannotError(f"the run's dvc.lock names another {weights} than the run")
            _git("-C", str(checkout), "bundle", "create", "--quiet", str((scratch / BUNDLE).resolve()), "HEAD")
            crate = scratch / "crate"
            shutil.copytree(checkout, crate, ignore=shutil.ignore_patterns(*NOT_EXPORTED))
            for file in (PATCH, BUNDLE):
                (scratch / file).rename(crate / file)
            writer = Path(__file__).with_name("crate.py")
            subprocess.run([WRITER, "-P", writer, crate, _facts(parent)], check=True)
            sums = [f"{_sha256(path)}  {path.relative_to(crate)}" for path in _files(crate)]
            (crate / SUMS).write_text("\n".join([*sums, ""]))
            EXPORTED.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            crate.rename(target)
    except CannotError as error:
        raise UserError(f"{run_id} cannot be exported: {error}.") from None
    return target


def verify(folder: Path) -> list[str]:
    """What is wrong with an exported folder: files changed, missing or too many, or not what dvc.lock names."""
    import yaml

    try:
        lines = (folder / SUMS).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder} is no exported run: {SUMS} cannot be read ({error}).") from None
    sums = {path: digest for digest, _, path in (line.partition("  ") for line in lines)}
    there = {str(path.relative_to(folder)): path for path in _files(folder)}
    wrong = [f"{path} is missing" for path in sums.keys() - there.keys()]
    wrong += [f"{path} does not belong to it" for path in there.keys() - sums.keys()]
    wrong += [f"{path} is changed" for path in sums.keys() & there.keys() if _sha256(there[path]) != sums[path]]
    if wrong:
        return sorted(wrong)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    items = params["implementations"].keys() | set(params["implementations"].values())
    stages = yaml.safe_load((folder / LOCKFILE).read_text())["stages"]
    for name, stage in stages.items():
        # What dvc.lock still holds of an implementation that was taken out; and track, which had not ended.
        if ("@" in name and name.partition("@")[2] not in items) or name == "track":
            continue
        for entry in [*stage.get("deps", []), *stage.get("outs", [])]:
            if _dvc_md5(folder / entry["path"]) != entry["md5"]:
                wrong.append(f"{entry['path']} is not what dvc.lock names in {name}")
    return wrong


def _bring_back_outputs(checkout: Path) -> None:
    cache = Path(".dvc/cache").resolve()
    dvc = [sys.executable, "-P", "-m", "dvc"]
    for command in (["cache", "dir", "--local", str(cache)], ["checkout", "--force", "--quiet"]):
        done = subprocess.run([*dvc, *command], cwd=checkout, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotError(f"DVC's cache here does not hold all of it: {' '.join(done.stderr.split())[:500]}")


def _facts(parent: Any) -> str:
    """What the crate says of the run."""
    tags = parent.data.tags
    facts = {"run": parent.info.run_id, "name": parent.info.run_name, "commit": tags["git.commit"]}
    facts |= {"began": parent.info.start_time, "ended": parent.info.end_time, "dvc": version("dvc")}
    facts |= {key: tags[key] for key in ("device", "device_name", "image.digest") if key in tags}
    return json.dumps(facts)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / SUMS)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _dvc_md5(path: Path) -> str:
    """As dvc.lock has it: of a folder, the md5 of the list of its files."""
    if not path.is_dir():
        return store.md5(path) if path.exists() else "missing"
    found = [{"md5": store.md5(file), "relpath": file.relative_to(path).as_posix()} for file in _files(path)]
    listing = json.dumps(sorted(found, key=lambda each: each["relpath"]), sort_keys=True)
    return hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir"


def _git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True, env=os.environ)
