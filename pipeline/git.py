"""git, as the pipeline calls it, and clones of this checkout with the results of DVC's cache."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.running.processes import environment_for_another_run

PATCH = "changes.patch"
LARGEST_PATCH = 2**20  # bytes


def git(
    *arguments: str, folder: Path | str = ".", stdin: str = "", default: str | None = None, **variables: str
) -> str:
    """What a git command prints, without its last line break; `variables` are environment variables.

    Raises UserError when git fails or is missing, unless there is a `default` to return.
    """
    content, environment = stdin.encode(errors="surrogateescape"), os.environ | variables
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, input=content, env=environment, capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        if default is not None:
            return default
        message = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else error
        raise UserError(f"git {arguments[0]} failed: {str(message).strip()}") from None
    return done.stdout.decode(errors="surrogateescape").removesuffix("\n")


def changes() -> bytes | None:
    """What differs from the last commit, as a patch: untracked files too, but nothing that git ignores, nor dvc.lock.

    None without git or a commit.
    """
    if not git("rev-parse", "HEAD", default=""):
        return None
    index = Path(git("rev-parse", "--git-path", "index"))
    copy = index.with_name(f"index.{os.getpid()}")
    shutil.copy(index, copy)
    try:
        git("add", "--all", ".", GIT_INDEX_FILE=str(copy.resolve()))
        patch = git("diff", "--cached", "--binary", "HEAD", "--", ".", ":!dvc.lock", GIT_INDEX_FILE=str(copy.resolve()))
    finally:
        copy.unlink()
    return f"{patch}\n".encode(errors="surrogateescape") if patch else b""


def clone_at(commit: str, clone: Path) -> None:
    """A clone of this checkout at a commit. It shares this checkout's git objects."""
    git("clone", "--quiet", "--shared", "--no-checkout", ".", str(clone))
    git("checkout", "--quiet", commit, folder=clone)


def cache_folder() -> Path:
    """DVC's cache of this checkout: .dvc/cache, or where `dvc cache dir` has put it."""
    from dvc.config import Config  # a third of a second

    return Path(Config(dvc_dir=".dvc")["cache"].get("dir") or ".dvc/cache")


def check_out_results(clone: Path) -> None:
    """Copy what a clone's dvc.lock names from this checkout's cache. Raises UserError when something is gone."""
    use_cache(clone, cache_folder())
    done = run_dvc(clone, "checkout", "--force", "--quiet", capture_output=True)
    if done.returncode:
        raise UserError(f"DVC's cache here does not hold all of it: {' '.join(done.stderr.split())[:500]}")


def use_cache(clone: Path, cache: Path) -> None:
    """What `dvc cache dir --local` does, without its start."""
    git("config", "--file", ".dvc/config.local", "cache.dir", str(cache.resolve()), folder=clone)


def run_dvc(folder: Path | str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run DVC in another checkout, which needs no lock."""
    return _run(folder, ["-P", "-m", "dvc", *arguments], options)


def run_stage(folder: Path | str, stage: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a stage in another checkout without DVC."""
    return _run(folder, ["-m", f"stages.{stage}", *arguments], options)


def _run(folder: Path | str, arguments: list[str], options: Any) -> subprocess.CompletedProcess[str]:
    command, environment = [sys.executable, *arguments], environment_for_another_run()
    return subprocess.run(
        command, cwd=folder, env=environment, encoding="utf-8", errors="replace", check=False, **options
    )
