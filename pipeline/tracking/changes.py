"""changes.patch: the changes since the last commit. Commit and patch together reproduce a run."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.errors import UserError
from pipeline.git import git
from pipeline.running.checkout import LOCKFILE

PATCH = "changes.patch"
LARGEST_PATCH = 2**20  # bytes
LARGEST_CHANGES = 2**26  # bytes of the changed files, which are read only if they are no larger
DIFF = ("--no-ext-diff", "--no-textconv", "--no-color", "--no-relative", "--no-renames", "--ignore-submodules=all")
PATCH_FORMAT = ("-p", "--binary", "--full-index", "--unified=3", "--src-prefix=a/", "--dst-prefix=b/")
CODE = ("pipeline", "stages", "params.yaml", "dvc.yaml")  # the code, whether or not dvc.lock names it
SECRET, HIDDEN = (":(exclude,glob)**/.env*",), (":(exclude,glob)**/.*", ":(exclude,glob)**/.*/**")


def changes() -> bytes:
    """The changes since the last commit, as a patch that applies at the top of the repository.

    It has the changed files that git tracks, except dvc.lock, and the new files that a stage runs or depends on. It has
    no .env and nothing that .gitignore or .git/info/exclude names. Nothing is written into the repository.
    Raises UserError with the reason when the changes cannot be kept.
    """
    try:
        git("rev-parse", "--verify", "HEAD^{commit}")
    except UserError as error:
        raise UserError(f"it was made outside a git repository or before the first commit: {error}") from None
    try:
        with TemporaryDirectory() as scratch:
            return _patch({"GIT_INDEX_FILE": f"{scratch}/index"})
    except (OSError, UserError) as error:
        raise UserError(f"its changes since its commit could not be kept: {error}") from None


def _patch(index: dict[str, str]) -> bytes:
    """The changes as a patch. `index` names a file for a copy of git's index."""
    shutil.copy(git("rev-parse", "--git-path", "index"), index["GIT_INDEX_FILE"])
    git("update-index", "-q", "--really-refresh", default="", **index)
    top, code, tracked = Path(git("rev-parse", "--show-toplevel")), _code(), (".", ":!dvc.lock", *SECRET)
    names = ("diff-index", "--name-only", "-z", *DIFF)
    changed = _lines(git(*names, "--diff-filter=d", "HEAD", "--", *tracked, **index))
    new = _lines(git("ls-files", "-oz", "--full-name", "--exclude-standard", "--", *code, *SECRET, *HIDDEN))
    for entry in _lines(git("ls-files", "-sz", "--full-name", "--", *code)):
        mode, _, stage, name = entry.replace("\t", " ", 1).split(" ", 3)
        if mode == "160000":
            raise UserError(f"{name} is a submodule, and only this repository's own files are kept")
        if stage != "0":
            raise UserError(f"{name} is being merged")
    for name in changed + new:
        if name.endswith("/"):
            raise UserError(f"{name} is a git repository of its own, and only this repository's own files are kept")
        if (top / name).is_symlink():
            raise UserError(f"{name} is a symbolic link, and what it points to is not kept")
    size = sum((top / name).lstat().st_size for name in changed + new)
    if size > LARGEST_CHANGES:
        raise UserError(f"the changed files are {size:,} bytes, and at most {LARGEST_CHANGES:,} are read")
    # An empty file stands for each new file, so that `diff-index` reads the file itself.
    empty = git("hash-object", "--stdin")
    git("update-index", "-z", "--index-info", stdin="".join(f"100644 {empty}\t{name}\0" for name in new), **index)
    patch = git("diff-index", *PATCH_FORMAT, *DIFF, "HEAD", "--", *tracked, *code, **index)
    content = f"{patch}\n".encode(errors="surrogateescape") if patch else b""
    if len(content) > LARGEST_PATCH:
        raise UserError(f"they are {len(content):,} bytes, and at most {LARGEST_PATCH:,} are kept")
    return content


def _lines(output: str) -> list[str]:
    """The entries of a command's output with `-z`."""
    return output.split("\0")[:-1]


def _code() -> list[str]:
    """Pathspecs of the code and the dependencies of the stages, without outputs of other stages and paths that do not
    exist.

    Raises UserError when a stage depends on a file that git ignores and no stage writes.
    """
    import yaml

    stages = yaml.load(LOCKFILE.read_text(encoding="utf-8"), yaml.CSafeLoader)["stages"] if LOCKFILE.exists() else {}
    deps, outs = (
        {Path(entry["path"]) for stage in stages.values() for entry in stage.get(key, [])} for key in ("deps", "outs")
    )
    made = {dep for dep in deps for out in outs if dep.is_relative_to(out) or out.is_relative_to(dep)}
    here = {str(dep) for dep in deps - made if dep.exists() and not dep.is_absolute() and ".." not in dep.parts}
    for path in here:
        if not git("ls-files", "-co", "--exclude-standard", "--", f":(literal){path}"):
            raise UserError(f"a stage depends on {path}, which git ignores")
    return [f":(literal){path}" for path in sorted(here | set(CODE))]
