"""`make release` in a scratch repository: what it refuses, and what it writes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, outside_variables

FILES = ("CITATION.cff", "pyproject.toml", "docker/Dockerfile")
GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with the files that hold the version and two commits, on which CI has passed."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / ".gitignore").write_text("/.dvc/\n")
    run(tmp_path, "git", "init", "-q", "-b", "main")
    for message in ("First commit", "Second commit"):
        run(tmp_path, "git", "add", "-A")
        run(tmp_path, *GIT, "commit", "-q", "--allow-empty", "-m", message)
    pass_ci(tmp_path)
    return tmp_path


def run(folder: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    identity = {f"GIT_{role}_{key}": "test" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    environment = outside_variables() | identity
    return subprocess.run(command, cwd=folder, env=environment, check=check, capture_output=True, text=True)


def pass_ci(folder: Path) -> None:
    (folder / ".dvc/tmp").mkdir(parents=True, exist_ok=True)
    (folder / ".dvc/tmp/ci-passed").write_text(run(folder, "git", "rev-parse", "HEAD").stdout)


def release(folder: Path, version: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {os.fspath(REPOSITORY)!r}); from commands.__main__ import main"
    code += "; from pipeline.errors import shown_to_the_user"
    code += f"\nwith shown_to_the_user():\n sys.argv = ['', 'release', {version!r}]\n main()"
    return run(folder, sys.executable, "-c", code, check=False)


def snapshot(folder: Path) -> tuple[str, ...]:
    commands = ("status --porcelain", "rev-parse HEAD", "tag", "diff HEAD")
    return tuple(run(folder, "git", *command.split()).stdout for command in commands)


def test_release_updates_versions_commits_and_tags_with_notes(repository: Path):
    done = release(repository, "1.2.0")
    assert done.returncode == 0, done.stderr
    for name in FILES:
        assert "1.2.0" in (repository / name).read_text()
    assert "date-released: 20" in (repository / "CITATION.cff").read_text()
    assert (repository / "docker/Dockerfile").read_text().count('image.version="1.2.0"') == 4
    notes = run(repository, "git", "tag", "-l", "--format=%(contents)", "v1.2.0").stdout
    assert notes.startswith("Seven Ways 1.2.0")
    assert "- Second commit\n- First commit" in notes
    assert run(repository, "git", "status", "--porcelain").stdout == ""
    (repository / "new").write_text("x")
    run(repository, "git", "add", "-A")
    run(repository, *GIT, "commit", "-qm", "Third commit")
    pass_ci(repository)
    assert release(repository, "1.3.0").returncode == 0
    notes = run(repository, "git", "tag", "-l", "--format=%(contents)", "v1.3.0").stdout
    assert "- Third commit" in notes
    assert "Second commit" not in notes
    assert (repository / "CITATION.cff").read_text().count("date-released:") == 1


@pytest.mark.parametrize(
    ("prepare", "version", "message"),
    [
        ("", "1.2", "VERSION=1.2 is not a version. Use three numbers"),
        ("", "", "VERSION= is not a version. Use three numbers"),
        ("git -c user.name=t -c user.email=t tag -a -m x v2.0.0", "1.9.9", "VERSION=1.9.9 is not newer than v2.0.0."),
        (
            "git switch -qc side; git commit -q --allow-empty -m x; git tag v2.0.0; git switch -q main",
            "1.9.9",
            "VERSION=1.9.9 is not newer than v2.0.0.",
        ),
        ("git -c user.name=t -c user.email=t tag v2.0.0-rc1; touch new", "1.9.9", "The working tree has changes."),
        (
            "sed -i /^version/d CITATION.cff; git commit -qam x; git rev-parse HEAD > .dvc/tmp/ci-passed",
            "1.2.0",
            "CITATION.cff names no version.",
        ),
        ("git switch -qc other", "1.2.0", "A release is made on the branch main, and this is other."),
        ("touch new", "1.2.0", "The working tree has changes."),
        ("rm .dvc/tmp/ci-passed", "1.2.0", "The tests have not passed on"),
        ("echo 0 > .dvc/tmp/ci-passed", "1.2.0", "The tests have not passed on"),
    ],
)
def test_release_that_is_refused_changes_nothing(repository: Path, prepare: str, version: str, message: str):
    run(repository, "bash", "-c", prepare)
    before = snapshot(repository)
    done = release(repository, version)
    assert done.returncode == 1
    assert f"ERROR: {message}" in done.stderr
    assert snapshot(repository) == before


def test_release_that_fails_half_way_is_undone(repository: Path):
    (repository / ".git/refs/tags").rmdir()
    (repository / ".git/refs/tags").write_text("")  # no tag can be written
    before = snapshot(repository)[:2]
    assert release(repository, "1.2.0").returncode == 1
    assert snapshot(repository)[:2] == before
