"""What a node does with one experiment: `dvc exp run` in a clone of its own, and what comes of it, packed.

Sent to the node as it is (by value), so it imports nothing of the pipeline, and a node needs no newer checkout than its
image or clone brings for the environment.
"""

import errno
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

INHERITED = ("DVC_ROOT", "DVC_STAGE", "DVC_EXP", "MLFLOW_", "PIPELINE_", "OMP_")
LIBC_PR_SET_PDEATHSIG = 1


class Task(NamedTuple):
    """One experiment: `revision` is the working tree to run it with, on top of the commit `baseline`.

    `cpus` is how many CPUs it gets, 0 for all; `targets` are the stages to run, none for all.
    """

    name: str
    baseline: str
    revision: str
    cpus: int
    gpu: bool
    targets: tuple[str, ...]


class Outcome(NamedTuple):
    """`bundle` holds the experiment's ref, `objects` a tar of files of DVC's cache. Both are empty where it failed.

    `full` is whether it failed because this node's disk is full; `pushed`, whether the objects are in the DVC remote.
    """

    name: str
    succeeded: bool
    node: str
    node_id: str  # Ray's
    seconds: float
    log: str
    full: bool = False
    bundle: bytes = b""
    objects: bytes = b""
    pushed: bool = False
    environment: bytes = b""  # its environment.json, which DVC keeps in neither


def run(task: Task, bundle: bytes, there: frozenset[str], say: Callable[[str, str, str], Any]) -> Outcome:
    """Run one experiment, whose commits are in `bundle`; `there` are the objects of DVC's cache that home has.

    `say` takes a line of an experiment's name, its node and its stage.
    """
    import ray

    start, node = datetime.now(), os.uname().nodename
    outcome = Outcome(task.name, False, node, ray.get_runtime_context().get_node_id(), 0.0, "")
    try:
        with _clone(task, bundle) as clone, _cpus(task.cpus):
            log = _dvc(clone, task, lambda stage: say(task.name, node, stage))
            outcome = outcome._replace(log=log, full=os.strerror(errno.ENOSPC) in log)
            ref = f"refs/exps/{task.baseline[:2]}/{task.baseline[2:]}/{task.name}"
            if _git(clone, "for-each-ref", ref):
                _git(clone, "bundle", "create", "--quiet", "result.bundle", ref, f"^{task.baseline}")
                pushed, environment = _push(clone), clone / "environment.json"
                outcome = outcome._replace(
                    succeeded=True,
                    full=False,
                    bundle=(clone / "result.bundle").read_bytes(),
                    objects=_objects(clone, ref, there, none=pushed),
                    pushed=pushed,
                    environment=environment.read_bytes() if environment.exists() else b"",
                )
    except (OSError, subprocess.CalledProcessError) as error:
        said = f"{error} {getattr(error, 'stderr', None) or b''}"
        if os.strerror(errno.ENOSPC) not in said:
            raise
        outcome = outcome._replace(succeeded=False, full=True, log=f"{outcome.log}\nERROR: {said}\n")
    return outcome._replace(seconds=(datetime.now() - start).total_seconds())


def _dvc(clone: Path, task: Task, say: Callable[[str], Any]) -> str:
    """Run the experiment, say which stage it is at and how the losses are, and return all that it printed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(INHERITED)}
    environment |= {"PIPELINE_SWEEP": "shared" if task.cpus else "alone", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["PATH"] = f"{sys.prefix}/bin:{environment['PATH']}"
    if not task.gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves every GPU to a task that asked for none
    if task.cpus:
        _leave_benchmark_out(clone)
    lines = []
    with subprocess.Popen(
        [Path(sys.prefix, "bin/dvc"), "exp", "run", "--name", task.name, *task.targets],
        cwd=clone,
        env=environment,
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


def _leave_benchmark_out(clone: Path) -> None:
    """Beside others nothing can be timed. As `-S benchmark.processes=0`, without its 0.7 s."""
    from dvc.utils.serialize import modify_yaml

    with modify_yaml(str(clone / "params.yaml")) as params:
        if isinstance(params.get("benchmark"), dict):  # else a stage says what is wrong
            params["benchmark"]["processes"] = 0


def _folder() -> Path:
    """One for all experiments of a node: what several share, such as the data, is made once."""
    folder = Path(tempfile.gettempdir(), f"seven-ways-sweep-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    return folder


def _end_with_parent() -> None:
    """A worker that is killed takes its experiment along."""
    import ctypes

    ctypes.CDLL(None).prctl(LIBC_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def _clone(task: Task, bundle: bytes) -> Iterator[Path]:
    """The experiment's commit in a new folder, with what is changed; folders whose process is gone are cleared."""
    for left in _folder().glob("run-*"):
        if not Path("/proc", left.name.split("-")[1]).exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"run-{os.getpid()}-", dir=_folder()))
    try:
        (folder / "bundle").write_bytes(bundle)
        clone = folder / "clone"
        _git(folder, "init", "--quiet", str(clone))
        _git(clone, "fetch", "--quiet", "../bundle", f"refs/sweep/{task.revision}")
        _git(clone, "checkout", "--quiet", task.baseline)
        patch = _git(clone, "diff", "--binary", task.baseline, task.revision)
        if patch:
            subprocess.run(["git", "apply", "--binary"], cwd=clone, input=patch, check=True)
        for key, value in {"user.name": "sweep", "user.email": "sweep@localhost"}.items():
            _git(clone, "config", key, value)
        # What `dvc cache dir --local` does, without its start.
        _git(clone, "config", "--file", ".dvc/config.local", "cache.dir", str(_folder() / "cache"))
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
        with (_folder() / "cpus").open("w") as one_at_a_time:
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
    file = (_folder() / f"cpu.{cpu}").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX if may_wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _push(clone: Path) -> bool:
    """Send the objects to the DVC remote that the commit configures, if there is one."""
    import configparser

    config = configparser.ConfigParser()
    config.read(clone / ".dvc/config")
    if not config.get("core", "remote", fallback=""):
        return False
    subprocess.run([Path(sys.prefix, "bin/dvc"), "push", "--quiet"], cwd=clone, check=True, capture_output=True)
    return True


def _objects(clone: Path, ref: str, there: frozenset[str], *, none: bool) -> bytes:
    """The files of the cache that the experiment's dvc.lock names and home does not have, as a tar."""
    import json

    import yaml

    stages = yaml.load(_git(clone, "show", f"{ref}:dvc.lock"), yaml.CSafeLoader)["stages"]
    wanted = set() if none else {out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        while wanted:
            md5 = wanted.pop()
            path = _folder() / "cache/files/md5" / md5[:2] / md5[2:]
            if not path.exists():  # of an implementation that was taken out, or not kept in the cache
                continue
            if md5.endswith(".dir"):
                wanted |= {entry["md5"] for entry in json.loads(path.read_text())}
            if md5 not in there:
                tar.add(path, arcname=f"{md5[:2]}/{md5[2:]}")
    return buffer.getvalue()


def _git(folder: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True).stdout
