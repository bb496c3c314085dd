"""The sweep: queued experiments, one Ray task each, on this machine or on the cluster that RAY_ADDRESS names."""

import signal
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.git import cache_folder, git
from pipeline.running.locks import acquire, open_lock, write_holder
from pipeline.sweep import node, outbox, queue
from pipeline.sweep.cluster import WHOLE, check_head, cluster, elsewhere, neighbours, place, progress_queue
from pipeline.sweep.display import Display
from pipeline.sweep.import_results import import_results
from pipeline.sweep.objects import in_cache
from pipeline.sweep.outbox import LOGS
from pipeline.sweep.queue import Experiment

SWEEP_LOCK = Path(".dvc/tmp/sweep.lock")
RETRIES = 3  # of an experiment whose node was lost


def sweep(cpus: int = 0, targets: tuple[str, ...] = ()) -> bool:
    """Run the queued experiments, with `cpus` CPUs each, or a node each if `cpus` is 0. Returns whether all succeeded.

    `targets` are the stages to run. With none all stages run, and the results are logged in MLflow. A second sweep of
    this checkout waits until the first has ended.
    """
    with open_lock(SWEEP_LOCK) as lock:
        acquire(lock)
        write_holder(lock, "make sweep")
        return _sweep(cpus, targets)


def _sweep(cpus: int, targets: tuple[str, ...]) -> bool:
    done, queued = queue.refs(), queue.queued()
    queue.remove(experiment for experiment in queued if experiment.ref in done)  # left by a sweep that was killed
    experiments = [experiment for experiment in queued if experiment.ref not in done]
    succeeded = True
    if experiments:
        queue.check_lessons(experiments)
        LOGS.mkdir(parents=True, exist_ok=True)
        with cluster(cpus) as ray, Display(len(experiments)) as display, ThreadPoolExecutor(1) as logger:
            display.console.print(place(ray, cpus, len(experiments)))
            succeeded = _Sweep(ray, display, cpus, targets, logger).run(experiments)
    else:
        print("Nothing is queued. dvc exp run --queue -S train.learning_rate=0.1,0.2 queues two experiments.")
    outbox.log_all()
    return succeeded


class _Sweep:
    def __init__(self, ray: Any, display: Display, cpus: int, targets: tuple[str, ...], logger: Executor) -> None:
        self.ray, self.display, self.cpus, self.targets, self.logger = ray, display, cpus, targets, logger
        self.logging: Future[bool] | None = None
        self.has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
        known = in_cache(cache_folder())
        self.known, self.task, self.progress = ray.put(known), ray.remote(node.run), progress_queue(ray)
        self.neighbours = frozenset() if cpus else neighbours(ray, ray.remote(node.machine))
        if self.neighbours:
            display.console.print(f"{len(self.neighbours)} nodes are on one machine: timings are marked as shared")
        self.pending: dict[Any, Experiment] = {}
        self.full: dict[Experiment, set[str]] = {}  # the nodes whose disk was full
        self.done: list[Experiment] = []
        self.failed: list[Experiment] = []  # because one of their stages failed
        self.interrupted = False

    def run(self, experiments: list[Experiment]) -> bool:
        prefix = git("rev-parse", "--show-prefix")
        self.commits = self.ray.put(node.Commits(queue.bundle(experiments), queue.ends_of_history(), prefix))
        for experiment in experiments:
            self._submit(experiment)
        failed = 0
        try:
            with self._interruptible():
                for experiment, outcome in self._outcomes():
                    failed += not self._end(experiment, outcome)
        finally:
            queue.remove(self.done)
            for task in self.pending:
                self.ray.cancel(task, force=True)
            if self.failed:
                self.display.console.print("These experiments failed and left the queue. To queue them again:")
            for experiment in self.failed:
                self.display.console.print(f"  {queue.command(experiment)}")
            if self.interrupted:
                done = f"{len(self.done)} of {len(experiments)} are done"
                self.display.console.print(f"Stopped: {done}. `make sweep` runs the others.")
        return not failed

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Make Ctrl-C set `interrupted`, which the loop reads at least once a second, and raise KeyboardInterrupt after
        the loop. A second Ctrl-C raises it at once.

        Python's default handler is not enough: a KeyboardInterrupt in a destructor or a callback is lost.
        """

        def interrupt(*_: Any) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, before)

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        except Exception:
            if not self.interrupted:  # a terminal also sends Ctrl-C to git, which then fails
                raise
        finally:
            signal.signal(signal.SIGINT, before)
        if self.interrupted:
            raise KeyboardInterrupt

    def _submit(self, experiment: Experiment, strategy: Any = "DEFAULT") -> None:
        gpu = self.has_gpu and queue.params(experiment.revision).get("device") != "cpu"
        takes = {"num_cpus": self.cpus} if self.cpus else {"num_cpus": 0, "resources": {WHOLE: 1}}
        task = self.task.options(**takes, num_gpus=int(gpu), max_retries=RETRIES, scheduling_strategy=strategy)
        options = {"cpus": self.cpus, "gpu": gpu, "targets": self.targets, "neighbours": self.neighbours}
        self.pending[task.remote(experiment, self.commits, self.known, self.progress, **options)] = experiment

    def _outcomes(self) -> Iterator[tuple[Experiment, node.Outcome | Exception]]:
        """The result or the exception of each task, when it ends. Only one at a time is in memory."""
        while self.pending and not self.interrupted:
            ended, _ = self.ray.wait(list(self.pending), num_returns=1, timeout=1)
            check_head()
            for line in self.progress.get_nowait_batch(self.progress.qsize()):
                self.display.show(*line)
            for task in () if self.interrupted else ended:
                experiment = self.pending.pop(task)
                try:
                    yield experiment, node.Outcome(*self.ray.get(task))
                except self.ray.exceptions.RayError as error:
                    yield experiment, error

    def _end(self, experiment: Experiment, outcome: node.Outcome | Exception) -> bool:
        """Import the results of a task, submit it again, or report why it failed. Returns whether it has not failed."""
        log = LOGS / f"{experiment.name}.log"
        if isinstance(outcome, Exception):
            cause = getattr(outcome, "cause", outcome)
            log.write_text(f"{outcome}\n", encoding="utf-8")
            raised = isinstance(outcome, self.ray.exceptions.RayTaskError)
            lost = f"its node was lost {RETRIES + 1} times ({type(outcome).__name__})"
            return self._keep(experiment, f"it could not be run ({cause!r})" if raised else lost)
        log.write_text(outcome.log, encoding="utf-8")
        (LOGS / f"{experiment.name}.json").write_bytes(outcome.environment)
        where = f" on {outcome.node}"
        if outcome.full:
            nodes = self.full.setdefault(experiment, set())
            nodes.add(outcome.node_id)
            strategy = elsewhere(self.ray, nodes, "CPU" if self.cpus else WHOLE)
            if strategy is None:
                return self._keep(experiment, "no node has room for it on its disk", where)
            self.display.requeue(experiment.name, f"the disk of {outcome.node} is full; it goes to another node")
            self._submit(experiment, strategy)
            return True
        if not outcome.succeeded:
            end = self._keep if outcome.error else self._fail
            return end(experiment, outcome.error or _reason(outcome.log), where)
        if outcome.not_pushed:
            words = f"dvc push failed ({outcome.not_pushed}). The results came through Ray instead."
            self.display.console.print(f"WARNING: {experiment.name}: {words}")
        try:
            import_results(experiment, outcome, whole=not self.targets)
        except UserError as error:
            return self._keep(experiment, str(error), where)
        if not self.targets:
            outbox.add(experiment.ref)
            # Log while others run, unless those have a benchmark or the last attempt failed.
            if self.cpus and (self.logging is None or (self.logging.done() and self.logging.result())):
                self.logging = self.logger.submit(outbox.log_all)
        self.done.append(experiment)
        self.display.end(experiment.name, f"done{where} in {outcome.seconds:.1f} s")
        return True

    def _fail(self, experiment: Experiment, sentence: str, where: str = "") -> bool:
        """Remove an experiment from the queue that would fail again."""
        outbox.add(experiment.ref, sentence)
        queue.remove([experiment])
        self.failed.append(experiment)
        self.display.end(experiment.name, f"FAILED{where}: {sentence} ({LOGS / experiment.name}.log)")
        return False

    def _keep(self, experiment: Experiment, sentence: str, where: str = "") -> bool:
        """Leave an experiment in the queue whose stages did not fail."""
        outbox.add(experiment.ref, sentence)
        log = LOGS / f"{experiment.name}.log"
        self.display.end(experiment.name, f"FAILED{where}: {sentence.removesuffix('.')}. It stays queued. ({log})")
        return False


def _reason(log: str) -> str:
    """The message of the stage, or of DVC if the stage has none."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    sentences = [line for line in errors if not line.startswith("failed to reproduce")]
    return (sentences or errors or [" ".join(lines[-3:]) or "it ended without a message"])[0]
