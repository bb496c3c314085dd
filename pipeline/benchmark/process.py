"""One process of a benchmark. It interleaves all candidates of a network and answers with their samples. `main` is a
server. It imports the frameworks once, and for each task on its standard input it forks a process that measures and
prints an answer. An import takes seconds, a fork milliseconds. Ten newly started processes gave the same ratios with
the same spread as thirty forked ones (docs/reference/performance.md). In every round each candidate takes a turn, in a
random order. So a slow minute of the machine, or the waking threads of the candidate before, affects all candidates
alike. Before the timed part of a turn the candidate runs untimed, so that caches hold its data and a GPU has left its
idle clock. Candidates whose step takes over a second skip this. A turn in which the machine took a CPU away is
repeated. The addresses of a candidate's arrays make it up to 5 % faster or slower, and would be the same in every
process. So each process constructs the candidates in a random order, with gaps of random size in memory. The addresses
then differ from process to process, and the interval covers their effect. Every sample is kept.
"""

import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import numpy as np

from pipeline.benchmark.candidates import Candidate
from pipeline.benchmark.monitor import Monitor
from pipeline.benchmark.plan import Size
from pipeline.benchmark.runner import Runner, draw
from pipeline.benchmark.samples import Sample, format_size
from pipeline.clock import disturbances, other_processes, timed
from pipeline.contract import Chunk, Weights, load_implementation
from pipeline.environment import Environment, check_imported
from pipeline.errors import UserError, out_of_memory
from pipeline.running.machine import available_cpus
from pipeline.running.processes import end_with_parent
from pipeline.runtimes import load_runtime

TRIALS = 3  # of which the fastest counts
GROWTH = 16  # the most by which the number of steps grows from trial to trial
LONG_SECONDS = 1.0  # of a trial that is long enough without repetition, and of a step that needs no warm-up
GPU_WARM_SECONDS = 0.05  # before a turn on a GPU, whose clock falls while it idles
LARGEST_GAP = 2**18  # bytes
RETAKES = 2  # of a disturbed turn, at most
LEAST_ROUNDS = 2
WARM_SHARE = 0.5  # untimed steps before a turn, as a multiple of its steps


class Pace(NamedTuple):
    """How a candidate takes its turns: `warm_up` untimed steps, then `steps` timed ones. A turn takes about `seconds`
    in total, and has `switches` involuntary context switches if nothing disturbs it."""

    warm_up: int
    steps: int
    seconds: float
    switches: int

    def of(self, lesson: Self) -> Self:
        """The same pace with the number of steps of the lesson, so that the cost of a call is spread over as many
        steps."""
        share = (lesson.warm_up + lesson.steps) / (self.warm_up + self.steps)
        switches = round(self.switches * lesson.steps / self.steps)
        return self._replace(
            warm_up=lesson.warm_up, steps=lesson.steps, seconds=self.seconds * share, switches=switches
        )


Paces = dict[str, Pace]  # by problem, size and candidate, as pace_key has it


class Task(NamedTuple):
    """The task of one process. `encode` and `decode` convert it to and from text. Candidates without a pace are
    calibrated."""

    sizes: list[Size]
    rounds: int
    turn_seconds: float
    process_seconds: float
    dtype: str
    environment: Environment
    seed: Any
    process: int
    paces: Paces

    def encode(self) -> str:
        sizes = [size._replace(pairs=[]) for size in self.sizes]
        return json.dumps(self._asdict() | {"sizes": sizes, "environment": asdict(self.environment)}, default=str)

    @classmethod
    def decode(cls, text: str) -> Self:
        fields = json.loads(text)
        fields["sizes"] = [
            Size(problem, sizes, [*map(Candidate.parse, names)]) for problem, sizes, names, _ in fields["sizes"]
        ]
        fields["environment"] = Environment(**fields["environment"])
        fields["paces"] = {key: Pace(*pace) for key, pace in fields["paces"].items()}
        return cls(**fields)


class Turn(NamedTuple):
    """The turns of a candidate. `head` has the fields that its samples share."""

    head: Sample
    runner: Runner
    pace: Pace


def measure(task: Task, monitor: Monitor) -> Iterator[Sample]:
    """The samples of one process. Paces that it calibrates are added to those of the task."""
    generator = np.random.default_rng(task.seed)
    gaps: list[Any] = []
    made: list[tuple[Sample, Runner]] = []
    for problem, sizes, candidates, _ in task.sizes:
        weights, chunk = draw(problem, SimpleNamespace(**sizes), task.dtype)
        graphs = [candidate for candidate in candidates if _is_graph(candidate, task.environment)]
        everything = [*candidates, *(Candidate(graph.name, "eager") for graph in graphs)]
        for index in generator.permutation(len(everything)).tolist():
            candidate = everything[index]
            gaps.append(np.empty(generator.integers(LARGEST_GAP), np.uint8))
            runner, build_seconds, capture_seconds = _ready(candidate, problem, task.environment, weights, chunk)
            head = Sample(problem, format_size(sizes), candidate, task.process, 0, 0, 1, build_seconds, 0, 0, 0.0)
            made.append((head, runner))
            if candidate in graphs and runner.captures:
                capture = Candidate(candidate.name, "capture")
                yield head._replace(candidate=capture, steps=runner.captures, seconds=capture_seconds)
            elif candidate in graphs:
                yield head._replace(candidate=Candidate(candidate.name, "build"))
    runtimes = {(type(runner.runtime), runner.runtime.device): runner.runtime for _, runner in made}

    def synchronize() -> None:
        for runtime in runtimes.values():
            runtime.synchronize()

    made.sort(key=lambda pair: not pair[0].candidate.is_implementation)
    turns = []
    for head, runner in made:
        key, lesson = pace_key(head), pace_key(head._replace(candidate=Candidate(head.candidate.name)))
        if key not in task.paces:
            task.paces[key] = calibrated(runner, task.turn_seconds, synchronize)
            if head.candidate.kind != "eager" and lesson in task.paces:
                task.paces[key] = task.paces[key].of(task.paces[lesson])
        turns.append(Turn(head, runner, task.paces[key]))
    round_seconds = sum(turn.pace.seconds for turn in turns)
    for number in range(min(task.rounds, max(LEAST_ROUNDS, round(task.process_seconds / round_seconds)))):
        for position, index in enumerate(_order([turn.head.candidate for turn in turns], generator)):
            yield from _take(turns[index], number, position, synchronize)
            if turns[index].runner.on_gpu:
                monitor.read()


def _order(candidates: list[Candidate], generator: np.random.Generator) -> list[int]:
    """A random order of the frameworks, and within each framework of its candidates. Candidates that a headline
    compares are close to each other, so that the machine has the same speed for both."""
    frameworks = sorted({candidate.framework for candidate in candidates})
    ranks = dict(zip(frameworks, generator.permutation(len(frameworks)).tolist(), strict=True))
    order = generator.permutation(len(candidates)).tolist()
    return sorted(order, key=lambda index: ranks[candidates[index].framework])


def pace_key(sample: Sample) -> str:
    return f"{sample.problem} {sample.size} {sample.candidate}"


def _is_graph(candidate: Candidate, environment: Environment) -> bool:
    """Whether the candidate is an implementation whose steps are executed from graphs."""
    device = environment.device.partition(":")[0]
    return candidate.is_implementation and device in load_runtime(candidate.name).graphs


def _ready(
    candidate: Candidate, problem: str, environment: Environment, weights: Weights, chunk: Chunk
) -> tuple[Runner, float, float]:
    """The runner of a candidate, the seconds until its second step (without imports and without placing the batches),
    and the seconds of capturing its steps afterwards."""
    load_runtime(candidate.name)(environment)
    if candidate.is_implementation:
        load_implementation(problem, candidate.name)
    with timed(lambda: None) as constructing:
        runner = Runner(candidate, problem, environment, weights)
    runner.place(chunk)
    with timed(runner.runtime.synchronize) as starting:
        runner.compile()
        runner.run_alone(runner.least_steps)
    if runner.on_gpu:  # after the second step CUDA graphs can be captured
        runner.run_alone(runner.least_steps)
    with timed(runner.runtime.synchronize) as capturing:
        runner.compile()
    return runner, constructing[0] + starting[0], capturing[0]


def _take(turn: Turn, number: int, position: int, synchronize: Callable[[], None]) -> Iterator[Sample]:
    """A turn, and if it is disturbed, up to RETAKES turns that repeat it."""
    runner, pace = turn.runner, turn.pace
    for _ in range(1 + RETAKES):
        with runner.settings():
            runner.run(pace.warm_up)
            replays, before = runner.replays, disturbances()
            with timed(synchronize) as seconds:
                runner.run(pace.steps)
        switches, stolen = (after - start for after, start in zip(disturbances(), before, strict=True))
        yield turn.head._replace(
            round=number,
            position=position,
            steps=pace.steps,
            seconds=seconds[0],
            replays=runner.replays - replays,
            switches=int(switches),
            stolen=round(stolen, 2),
        )
        if not stolen and switches <= 2 * pace.switches + 2:
            break


def calibrated(runner: Runner, seconds: float, synchronize: Callable[[], None]) -> Pace:
    """How many steps warm a candidate up, and how many take about `seconds`. The number of steps grows until the
    fastest of several trials takes half of `seconds`, so that one disturbed trial does not decide. With few steps, the
    cost of a call would dominate.
    """
    steps = least = runner.least_steps
    while True:
        fastest, switches = _trials(runner, steps, synchronize)
        if fastest >= seconds / 2:
            break
        steps *= min(GROWTH, 2 ** math.ceil(math.log2(seconds / fastest)))
    pace = fastest / steps

    def filling(wanted: float) -> int:
        return least * max(1, round(wanted / pace / least))

    timed_steps, warm_seconds = filling(seconds), max(WARM_SHARE * seconds, GPU_WARM_SECONDS if runner.on_gpu else 0.0)
    warm_up = filling(warm_seconds) if least * pace <= LONG_SECONDS else 0
    return Pace(warm_up, timed_steps, pace * (warm_up + timed_steps), round(switches * timed_steps / steps))


def _trials(runner: Runner, steps: int, synchronize: Callable[[], None]) -> tuple[float, int]:
    """The seconds of the fastest of several calls, and the largest number of involuntary context switches in one of
    them."""
    fastest, most = math.inf, 0
    for _ in range(TRIALS):
        before, _ = disturbances()
        with runner.settings(), timed(synchronize) as seconds:
            runner.run(steps)
        fastest, most = min(fastest, seconds[0]), max(most, disturbances()[0] - before)
        if seconds[0] > LONG_SECONDS:
            break
    return fastest, most


def answer(task: Task) -> dict[str, Any]:
    """The samples of a task, the paces, and what else the machine did meanwhile, in the form of results.Conditions."""
    check_imported(task.environment)
    monitor = Monitor(task.environment.device)
    with other_processes() as cpus:
        samples = list(measure(task, monitor))
    # A container's quota may be smaller than the number of CPUs that it runs on: others may use the rest.
    others = max(0.0, cpus[0] - (len(os.sched_getaffinity(0)) - available_cpus()))
    conditions = {"cpus_of_other_processes": others, "stolen_cpus": cpus[1], "gpu": monitor.summary()}
    return {"samples": samples, "paces": task.paces, "conditions": conditions}


def _import(sizes: Iterable[Size]) -> None:
    """Import what the candidates need, and do nothing else: only one thread survives a fork."""
    for size in sizes:
        for candidate in size.candidates:
            load_runtime(candidate.name)
            if candidate.is_implementation:
                load_implementation(size.problem, candidate.name)
            elif candidate.kind in ("tuned", "peers"):
                import_module(f"pipeline.benchmark.{candidate.kind}.{candidate.name}")


def _fork(task: Task) -> tuple[int, str]:
    """Measure in a fork of this process. Returns its exit status and its answer once it has ended. The next process of
    the benchmark, perhaps in the other interpreter, then finds a GPU that nobody uses."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as answers:
            text = answers.read()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text
    status = 1
    try:
        end_with_parent(signal.SIGKILL)
        with os.fdopen(writing, "w", encoding="utf-8") as answers:
            print(json.dumps(answer(task), default=str), file=answers)
        status = 0
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
    except Exception as error:
        print(out_of_memory(error) or traceback.format_exc(), file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def main() -> None:
    """Print an answer, a line of JSON, for each task on standard input. Ends with the first task that fails."""
    end_with_parent(signal.SIGKILL)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the output of a library must not mix with the answers
    for line in sys.stdin:
        task = Task.decode(line)
        try:
            _import(task.sizes)
        except Exception as error:
            sys.exit(out_of_memory(error) or traceback.format_exc())
        status, text = _fork(task)
        if status:
            sys.exit(status if status > 0 else f"It was ended by signal {-status} ({signal.Signals(-status).name}).")
        print(text, end="", file=answers, flush=True)


if __name__ == "__main__":
    main()
