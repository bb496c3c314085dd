"""git, as the pipeline calls it."""

import os
import shutil
import subprocess
from pathlib import Path

from pipeline.provenance import git

PATCH = "changes.patch"
LARGEST_PATCH = 2**20  # bytes


def changes() -> bytes | None:
    """What differs from the last commit, as a patch: untracked files too, but nothing that git ignores, nor dvc.lock.

    None without git or a commit.
    """
    if git("rev-parse", "HEAD") == "unknown":
        return None
    index = Path(git("rev-parse", "--git-path", "index"))
    copy = index.with_name(f"index.{os.getpid()}")
    shutil.copy(index, copy)
    environment = os.environ | {"GIT_INDEX_FILE": str(copy.resolve())}
    try:
        subprocess.run(["git", "add", "--all", "."], env=environment, capture_output=True, check=True)
        command = ["git", "diff", "--cached", "--binary", "HEAD", "--", ".", ":!dvc.lock"]
        return subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    finally:
        copy.unlink()
