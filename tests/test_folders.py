"""A run is reproduced and exported from worktrees, submodules, shallow clones and read-only repositories."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import REPOSITORY, Clone, mounted
from test_git import HOSTILE, VARIABLES, user

pytestmark = [
    pytest.mark.environments,
    pytest.mark.filterwarnings("ignore:The ``noload``", "ignore:.*Any type hint is inferred"),
]

NUMPY = "numpy_arrays"
STORE = ("mlflow.db*", "mlruns")


@pytest.fixture(scope="module")
def finished(make_clone: Callable[..., Clone]) -> Clone:
    """Its params.yaml has an uncommitted change. Tests must not change it."""
    subprocess.run([REPOSITORY / "requirements/setup.sh", "export"], check=True)
    clone = make_clone(NUMPY)
    clone.run("dvc", "repro")
    return clone


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a typical name."""
    return tmp_path / "it's ä #1, 100%41?"


def with_results(finished: Clone, folder: Path) -> Clone:
    """A checkout with the results and the cache of the finished one, and the packages that write RO-Crates."""
    shutil.copytree(finished.path, folder, ignore=shutil.ignore_patterns(".git", "tmp", *STORE), dirs_exist_ok=True)
    (folder / ".venv-export").symlink_to(REPOSITORY / ".venv-export")
    clone = Clone(folder)
    exclude = folder / clone.run("git", "rev-parse", "--git-path", "info/exclude").stdout.strip()
    exclude.parent.mkdir(exist_ok=True)
    with exclude.open("a") as file:
        file.write(".venv-export\n")
    clone.run(sys.executable, "-m", "commands", "track")
    return clone


def run_of(clone: Clone) -> str:
    """The id of its run, found by its own code."""
    find = """
from pipeline.tracking import store
client, experiment = store.connect()
print(client.search_runs([experiment], "tags.role = 'pipeline'")[0].info.run_id)
"""
    return clone.run(sys.executable, "-c", find).stdout.strip()


def reproduce(clone: Clone, env: dict[str, str] | None = None) -> None:
    done = clone.run(sys.executable, "-m", "commands", "reproduce", run_of(clone), env=env)
    assert "bitwise identical" in done.stdout, done.stdout + done.stderr


def export(clone: Clone) -> Path:
    clone.run(sys.executable, "-m", "commands", "export", run_of(clone))
    assert "is unchanged" in clone.run(sys.executable, "-m", "commands", "verify").stdout
    return clone.path / "exported" / run_of(clone)


def test_worktree_with_an_external_cache_is_reproduced_and_exported(finished: Clone, place: Path, tmp_path: Path):
    finished.run("git", "worktree", "add", "-q", "--detach", str(place))
    clone = with_results(finished, place)
    (place / ".dvc/cache").rename(tmp_path / "cache")
    clone.run("dvc", "cache", "dir", "--local", str(tmp_path / "cache"))
    reproduce(clone)
    user("clone", "-q", str(export(clone) / "repository.bundle"), str(tmp_path / "again"))
    assert (tmp_path / "again/dvc.yaml").exists()
    assert not (place / ".dvc/cache").exists()


def test_submodule_with_exported_on_another_disk_is_reproduced_and_exported(
    finished: Clone, place: Path, tmp_path: Path
):
    place.mkdir()
    user("init", "-q", folder=place)
    user("submodule", "--quiet", "add", str(finished.path), "project", folder=place)
    clone = with_results(finished, place / "project")
    (clone.path / "exported").mkdir()
    with mounted("-t", "tmpfs", "none", clone.path / "exported"):
        reproduce(clone)
        export(clone)


def test_subfolder_with_a_linked_cache_is_reproduced_and_exported(finished: Clone, place: Path, tmp_path: Path):
    clone = Clone(place / "some/where")
    user("clone", "-q", str(finished.path), str(clone.path))
    shutil.rmtree(clone.path / ".git")
    user("init", "-q", folder=place)
    clone.commit()
    with_results(finished, clone.path)
    (clone.path / ".dvc/cache").rename(tmp_path / "cache")
    (clone.path / ".dvc/cache").symlink_to(tmp_path / "cache")
    reproduce(clone)
    crate = export(clone)
    user("clone", "-q", str(crate / "repository.bundle"), str(tmp_path / "again"))
    user("apply", str(crate / "changes.patch"), folder=tmp_path / "again")
    again = (tmp_path / "again/some/where/params.yaml").read_bytes()
    assert again == (clone.path / "params.yaml").read_bytes() == (crate / "params.yaml").read_bytes()


def test_shallow_clone_is_reproduced_and_its_export_names_the_remedy(finished: Clone, place: Path, tmp_path: Path):
    shutil.copytree(finished.path / ".git", tmp_path / "origin/.git")
    user("reset", "-q", "--hard", folder=tmp_path / "origin")
    user("commit", "-q", "--allow-empty", "-m", "one more", folder=tmp_path / "origin")
    user("clone", "-q", "--depth=1", f"file://{tmp_path}/origin", str(place))
    clone = with_results(finished, place)
    reproduce(clone)
    command = (sys.executable, "-m", "commands", "export", run_of(clone))
    done = clone.run(*command, succeeds=False)
    assert "cannot be exported: this clone is shallow" in done.stderr
    assert not list((clone.path / "exported").glob(".*"))
    user("fetch", "-q", "--unshallow", folder=place)
    user("clone", "-q", str(export(clone) / "repository.bundle"), str(tmp_path / "again"))


def test_settings_and_variables_of_git_do_not_change_reproduction(finished: Clone, place: Path, tmp_path: Path):
    """`git clone` with core.autocrlf; an experiment, and a reproduction as from `git rebase --exec`."""
    home = tmp_path / "home"
    (home / "template/hooks").mkdir(parents=True)
    (home / "excludes").write_text("*.md\n")
    for hook in ("post-checkout", "post-commit", "pre-commit"):
        path = home / "template/hooks" / hook
        path.write_text("#!/bin/sh\nexit 1\n")
        path.chmod(0o755)
    settings = (
        HOSTILE.format(folder=home).partition('[url "')[0].replace("useConfigOnly = true", "name = x\nemail = x@y")
    )
    (home / ".gitconfig").write_text(settings)
    user("-c", "core.autocrlf=true", "clone", "-q", "--config", "core.autocrlf=true", str(finished.path), str(place))
    clone, before = with_results(finished, place), user("status", "--porcelain", folder=place)
    variables = {"HOME": str(home), "GIT_CONFIG_GLOBAL": str(home / ".gitconfig")}
    here = {"GIT_DIR": str(REPOSITORY / ".git"), "GIT_WORK_TREE": str(REPOSITORY), "GIT_INDEX_FILE": "/nowhere"}
    reproduce(clone, VARIABLES | variables | here)
    assert "Nothing is queued" in clone.run(sys.executable, "-m", "commands", "sweep", env=variables | here).stdout
    assert user("status", "--porcelain", folder=place) == before
    clone.run("dvc", "exp", "run", "-n", "other", "-S", "seed=1", "evaluate", env=variables)
    experiment = user("for-each-ref", "--format=%(refname)", "refs/exps/*/*/other", folder=place).strip()
    assert "seed: 1" in user("show", f"{experiment}:params.yaml", folder=place)
    assert user("show", f"{experiment}:dvc.lock", folder=place).count("seed: 1") == 2


@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv, to be a user who may not write everywhere")
def test_read_only_repository_is_reproduced(finished: Clone, place: Path):
    shutil.copytree(finished.path, place, ignore=shutil.ignore_patterns("tmp", *STORE))
    clone = with_results(finished, place)
    folders = [path for path in (place / ".git", *(place / ".git").rglob("*")) if path.is_dir()]
    with ExitStack() as after:
        for folder in folders:
            after.callback(folder.chmod, 0o755)
            folder.chmod(0o555)
        less = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")
        reproducing = (sys.executable, "-m", "commands", "reproduce", run_of(clone))
        assert "bitwise identical" in clone.run(*less, *reproducing).stdout
