"""git under fixed settings, and clones of this checkout with the results of DVC's cache."""

import os
import shutil
import subprocess
from pathlib import Path

from pipeline.errors import UserError
from pipeline.running.processes import run_dvc, without_foreign_variables

# Settings of a user, in ~/.gitconfig or in this repository, that would change a clone, a bundle or a patch.
SETTINGS = dict.fromkeys(("core.attributesFile", "core.excludesFile", "core.hooksPath"), os.devnull)
SETTINGS |= dict.fromkeys(("core.autocrlf", "core.fsmonitor", "core.safecrlf", "core.splitIndex"), "false")
SETTINGS |= dict.fromkeys(("fetch.fsckObjects", "transfer.fsckObjects"), "false")
SETTINGS |= dict.fromkeys(("fetch.recurseSubmodules", "submodule.recurse"), "false")
SETTINGS |= {"apply.ignoreWhitespace": "no", "apply.whitespace": "nowarn"}
SETTINGS |= {"maintenance.auto": "false"}  # it would go on in the background, in a folder that is soon removed
# These of git's variables stay: they hold settings, which SETTINGS override, or limit where git looks for a repository.
INHERITED = ("GIT_CONFIG_", "GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM", "GIT_EXEC_PATH", "GIT_TRACE")
VARIABLES = {
    "GIT_ALLOW_PROTOCOL": "file",  # overrides protocol.file.allow; no command here uses the network
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_DEFAULT_HASH": "sha1",  # of a new repository, as DVC knows it
    "GIT_DEFAULT_REF_FORMAT": "files",
    "GIT_TEMPLATE_DIR": "",
}


def git(
    *arguments: str, folder: Path | str = ".", stdin: str = "", default: str | None = None, **variables: str
) -> str:
    """The output of a git command without its last line break. `variables` are environment variables. The command works
    in the repository of the folder, under fixed settings. Raises UserError when git fails or is missing, unless there
    is a `default` to return.
    """
    inherited = without_foreign_variables(os.environ).items()
    environment = {key: value for key, value in inherited if not key.startswith("GIT_") or key.startswith(INHERITED)}
    settings = [argument for key, value in SETTINGS.items() for argument in ("-c", f"{key}={value}")]
    command, content = ["git", *settings, *arguments], stdin.encode(errors="surrogateescape")
    environment |= VARIABLES | variables
    try:
        done = subprocess.run(command, cwd=folder, input=content, env=environment, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        if default is not None:
            return default
        message = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else error
        raise UserError(f"git {arguments[0]} failed: {str(message).strip()}") from None
    return done.stdout.decode(errors="surrogateescape").removesuffix("\n")


def check_repository() -> None:
    """Raises UserError when git finds no repository here or refuses to read it. A refusal is quoted."""
    try:
        git("rev-parse", "--git-dir", LC_ALL="C")
    except UserError as error:
        if "not a git repository (or any" not in str(error):
            raise
        remedy = "Make it one: git init && git add -A && git commit -m start"
        raise UserError(f"This folder is not a git repository, and DVC needs one. {remedy}") from None


def clone_at(commit: str, clone: Path) -> Path:
    """Make a clone of this repository at a commit. Returns the folder in the clone that corresponds to this one. The
    clone shares this repository's git objects. This also works in a shallow clone and in a worktree.
    """
    objects, shallow = (Path(git("rev-parse", "--git-path", name)).resolve() for name in ("objects", "shallow"))
    git("init", "--quiet", str(clone))
    (clone / ".git/objects/info").mkdir(exist_ok=True)
    (clone / ".git/objects/info/alternates").write_text(f"{objects}\n", encoding="utf-8", errors="surrogateescape")
    if shallow.exists():
        shutil.copy(shallow, clone / ".git/shallow")
    git("checkout", "--quiet", "--detach", commit, folder=clone)
    return clone / git("rev-parse", "--show-prefix")


def cache_folder() -> Path:
    """DVC's cache of this checkout: .dvc/cache, or the folder that `dvc cache dir` names."""
    from dvc.config import Config  # a third of a second

    return Path(Config(dvc_dir=".dvc")["cache"].get("dir") or ".dvc/cache")


def check_out_results(clone: Path) -> None:
    """Copy what a clone's dvc.lock names from this checkout's cache. Raises UserError when the cache lacks
    something."""
    use_cache(clone, cache_folder())
    done = run_dvc(clone, "checkout", "--force", "--quiet", capture_output=True)
    if done.returncode:
        reason = " ".join(done.stderr.split())[:500]
        remedy = "Run `dvc pull` if a DVC remote has them"
        raise UserError(f"DVC's cache of this checkout lacks some of its results. {remedy}. {reason}")


def use_cache(clone: Path, cache: Path) -> None:
    """The same as `dvc cache dir --local`, without the time that DVC needs to start."""
    git("config", "--file", ".dvc/config.local", "cache.dir", str(cache.resolve()), folder=clone)
