"""The sweep: queued experiments, one Ray task each, on this machine or on the cluster that RAY_ADDRESS names."""

import re
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from pipeline.sweep import import_results, node, queue
from pipeline.sweep.cluster import WHOLE, check_head, cluster, elsewhere
from pipeline.sweep.display import Display
from pipeline.sweep.outbox import LOGS, deliver, remember
from pipeline.sweep.queue import Queued

RETRIES = 3  # of an experiment whose node was lost


def sweep(cpus: int = 0, targets: tuple[str, ...] = ()) -> bool:
    """Run what is queued, `cpus` CPUs each or a node each where it is 0. Returns whether all succeeded.

    `targets` are the stages to run; with none it is all of them, and MLflow is told.
    """
    home, experiments = queue.refs(), queue.queued()
    there = [each for each in experiments if each.ref in home]  # a sweep was killed before it took them out
    queue.remove(there)
    experiments = [each for each in experiments if each not in there]
    succeeded = True
    if experiments:
        LOGS.mkdir(parents=True, exist_ok=True)
        with cluster(cpus) as ray, Display(len(experiments)) as display, ThreadPoolExecutor(1) as sender:
            succeeded = _Sweep(ray, display, cpus, targets, sender).run(experiments)
    else:
        print("Nothing is queued. dvc exp run --queue -S train.learning_rate=0.1,0.2 queues two experiments.")
    deliver()
    return succeeded


class _Sweep:
    def __init__(self, ray: Any, display: Display, cpus: int, targets: tuple[str, ...], sender: Executor) -> None:
        self.ray, self.display, self.cpus, self.targets, self.sender = ray, display, cpus, targets, sender
        self.sending: Future[bool] | None = None
        self.has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
        self.there = ray.put(import_results.objects_here())
        self.board, self.task = _board(ray), ray.remote(node.run)
        self.say = ray.put(self.board.say.remote)
        self.pending: dict[Any, Queued] = {}
        self.full: dict[Queued, set[str]] = {}  # the nodes whose disk had no room for it
        self.home: list[Queued] = []
        self.interrupted = False

    def run(self, experiments: list[Queued]) -> bool:
        self.bundle = self.ray.put(queue.bundle(experiments))
        for each in experiments:
            self._submit(each)
        failed = 0
        try:
            with self._interruptible():
                for experiment, outcome in self._outcomes():
                    failed += not self._end(experiment, outcome)
        finally:
            queue.remove(self.home)
            for task in self.pending:
                self.ray.cancel(task, force=True)
            if self.interrupted:
                done = f"{len(self.home)} of {len(experiments)} are done"
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

    def _submit(self, experiment: Queued, strategy: Any = "DEFAULT") -> None:
        gpu = self.has_gpu and queue.params(experiment).get("device") != "cpu"
        takes = {"num_cpus": self.cpus} if self.cpus else {"num_cpus": 0, "resources": {WHOLE: 1}}
        task = self.task.options(**takes, num_gpus=int(gpu), max_retries=RETRIES, scheduling_strategy=strategy)
        what = node.Task(*experiment, self.cpus, gpu, self.targets)
        self.pending[task.remote(what, self.bundle, self.there, self.say)] = experiment

    def _outcomes(self) -> Iterator[tuple[Queued, node.Outcome | Exception]]:
        """Each as it ends; one at a time is held here."""
        while self.pending and not self.interrupted:
            ended, _ = self.ray.wait(list(self.pending), num_returns=1, timeout=1)
            check_head()
            for line in self.ray.get(self.board.take.remote()):
                self.display.say(*line)
            for task in () if self.interrupted else ended:
                experiment = self.pending.pop(task)
                try:
                    yield experiment, node.Outcome(*self.ray.get(task))
                except self.ray.exceptions.RayError as error:
                    yield experiment, error

    def _end(self, experiment: Queued, outcome: node.Outcome | Exception) -> bool:
        """What a task came to: home, again, or a sentence. Returns whether it has not failed."""
        if isinstance(outcome, self.ray.exceptions.RayTaskError):
            return self._fail(experiment, f"it could not be run ({getattr(outcome, 'cause', outcome)!r})", "")
        if isinstance(outcome, Exception):
            return self._fail(experiment, f"its node was lost {RETRIES + 1} times ({type(outcome).__name__})", "")
        (LOGS / f"{experiment.name}.log").write_text(outcome.log)
        (LOGS / f"{experiment.name}.json").write_bytes(outcome.environment)
        if outcome.full:
            return self._move(experiment, outcome)
        if not outcome.succeeded:
            sentences = re.findall(r"^ERROR: (?!failed to reproduce)(.*)$", outcome.log, re.MULTILINE)
            return self._fail(experiment, sentences[0] if sentences else "it failed", f" on {outcome.node}")
        try:
            import_results.take_in(experiment, outcome, whole=not self.targets)
        except import_results.ArrivalError as error:
            return self._fail(experiment, str(error), f" on {outcome.node}")
        if not self.targets:
            remember(experiment.ref)
            self._send()
        self.home.append(experiment)
        self.display.end(experiment.name, f"done on {outcome.node} in {outcome.seconds:.1f} s")
        return True

    def _send(self) -> None:
        """Tell MLflow already while others run, unless they time themselves, or it could not be told before."""
        if self.cpus and (self.sending is None or (self.sending.done() and _went_well(self.sending))):
            self.sending = self.sender.submit(deliver)

    def _move(self, experiment: Queued, outcome: node.Outcome) -> bool:
        nodes = self.full.setdefault(experiment, set())
        nodes.add(outcome.node_id)
        strategy = elsewhere(self.ray, nodes, "CPU" if self.cpus else WHOLE)
        if strategy is None:
            return self._fail(experiment, "no node has room for it on its disk", f" on {outcome.node}")
        self.display.again(experiment.name, f"the disk of {outcome.node} is full; it goes to another node")
        self._submit(experiment, strategy)
        return True

    def _fail(self, experiment: Queued, sentence: str, where: str) -> bool:
        remember(experiment.ref, sentence)
        queue.remove([experiment])
        self.display.end(experiment.name, f"FAILED{where}: {sentence} ({LOGS / experiment.name}.log)")
        return False


def _board(ray: Any) -> Any:
    """Where tasks say how far they are, until it is read here."""

    class Board:
        def __init__(self) -> None:
            self.lines: list[tuple[str, str, str]] = []

        def say(self, name: str, node: str, stage: str) -> None:
            self.lines.append((name, node, stage))

        def take(self) -> list[tuple[str, str, str]]:
            lines, self.lines = self.lines, []
            return lines

    # Here, where the sweep itself is, whatever becomes of other nodes.
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()


def _went_well(sending: Future[bool]) -> bool:
    """Whatever it raised is raised again by the last delivery, after the sweep."""
    return sending.exception() is None and sending.result()
