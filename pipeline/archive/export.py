"""Export a state of the experiment as an RO-Crate: a folder with code, data, weights, results and report. The folder
holds the checkout as it was, every file that its dvc.lock names, and

    repository.bundle       the commit with its history: git clone repository.bundle
    changes.patch           what differed from that commit
    croissant/PROBLEM.json  a description of each data set (Croissant 1.0)
    ro-crate-metadata.json  every file with its type, size and checksum, and what was run with what (RO-Crate 1.3)
    SHA256SUMS              of all the others: sha256sum -c SHA256SUMS
"""

import json
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.archive import check_out, download, dvc_md5, find, tag
from pipeline.errors import UserError
from pipeline.git import check_out_results, git
from pipeline.running.checkout import LOCKFILE
from pipeline.running.processes import own_environment
from pipeline.tracking import store
from pipeline.tracking.changes import PATCH

EXPORTED = Path("exported")
SUMS = "SHA256SUMS"
BUNDLE = "repository.bundle"
WRITER = Path(".venv-export/bin/python")  # reads and writes RO-Crates and Croissant: requirements/setup.sh export
NOT_EXPORTED = (".git", "cache", "tmp", "config.local")


def export(beginning: str) -> Path:
    """Write the state of a run to a folder, and return the folder. `run_id` is the run's id or its unique beginning.
    Raises UserError when something of the state is gone.
    """
    client, _, _, parent = find(beginning)
    target = EXPORTED / parent.info.run_id
    temporary = (Path(".dvc/tmp/export", parent.info.run_id), EXPORTED / f".{parent.info.run_id}{files.PART}")
    try:
        # The crate is written below exported/, which may be on another disk, and then renamed.
        with files.scratch(temporary[0]) as folder, files.scratch(temporary[1]) as crate:
            _write(client, parent, folder, crate)
            shutil.rmtree(target, ignore_errors=True)
            crate.rename(target)
    except UserError as error:
        raise UserError(f"{parent.info.run_id} cannot be exported: {error}") from None
    return target


def _write(client: Any, parent: Any, folder: Path, crate: Path) -> None:
    if not WRITER.exists():
        raise UserError("the packages that write it are missing. `make export RUN=ID` installs them.")
    clone = check_out(client, parent, folder)
    if git("rev-parse", "--is-shallow-repository", folder=clone) == "true":
        raise UserError("this clone is shallow, so it lacks the history. Fetch the history: git fetch --unshallow")
    download(client, parent.info.run_id, [str(LOCKFILE), str(files.ENVIRONMENT)], clone)
    check_out_results(clone)
    for child in store.children(client, parent):
        weights = files.weights_file(tag(child, "implementation"))
        if files.md5(clone / weights) != tag(child, "md5.weights"):
            raise UserError(f"the run's dvc.lock names another {weights} than its tags. Take another run.")
    git("bundle", "create", "--quiet", str((folder / BUNDLE).resolve()), "HEAD", folder=clone)
    ignored = shutil.ignore_patterns(*NOT_EXPORTED)
    shutil.copytree(clone, crate, ignore=ignored, ignore_dangling_symlinks=True, dirs_exist_ok=True)
    for file in (PATCH, BUNDLE):
        shutil.copy(folder / file, crate / file)
    tags = parent.data.tags
    facts = {"run": parent.info.run_id, "name": parent.info.run_name, "commit": tags["git.commit"]}
    facts |= {"began": parent.info.start_time, "ended": parent.info.end_time, "dvc": version("dvc")}
    facts |= {key: tags[key] for key in ("device", "device_name", "image.digest") if key in tags}
    command = [WRITER, "-m", "pipeline.archive.crate", crate, json.dumps(facts)]
    if subprocess.run(command, env=own_environment(), check=False).returncode:
        raise UserError("the program that describes it failed, and its error is above.")
    sums = [f"{files.sha256(path)}  {name}\n" for name, path in _files(crate).items()]
    (crate / SUMS).write_text("".join(sums), encoding="utf-8")


def verify(folder: Path) -> list[str]:
    """The problems of an exported folder: files that were changed, are missing or do not belong to it, or that differ
    from dvc.lock."""
    import yaml

    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        remedy = "Name a folder that `make export` wrote."
        raise UserError(f"{folder} is not an exported run: {SUMS} cannot be read ({error}). {remedy}") from None
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    paths = _files(folder)
    wrong = [f"{name} is missing" for name in sums.keys() - paths.keys()]
    wrong += [f"{name} does not belong to it" for name in paths.keys() - sums.keys()]
    wrong += [f"{name} is changed" for name in sums.keys() & paths.keys() if files.sha256(paths[name]) != sums[name]]
    if wrong:
        return sorted(wrong)
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    items = params["implementations"].keys() | set(params["implementations"].values())
    for stage, entry in yaml.safe_load((folder / LOCKFILE).read_text(encoding="utf-8"))["stages"].items():
        # Not checked: `track` and `gate`, which end after the run is logged, and implementations that were removed from
        # params.yaml but are still in dvc.lock.
        if stage in ("track", "gate") or ("@" in stage and stage.partition("@")[2] not in items):
            continue
        for file in [*entry.get("deps", []), *entry.get("outs", [])]:
            path = folder / file["path"]
            # DVC's cache does not have these files, and the store has only some.
            kept = path.exists() or Path(file["path"]) not in files.UNCACHED
            if kept and dvc_md5(path) != file["md5"]:
                wrong.append(f"{file['path']} is not what dvc.lock names in {stage}")
    return wrong


def _files(folder: Path) -> dict[str, Path]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / SUMS)
    return {str(path.relative_to(folder)): path for path in paths}
