"""The sweep: queued experiments, one Ray task each, on this machine or on the cluster that RAY_ADDRESS names."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.errors import UserError
from pipeline.sweeping import arrival, node, queue
from pipeline.sweeping.queue import Queued

LOGS = Path(".dvc/tmp/sweep")
UNDELIVERED = Path("mlruns/undelivered.json")  # experiments that MLflow does not show yet
WHOLE = "node"  # what a node offers once, and an experiment that times itself takes


def sweep(cpus: int) -> bool:
    """Run what is queued, `cpus` CPUs each or a node each where it is 0. Returns whether all succeeded."""
    experiments = queue.queued()
    for each in [each for each in experiments if queue.is_there(each)]:
        queue.remove(each)  # a sweep was killed in between
        experiments.remove(each)
    if not experiments:
        print("Nothing is queued. dvc exp run --queue -S train.learning_rate=0.1,0.2 queues two experiments.")
        return deliver()
    start, failed, done = datetime.now(), 0, 0
    with _cluster(cpus) as ray:
        board = _board(ray)
        pending = _submit(ray, experiments, cpus, board)
        try:
            for experiment, outcome in _outcomes(ray, pending, board):
                done += 1
                arrived = _take_in(experiment, outcome)
                failed += not arrived
                left = (datetime.now() - start).total_seconds() / done * (len(experiments) - done)
                print(f"{done} of {len(experiments)} done, about {left:.0f} s left", flush=True)
        except KeyboardInterrupt:
            print(f"Stopped: {done} of {len(experiments)} are done; `make sweep` goes on with the rest.", flush=True)
            raise
        finally:
            for task in pending:
                ray.cancel(task, force=True)
    return deliver() and not failed


def _take_in(experiment: Queued, outcome: node.Outcome | Exception) -> bool:
    """What a task came to: home, or a sentence. Either way it leaves the queue."""
    if isinstance(outcome, Exception):
        return _fail(experiment, f"its node was lost again and again ({type(outcome).__name__})", "")
    (LOGS / f"{experiment.name}.log").write_text(outcome.log)
    (LOGS / f"{experiment.name}.json").write_bytes(outcome.environment)
    if not outcome.succeeded:
        sentences = re.findall(r"^ERROR: (?!failed to reproduce)(.*)$", outcome.log, re.MULTILINE)
        return _fail(experiment, sentences[0] if sentences else "it failed", f" on {outcome.node}")
    try:
        arrival.take_in(experiment, outcome)
    except arrival.ArrivalError as error:
        return _fail(experiment, str(error), f" on {outcome.node}")
    _remember(experiment.name)
    queue.remove(experiment)
    print(f"{experiment.name}: done on {outcome.node} in {outcome.seconds:.0f} s", flush=True)
    return True


def _fail(experiment: Queued, sentence: str, where: str) -> bool:
    from pipeline.showing import mlflow_view

    queue.remove(experiment)
    print(f"{experiment.name}: FAILED{where}: {sentence} ({LOGS / experiment.name}.log)", flush=True)
    mlflow_view.record_failed_experiment(experiment.name, sentence)
    return False


def _submit(ray: Any, experiments: list[Queued], cpus: int, board: Any) -> dict[Any, Queued]:
    LOGS.mkdir(parents=True, exist_ok=True)
    gpu = ray.cluster_resources().get("GPU", 0) >= 1
    takes = {"num_cpus": cpus} if cpus else {"num_cpus": 0, "resources": {WHOLE: 1}}
    task = ray.remote(**takes, num_gpus=int(gpu), max_retries=3)(node.run)
    bundle, there = ray.put(queue.bundle(experiments)), arrival.objects_here()
    say = board.say.remote
    return {task.remote(node.Task(*each, there, cpus, gpu), bundle, say): each for each in experiments}


def _board(ray: Any) -> Any:
    """Where tasks say how far they are, until it is read here."""

    class Board:
        def __init__(self) -> None:
            self.lines: list[str] = []

        def say(self, line: str) -> None:
            self.lines.append(line)

        def take(self) -> list[str]:
            lines, self.lines = self.lines, []
            return lines

    # Here, where the sweep itself is, whatever becomes of other nodes.
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()


def _outcomes(ray: Any, pending: dict[Any, Queued], board: Any) -> Iterator[tuple[Queued, node.Outcome | Exception]]:
    """Each as it ends; one at a time is held here."""
    while pending:
        ended, _ = ray.wait(list(pending), num_returns=1, timeout=1)
        for line in ray.get(board.take.remote()):
            print(line, flush=True)
        if not ended:
            continue
        (ended,) = ended
        experiment = pending.pop(ended)
        try:
            yield experiment, node.Outcome(*ray.get(ended))
        except ray.exceptions.RayError as error:
            yield experiment, error


@contextmanager
def _cluster(cpus: int) -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.util.scheduling_strategies
    from ray import cloudpickle

    address = os.environ.get("RAY_ADDRESS")
    options = {} if address else {"num_cpus": len(os.sched_getaffinity(0)), "resources": {WHOLE: 1}}
    options |= {} if address else {"include_dashboard": False}
    joined = False
    try:
        try:
            ray.init(address or "local", configure_logging=False, **options)
        except (
            ConnectionError,
            RuntimeError,
        ):  # no node of the cluster is on this machine: it becomes one, which runs nothing
            joined = _join(address)
            ray.init(address, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"no Ray cluster answers at RAY_ADDRESS={address} ({error}).") from None
    try:
        cloudpickle.register_pickle_by_value(node)  # a node needs no checkout
        resources = ray.cluster_resources()
        if not cpus and not resources.get(WHOLE):
            raise UserError("No node of the cluster offers itself whole: ray start --resources '{\"node\": 1}'.")
        if cpus > resources.get("CPU", 0):
            raise UserError(f"SHARE={cpus} asks for more CPUs than the cluster has ({resources.get('CPU', 0):.0f}).")
        yield ray
    finally:
        ray.shutdown()
        if joined:
            subprocess.run([Path(sys.prefix, "bin/ray"), "stop"], check=False, capture_output=True)


def _join(address: str | None) -> bool:
    command = [Path(sys.prefix, "bin/ray"), "start", "--address", str(address), "--num-cpus", "0"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def deliver() -> bool:
    """Have MLflow show what came home, from here: one sender, and what cannot be sent now is sent by the next sweep."""
    for name in list(_undelivered()):
        with files.scratch(Path(".dvc/tmp/deliver", name)) as scratch:
            clone = scratch / "clone"
            queue.git("clone", "--quiet", "--shared", "--no-checkout", ".", str(clone))
            revision = queue.git("for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{name}").splitlines()
            if not revision:  # it was removed since
                _remember(name, delivered=True)
                continue
            queue.git("-C", str(clone), "fetch", "--quiet", str(Path.cwd()), revision[-1])
            queue.git("-C", str(clone), "checkout", "--quiet", revision[-1])
            cache, dvc = Path(".dvc/cache").resolve(), [sys.executable, "-P", "-m", "dvc"]
            subprocess.run([*dvc, "cache", "dir", "--local", str(cache)], cwd=clone, check=True, capture_output=True)
            subprocess.run([*dvc, "checkout", "--force", "--quiet"], cwd=clone, check=True, capture_output=True)
            shutil.copy(LOGS / f"{name}.json", clone / files.ENVIRONMENT)
            environment = os.environ | {"DVC_ROOT": str(Path.cwd()), "DVC_EXP_NAME": name}
            done = subprocess.run(
                [sys.executable, "-m", "stages.track"],
                cwd=clone,
                env=environment,
                check=False,
                capture_output=True,
                text=True,
            )
            sys.stderr.write(done.stderr)
            if done.returncode == 0 and "WARNING: MLflow" not in done.stderr:
                _remember(name, delivered=True)
    return True


def _undelivered() -> list[str]:
    return files.read_json(UNDELIVERED)["names"] if UNDELIVERED.exists() else []


def _remember(name: str, *, delivered: bool = False) -> None:
    names = [each for each in _undelivered() if each != name]
    files.write_json(UNDELIVERED, {"names": names if delivered else [*names, name]})
