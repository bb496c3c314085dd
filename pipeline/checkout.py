"""dvc, with the checkout to itself: what `dvc` is in the project's environments, on the host as in the images.

A command that changes the working tree waits until the one under way has ended, wherever that runs. What a killed run
left behind is put right before DVC sees it: its lock on files (.dvc/tmp/rwlock), and a dvc.lock that it was writing.
Then this process becomes DVC, and the kernel releases its lock when it ends, however it ends.

Two locks, since a kernel lock holds between host and containers, which do not see each other's processes:
.dvc/tmp/run.lock is DVC's from its start to its end, and .dvc/tmp/stage.lock a stage's (stages/__init__.py), which may
outlive a DVC that was killed by a moment.
"""

import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

# What changes the working tree. An experiment for the queue does, too: DVC makes it there, and runs it elsewhere.
CHANGING = {"repro", "checkout", "commit", "pull", "exp run", "exp apply"}

RUN_LOCK, STAGE_LOCK = Path(".dvc/tmp/run.lock"), Path(".dvc/tmp/stage.lock")
RWLOCK = Path(".dvc/tmp/rwlock")
LOCKFILE = Path("dvc.lock")
LAST_GOOD = Path(".dvc/tmp/dvc.lock")  # as it was when the last stage started
DAMAGED = Path(".dvc/tmp/dvc.lock.damaged")


def main(arguments: list[str]) -> None:
    command = command_of(arguments)
    if command in CHANGING and "--run-all" not in arguments:  # which starts workers and leaves them behind
        here = Path.cwd()
        os.chdir(Path(__file__).parent.parent)
        RUN_LOCK.parent.mkdir(exist_ok=True)
        lock = RUN_LOCK.open("a+")
        acquire(lock)
        os.set_inheritable(lock.fileno(), True)
        write_holder(lock, f"dvc {command}")
        with STAGE_LOCK.open("a+") as stage:
            acquire(stage)
        remove_dead_locks()
        restore_lockfile()
        os.chdir(here)
        os.environ["PIPELINE_LOCK"] = "held"
        # DVC starts a stage by $SHELL -c. bash becomes the stage; dash would stay before it and die of Ctrl-C first,
        # and DVC would not wait until the stage has cleaned up.
        os.environ["SHELL"] = "/bin/bash"
    os.execv(sys.executable, [sys.executable, "-P", "-m", "dvc", *arguments])


def command_of(arguments: list[str]) -> str:
    """What is asked of DVC, its options left out: `exp run`."""
    words = [word for word, before in zip(arguments, ["", *arguments], strict=False) if before != "--cd"]
    words = [word for word in words if not word.startswith("-")]
    if words[:1] in (["exp"], ["experiments"]):
        return " ".join(["exp", *words[1:2]])
    return "".join(words[:1])


def acquire(lock: IO[str]) -> None:
    """Take a lock. Where another has it, say which, and wait until it has ended."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"Waiting until {holder(lock)} has ended (Ctrl-C gives up).", file=sys.stderr, flush=True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except KeyboardInterrupt:
            sys.exit(130)


def write_holder(lock: IO[str], command: str) -> None:
    """Note in the lock, for whoever waits for it, who has it."""
    where = f"in container {platform.node()}" if Path("/.dockerenv").exists() else f"on {platform.node()}"
    lock.seek(0)
    lock.truncate()
    lock.write(f"`{command}` {where}, under way since {datetime.now():%H:%M:%S on %d %B}")
    lock.flush()


def holder(lock: IO[str]) -> str:
    lock.seek(0)
    return lock.read() or "another run of this checkout"


def remove_dead_locks() -> None:
    """Take from DVC's rwlock what processes hold that are dead.

    No run is under way, so it is what a killed one left, perhaps in a container, whose numbers for processes are not
    ours. Only what a living DVC of this machine's holds stays: it was not started by way of this file.
    """
    try:
        held = json.loads(RWLOCK.read_text())
        write = {path: info for path, info in held.get("write", {}).items() if _lives(info)}
        read = {path: alive for path, infos in held.get("read", {}).items() if (alive := list(filter(_lives, infos)))}
    except FileNotFoundError:
        return
    except (ValueError, AttributeError, KeyError, TypeError):  # cut short
        write = read = {}
    if write or read:
        write_text(RWLOCK, json.dumps({"write": write, "read": read}))
    else:
        RWLOCK.unlink()


def _lives(info: dict[str, Any]) -> bool:
    try:
        return b"dvc" in Path(f"/proc/{info['pid']}/cmdline").read_bytes() and info["pid"] != os.getpid()
    except OSError:
        return False


def restore_lockfile() -> None:
    """Bring back the last good dvc.lock when this one is damaged: DVC rewrites it in place after every stage."""
    if not LOCKFILE.is_file():
        return
    content = LOCKFILE.read_text(errors="replace")
    good = LAST_GOOD.read_text() if LAST_GOOD.is_file() else None
    if content == good:
        return
    damage = damage_of(content)
    if damage is None:
        write_text(LAST_GOOD, content)
        return
    LOCKFILE.replace(DAMAGED)
    whose = "that of the last stage that was started"
    if good is None:
        shown = subprocess.run(["git", "show", f"HEAD:./{LOCKFILE}"], capture_output=True, text=True, check=False)
        good, whose = (shown.stdout, "that of the last commit") if shown.returncode == 0 else (None, "")
    if good is not None:
        write_text(LOCKFILE, good)
    remedy = f"{whose} is there again" if good is not None else "DVC makes a new one"
    print(f"WARNING: {LOCKFILE} was damaged: {damage}; {remedy}. What was there is {DAMAGED}.", file=sys.stderr)


def damage_of(content: str) -> str | None:
    """What is wrong with the content of a dvc.lock, as where one was cut short anywhere; None when it is whole."""
    import yaml  # here, since mostly nothing has changed

    if not content.endswith("\n"):
        return "its last line is not complete"
    try:
        return next(_faults(yaml.load(content, yaml.CSafeLoader)), None)
    except yaml.YAMLError as error:
        return f"it is no YAML, {getattr(error, 'problem', None) or 'and unreadable'}"


def _faults(lock: Any) -> Iterator[str]:
    if not isinstance(lock, dict) or "schema" not in lock or not isinstance(lock.get("stages"), dict):
        yield "it has no schema or no stages"
        return
    for name, stage in lock["stages"].items():
        if not isinstance(stage, dict) or "cmd" not in stage:
            yield f"stage {name} has no command"
            continue
        deps, outs, params = (stage.get(key, empty) for key, empty in (("deps", []), ("outs", []), ("params", {})))
        if None in (deps, outs, params) or None in params.values():
            yield f"stage {name} has an empty part"
            continue
        for file in (*deps, *outs):
            if file.get("hash") == "md5":
                wanted = {"md5", "size", "nfiles"} if str(file.get("md5")).endswith(".dir") else {"md5", "size"}
                if missing := sorted(wanted - file.keys()):
                    yield f"stage {name}: {file.get('path')} has no {' and no '.join(missing)}"


def write_text(path: Path, content: str) -> None:
    """Write a file, whole or not at all; here too, since this file is run before anything else can be imported."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(content)
    part.replace(path)


if __name__ == "__main__":
    main(sys.argv[1:])
