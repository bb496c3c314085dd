"""Commands that run in a clone while a test goes on."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import DVC, Clone, outside_variables

# Results that are equal after two runs. Timings and the files that depend on them differ.
ALIKE = (
    "data/**/*.*",
    "reference/*",
    "models/**/*.*",
    "results/*/[ghme]*.*",
    "results/curves/*",
    "results/predictions/*",
    "results/fits/*",
    "parity/*",
)
NUMPY = "numpy_arrays"
_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def end_started() -> Iterator[None]:
    """Kill the processes that a test leaves running."""
    yield
    while _started:
        kill_group(_started.pop())


def start(
    clone: Clone, *command: str, output: int = subprocess.PIPE, env: dict[str, str] | None = None
) -> subprocess.Popen:
    process = subprocess.Popen(
        [str(DVC) if command[0] == "dvc" else command[0], *command[1:]],
        cwd=clone.path,
        env=outside_variables() | {"PATH": f"{DVC.parent}:{os.environ['PATH']}"} | (env or {}),
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    _started.append(process)
    return process


def start_command(clone: Clone, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen:
    return start(clone, sys.executable, "-m", "commands", *arguments, env=env)


def output_until(process: subprocess.Popen, pattern: str) -> str:
    """The output up to a line that matches."""
    output = ""
    for line in process.stdout or ():
        output += line
        if re.search(pattern, line):
            return output
    raise AssertionError(f"it ended without printing {pattern}:\n{output}")


def kill_group(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:  # not read to the end, because a child may still hold it open
        process.stdout.close()


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes_in(clone: Clone) -> dict[int, str]:
    """The processes that work in a clone, and their commands."""
    processes = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cwd").readlink() == clone.path and (command := (folder / "cmdline").read_bytes()):
                processes[int(folder.name)] = command.replace(b"\0", b" ").decode()
    return processes


def stage_of(clone: Clone) -> int | None:
    """The process of the running stage."""
    return next((pid for pid, command in processes_in(clone).items() if " -m stages." in command), None)
