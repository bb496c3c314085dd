"""git under any settings and variables of a user: commit and patch restore a state."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from pipeline.errors import UserError
from pipeline.git import check_repository, clone_at, git
from pipeline.tracking.changes import LARGEST_CHANGES, LARGEST_PATCH, changes

# Common and unusual settings: none may change what the pipeline does.
HOSTILE = """
[user]
useConfigOnly = true
[core]
attributesFile = {folder}/attributes
autocrlf = true
excludesFile = {folder}/excludes
fsmonitor = false-is-no-such-program
hooksPath = {folder}/hooks
pager = false
quotePath = true
safecrlf = true
splitIndex = true
[color]
ui = always
[column]
ui = always
[diff]
algorithm = patience
context = 0
external = false
mnemonicPrefix = true
noprefix = true
orderFile = /nowhere
relative = true
renames = copies
suppressBlankEmpty = true
wordRegex = .
[diff "shown"]
command = false
textconv = false
[filter "upper"]
clean = tr a-z A-Z
required = true
smudge = false
[apply]
ignoreWhitespace = change
whitespace = error
[clone]
defaultRemoteName = elsewhere
rejectShallow = true
[commit]
gpgSign = true
[fetch]
fsckObjects = true
prune = true
recurseSubmodules = true
[init]
defaultObjectFormat = sha256
defaultRefFormat = reftable
templateDir = {folder}/template
[log]
showSignature = true
[protocol]
allow = never
[protocol "file"]
allow = never
[status]
branch = true
showUntrackedFiles = no
[submodule]
recurse = true
[tag]
gpgSign = true
[transfer]
fsckObjects = true
[url "ssh://nowhere/"]
insteadOf = /
"""
# Variables of a hook, of `git rebase --exec`, of a shell's start files.
VARIABLES = {
    "GIT_ALLOW_PROTOCOL": "ssh",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES": "/nowhere",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "diff.external",
    "GIT_CONFIG_VALUE_0": "false",
    "GIT_CONFIG_PARAMETERS": "'core.hooksPath'='/nowhere'",
    "GIT_DEFAULT_HASH": "sha256",
    "GIT_DIFF_OPTS": "--unified=0",
    "GIT_DIR": "/nowhere",
    "GIT_EXTERNAL_DIFF": "false",
    "GIT_INDEX_FILE": "/nowhere",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_OBJECT_DIRECTORY": "/nowhere",
    "GIT_PREFIX": "nowhere/",
    "GIT_WORK_TREE": "/nowhere",
}
LOCK = """
stages:
  train:
    deps:
    - path: data/mine
    - path: data/made
    - path: /nowhere/data
    - path: ../elsewhere
    - path: s3://bucket/data
    outs:
    - path: data/made
"""


def write(path: str, content: str | bytes = "content\n") -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def user(*arguments: str, folder: Path | str = ".") -> str:
    """The output of a user's git command, without the settings and variables of a test."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    name = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "protocol.file.allow=always")
    environment = plain | {"GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(
        ["git", *name, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def commit(folder: Path | str = ".") -> str:
    user("add", "-A", folder=folder)
    user("commit", "-qm", "as it is now", folder=folder)
    return user("rev-parse", "HEAD", folder=folder).strip()


@pytest.fixture(autouse=True)
def commit_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The commit of a small project, which is the working folder."""
    project = tmp_path / "it's ä #1, 100%?"
    project.mkdir()
    monkeypatch.chdir(project)
    user("init", "-q")
    write(".gitignore", "results\n")
    write(".gitattributes", "* text=auto eol=lf\n")
    write("dvc.lock", LOCK)
    write("params.yaml", "".join(f"key_{number}: {number}  \n\n" for number in range(40)))
    write("pipeline/lesson.py", "x = 1\n")
    write("pipeline/gone.py")
    write("pipeline/weights.bin", bytes(range(256)))
    write("stages/train.py", "x = 1\n")
    return commit()


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gitconfig").write_text(HOSTILE.format(folder=tmp_path))
    (tmp_path / "attributes").write_text("* diff=shown filter=upper\n")
    (tmp_path / "excludes").write_text("*\n")
    for hook in ("post-checkout", "post-index-change", "reference-transaction"):
        for folder in ("hooks", "template/hooks"):
            path = write(str(tmp_path / folder / hook), "#!/bin/sh\nexit 1\n")
            path.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    with Path(".git/config").open("a") as file:
        file.write(HOSTILE.format(folder=tmp_path))
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


def edit() -> None:
    """Changes of every kind that a patch keeps."""
    with Path("params.yaml").open("a") as file:
        file.write("last: 1  \t\n")
    write("pipeline/weights.bin", bytes(reversed(range(256))))
    Path("pipeline/gone.py").unlink()
    Path("stages/train.py").chmod(0o755)
    write('pipeline/lessons/numpy_ä "new".py', "y = 2   \n")
    write("pipeline/lessons/__init__.py", "")
    write("data/mine/table.csv", "1,2\n")
    write("dvc.lock", LOCK + "  # of another run\n")


def tree(folder: Path) -> dict[str, tuple[bytes, bool]]:
    """Content and executable bit of each file of a working tree."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.relative_to(folder).parts)
    return {str(path.relative_to(folder)): (path.read_bytes(), os.access(path, os.X_OK)) for path in sorted(files)}


def again(commit: str, patch: bytes, folder: Path) -> Path:
    """The project in a new clone at the commit, with the patch."""
    project = clone_at(commit, folder / "clone")
    if patch:
        git("apply", "--binary", str(write(str(folder / "changes.patch"), patch)), folder=folder / "clone")
    return project


@pytest.mark.parametrize("settings", ["usual", "hostile"])
def test_commit_and_patch_restore_the_state(
    settings: str, commit_: str, tmp_path: Path, request: pytest.FixtureRequest
):
    if settings == "hostile":
        request.getfixturevalue("hostile")
    edit()
    state = tree(Path())
    write("secret.txt")  # which no stage depends on
    write("data/made/table.csv")  # which a stage writes
    write("results/table.csv")  # which git ignores
    write("pipeline/.env", "PASSWORD=1\n")
    write("pipeline/.idea/workspace.xml")
    clone = tree(again(commit_, changes(), tmp_path))
    assert clone.pop("dvc.lock")[0] == LOCK.encode()
    del state["dvc.lock"]
    assert clone == state


@pytest.mark.usefixtures("hostile")
def test_bundle_and_fetch_work_under_hostile_settings(commit_: str, tmp_path: Path):
    git("update-ref", "refs/sweep/x", commit_)
    git("bundle", "create", "--quiet", str(tmp_path / "bundle"), "refs/sweep/x")
    git("init", "--quiet", str(tmp_path / "node"))
    git("fetch", "--quiet", "../bundle", "refs/sweep/x", folder=tmp_path / "node")
    git("checkout", "--quiet", commit_, folder=tmp_path / "node")
    git("reset", "--quiet", commit_, folder=tmp_path / "node")
    assert tree(tmp_path / "node") == tree(Path())
    git("fetch", "--quiet", "../bundle", "+refs/sweep/x:refs/sweep/y")
    assert git("for-each-ref", "--format=%(objectname)", "refs/sweep/y") == commit_
    assert git("status", "--porcelain", "--untracked-files=normal", "--", ".") == ""


@pytest.mark.usefixtures("hostile")
def test_nothing_is_written_into_the_repository(commit_: str, tmp_path: Path):
    edit()
    before = {path: path.stat().st_mtime_ns for path in Path(".git").rglob("*")}
    again(commit_, changes(), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in Path(".git").rglob("*")} == before


@pytest.mark.environments
def test_env_file_that_git_tracks_is_not_in_the_patch():
    write(".env", "PASSWORD=old\n")
    write("pipeline/.env.local", "PASSWORD=old\n")
    commit()
    write(".env", "PASSWORD=new\n")
    write("pipeline/.env.local", "PASSWORD=new\n")
    assert changes() == b""


@pytest.mark.environments
def test_copied_checkout_has_no_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(".", tmp_path / "copy", copy_function=shutil.copyfile)
    monkeypatch.chdir(tmp_path / "copy")
    assert changes() == b""


@pytest.mark.environments
def test_change_of_an_assume_unchanged_file_is_in_the_patch():
    user("update-index", "--assume-unchanged", "pipeline/lesson.py")
    write("pipeline/lesson.py", "x = 2\n")
    assert b"+x = 2" in changes()


def test_patch_of_a_subfolder_leaves_out_the_rest_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    larger, project = tmp_path / "larger", tmp_path / "larger/some/where"
    shutil.copytree(".", project, ignore=shutil.ignore_patterns(".git"))
    monkeypatch.chdir(project)
    user("init", "-q", folder=larger)
    write(str(larger / "other.txt"), "old\n")
    commit_ = commit(larger)
    edit()
    write(str(larger / "other.txt"), "another project's\n")
    clone, patch = again(commit_, changes(), tmp_path), changes()
    assert b"another project's" not in patch
    assert clone == tmp_path / "clone/some/where"
    assert tree(clone).keys() == tree(Path()).keys()
    assert (clone / "pipeline/lessons/__init__.py").exists()


@pytest.mark.environments
@pytest.mark.parametrize("kind", ["worktree", "submodule", "shallow", "shared", "commit of no branch"])
def test_worktree_submodule_and_other_clones_are_restored(
    kind: str, commit_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    origin, folder = Path.cwd(), tmp_path / "super/other"
    if kind == "worktree":
        user("worktree", "add", "-q", "--detach", str(folder))
    elif kind == "submodule":
        user("init", "-q", str(tmp_path / "super"))
        user("submodule", "--quiet", "add", str(origin), "other", folder=tmp_path / "super")
    elif kind == "shallow":
        write("params.yaml", "a: 2\n")
        commit_ = commit()
        user("clone", "-q", "--depth=1", f"file://{origin}".replace("%", "%25"), str(folder))
    elif kind == "shared":
        user("clone", "-q", "--shared", str(origin), str(folder))
    else:
        shutil.copytree(origin, folder)
        monkeypatch.chdir(folder)
        write("params.yaml", "a: 2\n")
        commit_ = commit()
        user("reset", "-q", "--hard", "HEAD~")
    monkeypatch.chdir(folder)
    if kind != "commit of no branch":
        edit()
    assert len(tree(again(commit_, changes(), tmp_path))) == len(tree(Path()))


def link() -> None:
    Path("pipeline/linked.py").symlink_to("/nowhere")


def linked_folder() -> None:
    shutil.move("stages", "elsewhere")
    Path("stages").symlink_to("elsewhere")


def nested(*, empty: bool) -> None:
    user("init", "-q", "pipeline/mine")
    if not empty:
        write("pipeline/mine/file")
        commit("pipeline/mine")


def submodule() -> None:
    user("submodule", "--quiet", "add", str(Path.cwd()), "pipeline/mine")
    user("commit", "-qm", "a submodule")


def large() -> None:
    with Path("pipeline/large.bin").open("w") as file:
        file.truncate(2**36)


def large_patch() -> None:
    write("params.yaml", os.urandom(LARGEST_PATCH))


def ignored_dependency() -> None:
    write("data/mine/.gitignore", "*\n")
    write("data/mine/table.csv")


def conflict() -> None:
    for name in ("one", "two"):
        user("checkout", "-q", "-B", name, "HEAD" if name == "one" else "HEAD~")
        write("params.yaml", name)
        commit()
    subprocess.run(["git", "merge", "one"], capture_output=True, check=False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (link, "pipeline/linked.py is a symbolic link"),
        (linked_folder, "stages is a symbolic link"),
        (lambda: nested(empty=True), "pipeline/mine/ is a git repository of its own"),
        (lambda: nested(empty=False), "pipeline/mine/ is a git repository of its own"),
        (submodule, "pipeline/mine is a submodule"),
        (large, f"the changed files are 68,719,476,736 bytes, and at most {LARGEST_CHANGES:,} are read"),
        (large_patch, f"bytes, and at most {LARGEST_PATCH:,} are kept"),
        (ignored_dependency, "a stage depends on data/mine, which git ignores"),
        (conflict, "params.yaml is being merged"),
    ],
)
def test_changes_that_cannot_be_kept_give_the_reason(change, reason: str):
    change()
    with pytest.raises(UserError, match=r"^its changes since its commit could not be kept: ") as error:
        changes()
    assert reason in str(error.value)


@pytest.mark.environments
def test_submodule_that_no_stage_depends_on_is_not_in_the_patch():
    user("submodule", "--quiet", "add", str(Path.cwd()), "elsewhere/one")
    user("commit", "-qm", "a submodule")
    write("elsewhere/one/params.yaml", "changed")
    user("init", "-q", "elsewhere/two")
    assert changes() == b""


def test_folder_without_git_or_without_a_commit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"This folder is not a git repository.* git init "):
        check_repository()
    with pytest.raises(UserError, match="made outside a git repository"):
        changes()
    user("init", "-q")
    check_repository()
    with pytest.raises(UserError, match="or before the first commit"):
        changes()


@pytest.mark.environments
def test_worktree_without_its_repository_gets_no_advice_to_run_git_init(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    user("worktree", "add", "-q", str(tmp_path / "worktree"))
    Path(".git").rename("moved")
    monkeypatch.chdir(tmp_path / "worktree")
    with pytest.raises(UserError, match=r"not a git repository: .*worktrees/worktree") as error:
        check_repository()
    assert "git init" not in str(error.value)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give a file away")
def test_checkout_of_another_owner_gets_the_error_of_git(monkeypatch: pytest.MonkeyPatch):
    for path in (".", ".git"):
        os.chown(path, 65534, 65534)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for function in (check_repository, changes):
        with pytest.raises(UserError, match=r"dubious ownership(.|\n)*git config --global --add safe.directory"):
            function()
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "safe.directory")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "*")
    check_repository()


@pytest.mark.environments
@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv, to be a user who may not read everything")
@pytest.mark.parametrize("name", ["params.yaml", "pipeline/new.py"])
def test_unreadable_file_is_named_as_the_reason(name: str):
    write(name, "changed").chmod(0)
    less = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
    program = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from pipeline.tracking.changes import changes; changes()"
    )
    done = subprocess.run([*less, sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "UserError: its changes since its commit could not be kept: git diff-index failed: " in done.stderr
    assert name in done.stderr
    assert "Permission denied" in done.stderr
