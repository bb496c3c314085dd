"""Kernel locks of files: one process at a time, and the kernel releases a lock when its process ends, however it ends.

Some file systems have no locks, such as some network ones. Processes go on there, after a warning.
"""

import fcntl
import os
import platform
import sys
from datetime import datetime
from pathlib import Path
from typing import IO

HELD = "PIPELINE_LOCK"  # the variable by which the stages of a `dvc` know that it has the lock of the checkout
NO_LOCKS = "none"  # its value after a process has warned that locks are missing


def open_lock(path: Path) -> IO[str]:
    """The file of a lock, made if it is missing. Another user's file need only be readable.

    Raises OSError when it cannot be made or opened.
    """
    path.parent.mkdir(exist_ok=True)
    try:
        return path.open("a+", encoding="utf-8")
    except PermissionError:
        if path.exists():
            return path.open(encoding="utf-8")
        raise


def take(lock: IO[str], *, wait: bool = True) -> bool:
    """Take the lock of an open file. Returns False if another process holds it and this one does not wait."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if HELD not in os.environ:
            os.environ[HELD] = NO_LOCKS  # one warning is enough
            reason = f"{lock.name} cannot be locked: {error.strerror}"
            print(f"WARNING: {reason}. Start one run of this checkout at a time.", file=sys.stderr, flush=True)
    return True


def acquire(lock: IO[str]) -> None:
    """Take a lock. If another process holds it, print which, and wait until that process has ended."""
    if not take(lock, wait=False):
        print(f"Waiting until {holder(lock)} has ended (Ctrl-C gives up).", file=sys.stderr, flush=True)
        try:
            take(lock)
        except KeyboardInterrupt:
            sys.exit(130)


def write_holder(lock: IO[str], command: str) -> None:
    """Write into the lock's file which command holds it: `acquire` prints that."""
    where = f"in container {platform.node()}" if Path("/.dockerenv").exists() else f"on {platform.node()}"
    if lock.writable():
        lock.seek(0)
        lock.truncate()
        lock.write(f"`{command}` {where}, under way since {datetime.now():%H:%M:%S on %d %B}")
        lock.flush()


def holder(lock: IO[str]) -> str:
    lock.seek(0)
    return lock.read() or "another run of this checkout"
