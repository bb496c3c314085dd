"""What a node does with one experiment: `dvc exp run` in a clone of its own, and what comes of it, packed.

Sent to the node as it is (by value), so it imports nothing of the pipeline, and a node needs no newer checkout than its
image or clone brings for the environment.
"""

import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

# One for all experiments of a node: what several share, such as the data, is made once.
NODE = Path(tempfile.gettempdir(), f"seven-ways-sweep-{os.getuid()}")
INHERITED = ("DVC_ROOT", "DVC_STAGE", "DVC_EXP", "MLFLOW_", "PIPELINE_", "OMP_")
LIBC_PR_SET_PDEATHSIG = 1


class Task(NamedTuple):
    """One experiment: `revision` is the working tree to run it with, on top of the commit `baseline`.

    `there` are the objects of DVC's cache that home has; `cpus` is how many CPUs it gets, 0 for all.
    """

    name: str
    baseline: str
    revision: str
    there: frozenset[str]
    cpus: int
    gpu: bool


class Outcome(NamedTuple):
    """`bundle` holds the experiment's ref, `objects` a tar of files of DVC's cache. Both are empty where it failed."""

    name: str
    succeeded: bool
    node: str
    seconds: float
    log: str
    bundle: bytes = b""
    objects: bytes = b""
    environment: bytes = b""  # its environment.json, which DVC keeps in neither


def run(task: Task, bundle: bytes, say: Callable[[str], Any]) -> Outcome:
    """Run one experiment, whose commits are in `bundle`; `say` a line for each of its stages."""
    start, node = datetime.now(), os.uname().nodename
    NODE.mkdir(exist_ok=True)
    with _clone(task, bundle) as clone, _cpus(task.cpus):
        environment = {key: value for key, value in os.environ.items() if not key.startswith(INHERITED)}
        environment |= {"PIPELINE_SWEEP": "shared" if task.cpus else "alone", "MLFLOW_DISABLE_TELEMETRY": "true"}
        if not task.gpu:
            environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves every GPU to a task that asked for none
        # Beside others nothing can be timed, so there is no benchmark then.
        command = ["exp", "run", "--name", task.name, *(["-S", "benchmark.processes=0"] if task.cpus else [])]
        log = _dvc(clone, command, environment, lambda line: say(f"{task.name}, {node}: {line}"))
        ref = f"refs/exps/{task.baseline[:2]}/{task.baseline[2:]}/{task.name}"
        if not _git(clone, "for-each-ref", ref):
            return Outcome(task.name, False, node, (datetime.now() - start).total_seconds(), log)
        _git(clone, "bundle", "create", "--quiet", "result.bundle", ref, f"^{task.baseline}")
        files = [(clone / file).read_bytes() for file in ("result.bundle", "environment.json")]
        objects = _objects(clone, ref, task.there)
        return Outcome(
            task.name, True, node, (datetime.now() - start).total_seconds(), log, files[0], objects, files[1]
        )


def _dvc(clone: Path, command: list[str], environment: dict[str, str], say: Callable[[str], Any]) -> str:
    """Run the experiment, say which stage it is at and how the losses are, and return all that it printed."""
    lines = []
    with subprocess.Popen(
        [Path(sys.prefix, "bin/dvc"), *command],
        cwd=clone,
        env=environment | {"PATH": f"{sys.prefix}/bin:{environment['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_end_with_parent,  # noqa: PLW1509
        start_new_session=True,
    ) as process:
        for line in process.stdout or ():
            lines.append(line)
            if line.startswith("Running stage '"):
                say(line.split("'")[1])
            elif ": step " in line:
                say(line.strip())
    return "".join(lines)


def _end_with_parent() -> None:
    """A worker that is killed takes its experiment along."""
    import ctypes

    ctypes.CDLL(None).prctl(LIBC_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def _clone(task: Task, bundle: bytes) -> Iterator[Path]:
    """The experiment's commit in a new folder, with what is changed; folders whose process is gone are cleared."""
    for left in NODE.glob("run-*"):
        if not Path("/proc", left.name.split("-")[1]).exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"run-{os.getpid()}-", dir=NODE))
    try:
        (folder / "bundle").write_bytes(bundle)
        clone = folder / "clone"
        _git(folder, "init", "--quiet", str(clone))
        _git(clone, "fetch", "--quiet", "../bundle", "refs/sweep/*:refs/sweep/*")
        _git(clone, "checkout", "--quiet", task.baseline)
        patch = _git(clone, "diff", "--binary", task.baseline, task.revision)
        if patch:
            subprocess.run(["git", "apply", "--binary"], cwd=clone, input=patch, check=True)
        for key, value in {"user.name": "sweep", "user.email": "sweep@localhost"}.items():
            _git(clone, "config", key, value)
        dvc = Path(sys.prefix, "bin/dvc")
        subprocess.run([dvc, "cache", "dir", "--local", NODE / "cache"], cwd=clone, check=True, capture_output=True)
        yield clone
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _cpus(number: int) -> Iterator[None]:
    """Keep to so many CPUs of this node that no other experiment has."""
    everything = os.sched_getaffinity(0)
    if not number:
        yield
        return
    taken: dict[int, Any] = {}
    try:
        with (NODE / "cpus").open("w") as one_at_a_time:
            fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
            for may_wait in (False, True):  # for those that another sweep has
                for cpu in sorted(everything - taken.keys()):
                    if len(taken) < number and (file := _hold(cpu, may_wait)):
                        taken[cpu] = file
        os.sched_setaffinity(0, taken)
        yield
    finally:
        os.sched_setaffinity(0, everything)
        for file in taken.values():
            file.close()


def _hold(cpu: int, may_wait: bool) -> Any:
    file = (NODE / f"cpu.{cpu}").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX if may_wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _objects(clone: Path, ref: str, there: frozenset[str]) -> bytes:
    """The files of the cache that the experiment's dvc.lock names and home does not have, as a tar."""
    import json

    import yaml

    stages = yaml.safe_load(_git(clone, "show", f"{ref}:dvc.lock"))["stages"]
    wanted = {out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        while wanted:
            md5 = wanted.pop()
            path = NODE / "cache/files/md5" / md5[:2] / md5[2:]
            if not path.exists():  # of an implementation that was taken out, or not kept in the cache
                continue
            if md5.endswith(".dir"):
                wanted |= {entry["md5"] for entry in json.loads(path.read_text())}
            if md5 not in there:
                tar.add(path, arcname=f"{md5[:2]}/{md5[2:]}")
    return buffer.getvalue()


def _git(folder: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True).stdout
