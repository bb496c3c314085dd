"""The sweep: queued experiments, one Ray task each, on this machine or on the cluster that RAY_ADDRESS names."""

import re
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from pipeline.sweep import node, outbox, queue
from pipeline.sweep.cluster import WHOLE, check_head, cluster, elsewhere, progress_queue
from pipeline.sweep.display import Display
from pipeline.sweep.import_results import DamagedError, import_results
from pipeline.sweep.objects import in_cache
from pipeline.sweep.outbox import LOGS
from pipeline.sweep.queue import Experiment

RETRIES = 3  # of an experiment whose node was lost


def sweep(cpus: int = 0, targets: tuple[str, ...] = ()) -> bool:
    """Run the queued experiments, `cpus` CPUs each or a node each where it is 0. Returns whether all succeeded.

    `targets` are the stages to run. With none all stages run, and the results are logged in MLflow.
    """
    done, queued = queue.refs(), queue.queued()
    queue.remove(experiment for experiment in queued if experiment.ref in done)  # left by a sweep that was killed
    experiments = [experiment for experiment in queued if experiment.ref not in done]
    succeeded = True
    if experiments:
        LOGS.mkdir(parents=True, exist_ok=True)
        with cluster(cpus) as ray, Display(len(experiments)) as display, ThreadPoolExecutor(1) as logger:
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
        self.known, self.task, self.progress = ray.put(in_cache()), ray.remote(node.run), progress_queue(ray)
        self.pending: dict[Any, Experiment] = {}
        self.full: dict[Experiment, set[str]] = {}  # the nodes whose disk had no room for it
        self.done: list[Experiment] = []
        self.interrupted = False

    def run(self, experiments: list[Experiment]) -> bool:
        self.bundle = self.ray.put(queue.bundle(experiments))
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
            if self.interrupted:
                done = f"{len(self.done)} of {len(experiments)} are done"
                self.display.console.print(f"Stopped: {done}; `make sweep` goes on with the rest.")
        return not failed

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Make Ctrl-C set `interrupted`, which the loop reads at least once a second, and raise KeyboardInterrupt after
        the loop. A second Ctrl-C raises it at once.

        Python's own handler is not enough: a KeyboardInterrupt that it raises in a destructor or a callback is lost.
        """

        def interrupt(*_: Any) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, before)

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        except Exception:
            if not self.interrupted:  # a terminal sends Ctrl-C to git as well, which then fails
                raise
        finally:
            signal.signal(signal.SIGINT, before)
        if self.interrupted:
            raise KeyboardInterrupt

    def _submit(self, experiment: Experiment, strategy: Any = "DEFAULT") -> None:
        gpu = self.has_gpu and queue.params(experiment.revision).get("device") != "cpu"
        takes = {"num_cpus": self.cpus} if self.cpus else {"num_cpus": 0, "resources": {WHOLE: 1}}
        task = self.task.options(**takes, num_gpus=int(gpu), max_retries=RETRIES, scheduling_strategy=strategy)
        options = {"cpus": self.cpus, "gpu": gpu, "targets": self.targets}
        self.pending[task.remote(experiment, self.bundle, self.known, self.progress, **options)] = experiment

    def _outcomes(self) -> Iterator[tuple[Experiment, node.Outcome | Exception]]:
        """What each task returned or raised, as it ends. Only one at a time is in memory."""
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
        if isinstance(outcome, Exception):
            lost = f"its node was lost {RETRIES + 1} times ({type(outcome).__name__})"
            raised = isinstance(outcome, self.ray.exceptions.RayTaskError)
            cause = getattr(outcome, "cause", outcome)
            return self._fail(experiment, f"it could not be run ({cause!r})" if raised else lost)
        (LOGS / f"{experiment.name}.log").write_text(outcome.log, encoding="utf-8")
        (LOGS / f"{experiment.name}.json").write_bytes(outcome.environment)
        where = f" on {outcome.node}"
        if outcome.full:
            nodes = self.full.setdefault(experiment, set())
            nodes.add(outcome.node_id)
            strategy = elsewhere(self.ray, nodes, "CPU" if self.cpus else WHOLE)
            if strategy is None:
                return self._fail(experiment, "no node has room for it on its disk", where)
            self.display.requeue(experiment.name, f"the disk of {outcome.node} is full; it goes to another node")
            self._submit(experiment, strategy)
            return True
        if not outcome.succeeded:
            sentences = re.findall(r"^ERROR: (?!failed to reproduce)(.*)$", outcome.log, re.MULTILINE)
            return self._fail(experiment, sentences[0] if sentences else "it failed", where)
        try:
            import_results(experiment, outcome, whole=not self.targets)
        except DamagedError as error:
            return self._fail(experiment, str(error), where)
        if not self.targets:
            outbox.add(experiment.ref)
            # Log while others run, unless they time themselves, or the last attempt failed.
            if self.cpus and (self.logging is None or (self.logging.done() and self.logging.result())):
                self.logging = self.logger.submit(outbox.log_all)
        self.done.append(experiment)
        self.display.end(experiment.name, f"done{where} in {outcome.seconds:.1f} s")
        return True

    def _fail(self, experiment: Experiment, sentence: str, where: str = "") -> bool:
        outbox.add(experiment.ref, sentence)
        queue.remove([experiment])
        self.display.end(experiment.name, f"FAILED{where}: {sentence} ({LOGS / experiment.name}.log)")
        return False
