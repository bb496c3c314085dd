"""The task of a node for one experiment: run `dvc exp run` in a clone and pack the results. Ray sends this code, and
the functions of the pipeline that it imports by name, to the node by value. So a node needs only the environment of its
image or clone, not this version of the code.
"""

import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import files
from pipeline.errors import UserError
from pipeline.git import git, run_dvc, use_cache
from pipeline.running.locks import open_lock, take
from pipeline.running.processes import end_with_parent, environment_for_another_run
from pipeline.sweep.objects import path_of, with_files
from pipeline.sweep.queue import BUNDLED, Experiment, stages

BENCHMARK = "benchmark"  # the stage that times steps
WAITS = "waits for CPUs that experiments of another sweep use"


class Commits(NamedTuple):
    """The commits of all experiments as a git bundle, the commits where the history of a shallow clone ends, and the
    folder of the checkout in the repository."""

    bundle: bytes
    shallow: str
    prefix: str


class Outcome(NamedTuple):
    """`bundle` holds the experiment's ref, `objects` the md5 and the content of DVC's objects. Both are empty if the
    experiment failed. `error` says why it could not be run at all. `full` is whether this node's disk is full, `pushed`
    whether the objects are in the DVC remote, and `not_pushed` why they are not.
    """

    succeeded: bool
    node: str
    node_id: str  # Ray's
    seconds: float
    log: str
    error: str = ""
    full: bool = False
    bundle: bytes = b""
    objects: tuple[tuple[str, bytes], ...] = ()
    pushed: bool = False
    not_pushed: str = ""
    environment: bytes = b""  # its environment.json, which neither of them contains


def machine() -> str:
    """An id of the machine, the same for all its nodes, also in containers."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")


def run(
    experiment: Experiment,
    commits: Commits,
    known: frozenset[str],
    progress: Any,
    *,
    cpus: int,
    gpu: bool,
    targets: tuple[str, ...],
    neighbours: frozenset[str],
) -> Outcome:
    """Run one experiment; `known` are the objects of the driver's DVC cache.

    `cpus` is how many CPUs it gets, 0 for all; `targets` are the stages to run, none for all. `progress` is
    a queue for the names of the experiment, its node and its stage. `neighbours` are the nodes that share a machine.
    """
    import ray

    start, node = datetime.now(), os.uname().nodename
    outcome = Outcome(False, node, ray.get_runtime_context().get_node_id(), 0.0, "")
    shared = bool(cpus) or outcome.node_id in neighbours

    def show(stage: str) -> None:
        progress.put_nowait((experiment.name, node, stage))

    try:
        with _clone(experiment, commits) as clone, _cpus(cpus, alone=not shared, waits=lambda: show(WAITS)):
            command = ["exp", "run", "--name", experiment.name, *targets]
            if cpus and not targets:
                command += ["--single-item", *_leave_benchmark_out(clone)]
            log = _dvc(clone, command, shared, gpu, show)
            outcome = outcome._replace(log=log, full=os.strerror(errno.ENOSPC) in log)
            if git("for-each-ref", experiment.ref, folder=clone):
                _check_tree(experiment, clone)
                outcome = _packed(clone, experiment, known, outcome._replace(succeeded=True, full=False))
    except Exception as error:  # any error of git, DVC or the disk
        words = str(error) if isinstance(error, UserError) else traceback.format_exc()
        full = os.strerror(errno.ENOSPC) in str(error)
        log = f"{outcome.log}\nERROR: {words}\n"
        outcome = outcome._replace(succeeded=False, full=full, log=log, error=f"it could not be run: {error}")
    return outcome._replace(seconds=(datetime.now() - start).total_seconds())


def _leave_benchmark_out(clone: Path) -> list[str]:
    """The stages of dvc.yaml in their order, without the benchmark, because others would disturb it. Its outputs are
    written as empty files. dvc.lock records them with another command, so that the next `dvc repro` measures.
    """
    from dvc.utils.serialize import load_yaml, modify_yaml

    stages = load_yaml(str(clone / "dvc.yaml"))["stages"]
    if benchmark := stages.pop(BENCHMARK, None):
        empty = {"hash": "md5", "md5": hashlib.md5(usedforsecurity=False).hexdigest(), "size": 0}
        paths = [next(iter(out)) if isinstance(out, dict) else out for out in benchmark["outs"]]
        for path in (*(clone / path for path in paths), path_of(empty["md5"], _folder() / "cache")):
            files.write_bytes(path, b"")
        with modify_yaml(str(clone / "dvc.lock")) as lock:
            lock.setdefault("schema", "2.0")
            outs = [{"path": path} | empty for path in paths]
            lock.setdefault("stages", {})[BENCHMARK] = {"cmd": "left out by make sweep SHARE", "outs": outs}
    return list(stages)


def _check_tree(experiment: Experiment, clone: Path) -> None:
    """Raises UserError when the experiment that DVC recorded is not of the files that were queued."""
    options = ("-r", "-z", "--name-only", "--relative")
    changed = git("diff-tree", *options, experiment.revision, experiment.ref, folder=clone).split("\0")
    # Files that a run writes: outputs may be in git, and DVC lists the others in .gitignore.
    written = {"dvc.lock", ".dvc/tmp/repro.dat", ".gitignore", *_outputs(experiment, clone)}
    others = [path for path in changed if path and written.isdisjoint([path, Path(path).name, *_folders(path)])]
    if others:
        names = ", ".join(others)
        raise UserError(
            f"DVC ran other content than was queued, in {names}. Check the filters and hooks in `git config --list`."
        )


def _folders(path: str) -> list[str]:
    return [folder.as_posix() for folder in Path(path).parents]


def _outputs(experiment: Experiment, clone: Path) -> dict[str, str]:
    """The md5 of each output by its path."""
    recorded = stages(experiment.ref, clone).values()
    return {out["path"]: out["md5"] for stage in recorded for out in stage.get("outs", [])}


def _packed(clone: Path, experiment: Experiment, known: frozenset[str], outcome: Outcome) -> Outcome:
    git("bundle", "create", "--quiet", "result.bundle", experiment.ref, f"^{experiment.baseline}", folder=clone)
    pushed, words, environment, objects = False, "", clone / "environment.json", ()
    config = ConfigParser()  # git refuses the headings of DVC's sections
    config.read(clone / ".dvc/config", encoding="utf-8")
    if config.get("core", "remote", fallback=""):
        done = run_dvc(clone, "push", capture_output=True)  # not --quiet, which hides the reasons for a failure
        pushed, words = not done.returncode, " ".join(re.findall("^ERROR: (.*)", done.stderr, re.MULTILINE))
    if not pushed:
        cache = _folder() / "cache"
        outputs = with_files(_outputs(experiment, clone).values(), cache)
        paths = {md5: path_of(md5, cache) for md5 in outputs - known}
        # The driver checks whether one is missing.
        objects = tuple((md5, path.read_bytes()) for md5, path in paths.items() if path.exists())
    return outcome._replace(
        bundle=(clone / "result.bundle").read_bytes(),
        objects=objects,
        pushed=pushed,
        not_pushed="" if pushed else words,
        environment=environment.read_bytes() if environment.exists() else b"",
    )


def _dvc(clone: Path, command: list[str], shared: bool, gpu: bool, show: Callable[[str], Any]) -> str:
    """Run DVC, show its stage and the losses, and return its output."""
    environment = {key: value for key, value in environment_for_another_run().items() if key != "OMP_NUM_THREADS"}
    environment |= {"PIPELINE_SWEEP": "shared" if shared else "alone", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["PATH"] = f"{sys.prefix}/bin:{environment['PATH']}"
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray shows every GPU to a task that asked for none
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


def _folder() -> Path:
    """One cache for all experiments of a node, so that common results, such as the data, are computed once."""
    folder = Path(tempfile.gettempdir(), f"seven-ways-sweep-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def _clone(experiment: Experiment, commits: Commits) -> Iterator[Path]:
    """The experiment's working tree in a new folder. Folders whose process has ended are removed."""
    for folder in _folder().glob("run-*"):
        if not Path("/proc", folder.name.split("-")[1]).exists():
            shutil.rmtree(folder, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"run-{os.getpid()}-", dir=_folder()))
    try:
        (folder / "bundle").write_bytes(commits.bundle)
        root = folder / "clone"
        git("init", "--quiet", str(root))
        if commits.shallow:
            (root / ".git/shallow").write_text(commits.shallow, encoding="utf-8")
        git("fetch", "--quiet", "../bundle", f"{BUNDLED}/{experiment.revision}", folder=root)
        git("checkout", "--quiet", experiment.revision, folder=root)
        git("reset", "--quiet", "--soft", experiment.baseline, folder=root)  # new files stay in git's index
        clone, of_the_queue = root / commits.prefix, ".dvc/tmp/repro.dat"
        git("rm", "--quiet", "--force", "--ignore-unmatch", of_the_queue, folder=clone)
        for key, value in {"user.name": "sweep", "user.email": "sweep@localhost"}.items():
            git("config", key, value, folder=root)
        use_cache(clone, _folder() / "cache")
        yield clone
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _cpus(number: int, *, alone: bool, waits: Callable[[], Any]) -> Iterator[None]:
    """Use only `cpus` CPUs of this node that no other experiment uses; all CPUs of the machine if `cpus` is 0 and
    `alone`. `waits` is called before waiting for CPUs that an experiment of another sweep uses.
    """
    everything, cpus = os.sched_getaffinity(0), set()
    number = number or (len(everything) if alone else 0)
    with ExitStack() as held:
        if number:
            with ExitStack() as one_at_a_time:
                _lock(one_at_a_time, "cpus")
                for wait in (False, True):  # first the free ones, then wait for those of another sweep
                    if wait and len(cpus) < min(number, len(everything)):
                        waits()
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
