"""`dvc` in the project's environments, on the host as in the images: one run of a checkout at a time.

A command that changes the working tree waits until the running one has ended, on the host or in a container. Then it
repairs what a killed run left: DVC's own lock (.dvc/tmp/rwlock), and a dvc.lock that was being written. Then this
process becomes DVC, and the kernel releases its lock when it ends, however it ends.

There are two kernel locks, because host and containers do not see each other's processes: .dvc/tmp/run.lock is held by
DVC, and .dvc/tmp/stage.lock by a stage (pipeline/running/stage.py), which can run briefly after DVC was killed.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":  # started by its path, with `python -I`
    sys.path.insert(0, str(ROOT))

from pipeline.errors import shown_to_the_user  # noqa: E402
from pipeline.running.locks import HELD, NO_LOCKS, acquire, open_lock, write_holder  # noqa: E402
from pipeline.running.processes import own_environment  # noqa: E402

# What changes the working tree. Queueing an experiment does, too: DVC makes it there and runs it elsewhere.
CHANGING = {"repro", "checkout", "commit", "pull", "exp run", "exp apply"}

RUN_LOCK, STAGE_LOCK = Path(".dvc/tmp/run.lock"), Path(".dvc/tmp/stage.lock")
RWLOCK = Path(".dvc/tmp/rwlock")
LOCKFILE = Path("dvc.lock")
LAST_GOOD = Path(".dvc/tmp/dvc.lock")  # a copy of dvc.lock from the start of the last stage
DAMAGED = Path(".dvc/tmp/dvc.lock.damaged")


def main(arguments: list[str]) -> None:
    command = command_of(arguments)
    if command in CHANGING and "--run-all" not in arguments:  # it starts workers that run on after it has ended
        folder = Path.cwd()
        os.chdir(ROOT)
        os.environ.pop(HELD, None)
        with shown_to_the_user():
            lock = open_lock(RUN_LOCK)
            acquire(lock)
            os.set_inheritable(lock.fileno(), True)
            write_holder(lock, f"dvc {command}")
            with open_lock(STAGE_LOCK) as stage:
                acquire(stage)
            if os.environ.get(HELD) == NO_LOCKS:
                use_hard_links()
            check_modes()
            remove_dead_locks()
            restore_lockfile()
        os.chdir(folder)
        os.environ[HELD] = "held"
        # DVC starts a stage by $SHELL -c. bash becomes the stage. dash would stay its parent and end at Ctrl-C, and DVC
        # would not wait until the stage has restored its outputs.
        os.environ["SHELL"] = shutil.which("bash") or "/bin/sh"
    # A stage's `python` is this interpreter, even if the environment is not activated.
    environment = own_environment() | {"PATH": f"{sys.prefix}/bin:{os.environ.get('PATH', os.defpath)}"}
    os.execve(sys.executable, [sys.executable, "-P", "-m", "dvc", *arguments], environment)


def command_of(arguments: list[str]) -> str:
    """The command in DVC's arguments, without options: `exp run`."""
    words = [word for word, before in zip(arguments, ["", *arguments], strict=False) if before != "--cd"]
    words = [word for word in words if not word.startswith("-")]
    if words[:1] in (["exp"], ["experiments"]):
        return " ".join(["exp", *words[1:2]])
    return "".join(words[:1])


def use_hard_links() -> None:
    """Make DVC use locks that are not the kernel's, and remove the locks that a killed DVC left: DVC cannot recognise
    them."""
    config = Path(".dvc/config.local")
    if not config.is_file() or "hardlink_lock" not in config.read_text(encoding="utf-8"):
        command = [sys.executable, "-P", "-m", "dvc", "config", "--local", "core.hardlink_lock", "true"]
        subprocess.run(command, env=own_environment(), check=False)
    for name in ("lock", "rwlock.lock"):
        RUN_LOCK.with_name(name).unlink(missing_ok=True)


def check_modes() -> None:
    """Warn on a file system that refuses chmod, without which DVC cannot fill its cache."""
    with tempfile.NamedTemporaryFile(dir=RUN_LOCK.parent) as file:
        try:
            os.chmod(file.name, 0o644)  # noqa: PTH101 (as DVC does)
        except OSError as error:
            remedy = "If DVC cannot fill its cache, put it on another one: `dvc cache dir --local FOLDER`"
            print(f"WARNING: this file system refuses chmod: {error.strerror}. {remedy}.", file=sys.stderr, flush=True)


def remove_dead_locks() -> None:
    """Remove DVC's own lock, unless it names a DVC that runs on this machine and was not started by this file. DVC
    itself removes the lock of a process that has ended. But it cannot tell for a process in a container, whose id may
    be that of another process here.
    """
    if RWLOCK.is_file():
        holders = re.findall(r'"pid": (\d+)', RWLOCK.read_text(encoding="utf-8", errors="replace"))
        if not any(_is_dvc(int(pid)) for pid in holders):
            RWLOCK.unlink()


def _is_dvc(pid: int) -> bool:
    try:
        return b"dvc" in Path(f"/proc/{pid}/cmdline").read_bytes() and pid != os.getpid()
    except OSError:
        return False


def restore_lockfile() -> None:
    """Restore the last good dvc.lock when this one is damaged: DVC rewrites it in place after every stage."""
    if not LOCKFILE.is_file():
        return
    content = LOCKFILE.read_text(encoding="utf-8", errors="replace")
    good = LAST_GOOD.read_text(encoding="utf-8") if LAST_GOOD.is_file() else None
    if content == good:
        return
    damage = damage_of(content)
    if damage is None:
        replace_text(LAST_GOOD, content)
        return
    source = "the last stage that was started"
    if good is None:
        committed = ["git", "cat-file", "blob", f"HEAD:./{LOCKFILE}"]
        shown = subprocess.run(committed, capture_output=True, encoding="utf-8", errors="replace", check=False)
        good, source = (None if shown.returncode else shown.stdout), "the last commit"
    LOCKFILE.replace(DAMAGED)
    if good is not None:
        replace_text(LOCKFILE, good)
    remedy = f"that of {source} is restored" if good is not None else "DVC makes a new one"
    print(f"WARNING: {LOCKFILE} was damaged: {damage}; {remedy}. The damaged file is {DAMAGED}.", file=sys.stderr)


def damage_of(content: str) -> str | None:
    """What is wrong with the content of a dvc.lock, such as one that was cut short; None when nothing is."""
    import yaml  # imported here, since usually nothing has changed
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    if not content.endswith("\n"):
        return "its last line is not complete"
    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.load(content, yaml.CSafeLoader))
    except yaml.YAMLError as error:
        return f"it is no YAML, {getattr(error, 'problem', None) or 'and unreadable'}"
    except Invalid as error:
        return " ".join(str(error).split())
    return None


def replace_text(path: Path, content: str) -> None:
    """Write a file completely or not at all. pipeline/files.py does the same, but `dvc` should import little."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(content, encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    main(sys.argv[1:])
