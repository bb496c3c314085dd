"""What a node does with one experiment: it runs `dvc exp run` in a clone and packs the results.

Ray sends this code, and the functions of the pipeline that it imports by name, to the node by value. So a node needs
only the environment of its image or clone, not this version of the code.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.git import git, run_dvc, use_cache
from pipeline.running.locks import open_lock, take
from pipeline.running.processes import end_with_parent, environment_for_another_run
from pipeline.sweep.objects import path_of, with_files
from pipeline.sweep.queue import Experiment, stages


class Outcome(NamedTuple):
    """`bundle` holds the experiment's ref, `objects` md5 and content of DVC's objects. Both are empty where it failed.

    `full` is whether it failed because this node's disk is full; `pushed`, whether the objects are in the DVC remote.
    """

    succeeded: bool
    node: str
    node_id: str  # Ray's
    seconds: float
    log: str
    full: bool = False
    bundle: bytes = b""
    objects: tuple[tuple[str, bytes], ...] = ()
    pushed: bool = False
    environment: bytes = b""  # its environment.json, which is in neither


def run(
    experiment: Experiment,
    bundle: bytes,
    known: frozenset[str],
    progress: Any,
    *,
    cpus: int,
    gpu: bool,
    targets: tuple[str, ...],
) -> Outcome:
    """Run one experiment, whose commits are in `bundle`; `known` are the objects of the driver's DVC cache.

    `cpus` is how many CPUs it gets, 0 for all; `targets` are the stages to run, none for all. `progress` is
    a queue for the names of the experiment, its node and its stage.
    """
    import ray

    start, node = datetime.now(), os.uname().nodename
    outcome = Outcome(False, node, ray.get_runtime_context().get_node_id(), 0.0, "")
    try:
        with _clone(experiment, bundle) as clone, _cpus(cpus):
            if cpus:
                _leave_benchmark_out(clone)
            command = ["exp", "run", "--name", experiment.name, *targets]
            log = _dvc(clone, command, cpus, gpu, lambda stage: progress.put_nowait((experiment.name, node, stage)))
            outcome = outcome._replace(log=log, full=os.strerror(errno.ENOSPC) in log)
            if git("for-each-ref", experiment.ref, folder=clone):
                outcome = _packed(clone, experiment, known, outcome._replace(succeeded=True, full=False))
    except (OSError, UserError) as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        outcome = outcome._replace(succeeded=False, full=True, log=f"{outcome.log}\nERROR: {error}\n")
    return outcome._replace(seconds=(datetime.now() - start).total_seconds())


def _packed(clone: Path, experiment: Experiment, known: frozenset[str], outcome: Outcome) -> Outcome:
    git("bundle", "create", "--quiet", "result.bundle", experiment.ref, f"^{experiment.baseline}", folder=clone)
    pushed, environment, objects = False, clone / "environment.json", ()
    config = ConfigParser()  # git refuses the headings of DVC's sections
    config.read(clone / ".dvc/config")
    if config.get("core", "remote", fallback=""):
        done = run_dvc(clone, "push", "--quiet", capture_output=True)
        if done.returncode:
            raise UserError(f"dvc push failed: {done.stderr.strip()}")
        pushed = True
    else:
        outputs = {out["md5"] for stage in stages(experiment.ref, clone).values() for out in stage.get("outs", [])}
        cache = _folder() / "cache"
        paths = {md5: path_of(md5, cache) for md5 in with_files(outputs, cache) - known}
        # The driver checks whether one is missing.
        objects = tuple((md5, path.read_bytes()) for md5, path in paths.items() if path.exists())
    return outcome._replace(
        bundle=(clone / "result.bundle").read_bytes(),
        objects=objects,
        pushed=pushed,
        environment=environment.read_bytes() if environment.exists() else b"",
    )


def _dvc(clone: Path, command: list[str], cpus: int, gpu: bool, show: Callable[[str], Any]) -> str:
    """Run DVC, show which stage it is at and how the losses are, and return all that it printed."""
    environment = {key: value for key, value in environment_for_another_run().items() if key != "OMP_NUM_THREADS"}
    environment |= {"PIPELINE_SWEEP": "shared" if cpus else "alone", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["PATH"] = f"{sys.prefix}/bin:{environment['PATH']}"
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves every GPU to a task that asked for none
    lines = []
    with subprocess.Popen(
        [Path(sys.prefix, "bin/dvc"), *command],
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        preexec_fn=lambda: end_with_parent(signal.SIGKILL),  # noqa: PLW1509 (a killed worker ends its experiment)
        start_new_session=True,
    ) as process:
        for line in process.stdout or ():
            lines.append(line)
            if line.startswith("Running stage '"):
                show(line.split("'")[1])
            elif ": step " in line:
                show(line.strip())
    return "".join(lines)


def _leave_benchmark_out(clone: Path) -> None:
    """Beside others nothing can be timed. As `-S benchmark.processes=0`, without its 0.7 s."""
    from dvc.utils.serialize import modify_yaml

    with modify_yaml(str(clone / "params.yaml")) as params:
        if isinstance(params.get("benchmark"), dict):  # else a stage says what is wrong
            params["benchmark"]["processes"] = 0


def _folder() -> Path:
    """One for all experiments of a node, so that what they share, such as the data, is made once."""
    folder = Path(tempfile.gettempdir(), f"seven-ways-sweep-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def _clone(experiment: Experiment, bundle: bytes) -> Iterator[Path]:
    """The experiment's working tree in a new folder. Folders whose process has ended are removed."""
    for folder in _folder().glob("run-*"):
        if not Path("/proc", folder.name.split("-")[1]).exists():
            shutil.rmtree(folder, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"run-{os.getpid()}-", dir=_folder()))
    try:
        (folder / "bundle").write_bytes(bundle)
        clone = folder / "clone"
        git("init", "--quiet", str(clone))
        git("fetch", "--quiet", "../bundle", f"refs/sweep/{experiment.revision}", folder=clone)
        git("checkout", "--quiet", experiment.revision, folder=clone)
        git("reset", "--quiet", experiment.baseline, folder=clone)  # the files stay
        for key, value in {"user.name": "sweep", "user.email": "sweep@localhost"}.items():
            git("config", key, value, folder=clone)
        use_cache(clone, _folder() / "cache")
        yield clone
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _cpus(number: int) -> Iterator[None]:
    """Keep to so many CPUs of this node that no other experiment has."""
    everything, cpus = os.sched_getaffinity(0), set()
    with ExitStack() as held:
        if number:
            with ExitStack() as one_at_a_time:
                _lock(one_at_a_time, "cpus")
                for wait in (False, True):  # first those that are free, then wait for those of another sweep
                    for cpu in sorted(everything - cpus):
                        if len(cpus) < number and _lock(held, f"cpu.{cpu}", wait=wait):
                            cpus.add(cpu)
            os.sched_setaffinity(0, cpus)
        try:
            yield
        finally:
            os.sched_setaffinity(0, everything)


def _lock(stack: ExitStack, name: str, *, wait: bool = True) -> bool:
    return take(stack.enter_context(open_lock(_folder() / name)), wait=wait)
