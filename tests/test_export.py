"""An exported run: it is valid and complete, runs again, and one changed byte of it is reported."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import yaml
from conftest import REPOSITORY, Clone

pytestmark = [
    pytest.mark.faults,
    pytest.mark.filterwarnings("ignore:The ``noload``", "ignore:.*Any type hint is inferred"),
]

NUMPY = "numpy_arrays"


@pytest.fixture(scope="module")
def clone(make_clone: Callable[..., Clone]) -> Clone:
    """Its params.yaml has an uncommitted change, and it has the packages that write RO-Crates."""
    if not (REPOSITORY / ".venv-export").exists():
        subprocess.run([REPOSITORY / "requirements/setup.sh", "export"], check=True)
    clone = make_clone(NUMPY)
    with (clone.path / ".git/info/exclude").open("a") as file:
        file.write("/.venv-export\n")
    (clone.path / ".venv-export").symlink_to(REPOSITORY / ".venv-export")
    clone.run("dvc", "repro")
    return clone


def newest(clone: Clone, role: str) -> str:
    mlflow.set_tracking_uri(f"sqlite:///{clone.path / 'mlflow.db'}")
    runs = mlflow.search_runs(experiment_names=["seven-ways"], filter_string=f"tags.role = '{role}'")
    return runs["run_id"].iloc[0]


def command(clone: Clone, *arguments: str, status: int = 0) -> str:
    done = clone.run(sys.executable, "-m", "commands", *arguments, succeeds=None)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def crate(clone: Clone) -> Path:
    command(clone, "export", newest(clone, "implementation")[:12])
    return clone.path / "exported" / newest(clone, "pipeline")


def test_export_is_a_valid_crate_that_describes_every_file(crate: Path, tmp_path: Path):
    validator = [REPOSITORY / ".venv-export/bin/python", REPOSITORY / "tests/validate_crate.py"]
    done = subprocess.run([*validator, crate, tmp_path / "cache"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "is a valid ro-crate-1.3" in " ".join(done.stdout.split())
    described = {entity["@id"] for entity in json.loads((crate / "ro-crate-metadata.json").read_text())["@graph"]}
    files = {str(path.relative_to(crate)) for path in crate.rglob("*") if path.is_file()}
    assert files - described == {"SHA256SUMS"}
    assert {f"models/{NUMPY}/weights.safetensors", "report.html", "lessons.html", "changes.patch"} <= files
    data = json.loads((crate / "croissant/two_layer.json").read_text())
    assert {file["name"] for file in data["distribution"]} >= {"train_x.npy", "manifest.json"}


def test_export_contains_every_output_of_dvc_lock(crate: Path, clone: Clone):
    assert "is unchanged" in command(clone, "verify")
    lock = yaml.safe_load((crate / "dvc.lock").read_text())["stages"]
    outputs = {out["path"]: out["md5"] for stage in lock.values() for out in stage.get("outs", [])}
    assert {f"models/{NUMPY}", "data/two_layer", "report.html", "lessons.html"} <= outputs.keys()
    for path, md5 in outputs.items():
        if path == "benchmark_plan.json":  # DVC does not keep it, and `environment` makes it from params.yaml
            continue
        if (crate / path).is_file():
            output = subprocess.run(["md5sum", crate / path], capture_output=True, text=True, check=True).stdout
            assert output.split()[0] == md5
        else:
            assert (crate / path).is_dir()


def test_exported_run_gives_the_same_weights(crate: Path, tmp_path: Path):
    again = Clone(tmp_path / "again")
    subprocess.run(["git", "clone", "-q", crate / "repository.bundle", again.path], check=True)
    again.run("git", "apply", str(crate / "changes.patch"))
    shutil.copy(crate / "environment.json", again.path)
    again.run("dvc", "repro", f"train@{NUMPY}")
    weights = f"models/{NUMPY}/weights.safetensors"
    assert (again.path / weights).read_bytes() == (crate / weights).read_bytes()


def test_changed_missing_and_added_files_are_reported(crate: Path, clone: Clone, tmp_path: Path):
    draw = random.Random(3)
    files = sorted(path for path in crate.rglob("*") if path.is_file() and path.stat().st_size)
    for path in [*draw.sample(files, 12), crate / "SHA256SUMS", crate / "ro-crate-metadata.json"]:
        before = path.read_bytes()
        at = draw.randrange(len(before))
        path.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
        output = command(clone, "verify", str(crate), status=1)
        path.write_bytes(before)
        assert path.name == "SHA256SUMS" or f"{path.relative_to(crate)} is changed" in output
    moved = tmp_path / "moved"
    (crate / "report.html").rename(moved)
    assert "report.html is missing" in command(clone, "verify", str(crate), status=1)
    moved.rename(crate / "report.html")
    (crate / "more").write_text("")
    assert "more does not belong to it" in command(clone, "verify", str(crate), status=1)
    (crate / "more").unlink()
    assert "is unchanged" in command(clone, "verify", str(crate))


def test_export_without_run_folder_or_cache_gives_an_error(crate: Path, clone: Clone, tmp_path: Path):
    assert "ERROR: Missing argument 'RUN'. `python -m commands export --help`" in command(clone, "export", status=1)
    assert "is not an exported run" in command(clone, "verify", str(tmp_path), status=1)
    hidden = clone.path / ".dvc/hidden"
    (clone.path / ".dvc/cache").rename(hidden)
    output = command(clone, "export", newest(clone, "pipeline"), status=1)
    hidden.rename(clone.path / ".dvc/cache")
    assert "cannot be exported: DVC's cache of this checkout lacks some of its results" in output
    assert (crate / "SHA256SUMS").exists(), "the last good one is gone"
