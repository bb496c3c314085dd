"""How long a step takes, compared: the one way in which it is done, for the pipeline and every benchmark beside it.

A plan is carried out in several fresh processes, since the same program may be faster in one process than in the next;
where each framework has an interpreter of its own, in several for each. In a process all candidates of a size are
interleaved: in every round each takes a turn, in a random order, so that a slow minute of the machine, or a neighbour
that leaves its threads awake, is there for all alike. Before the timed part of a turn the candidate runs untimed, so
that caches hold its data and a GPU has left its idle clock; not where a step takes over a second.

Where a candidate's arrays lie in memory makes it up to 5 % faster or slower, and would be the same in every process. So
each process makes the candidates in an order of its own, with gaps of random size between them. What luck is left
differs from process to process, and the interval covers it. Every sample is kept.
"""

import gc
import json
import math
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import numpy as np

from pipeline.benchmark.candidates import Candidate
from pipeline.benchmark.monitor import Monitor, merged
from pipeline.benchmark.plan import BenchmarkConfig, Size
from pipeline.benchmark.runner import Runner, draw
from pipeline.benchmark.samples import Sample, format_size, network
from pipeline.clock import other_processes, timed
from pipeline.contract import Chunk, Weights, load_implementation
from pipeline.environment import Environment
from pipeline.errors import UserError, out_of_memory
from pipeline.provenance import beside
from pipeline.running.processes import end_with_parent
from pipeline.runtimes import load_runtime

TRIALS = 3  # of which the fastest counts
GROWTH = 16  # times as many steps in the next trial, at most
LONG_SECONDS = 1.0  # of a trial that is long and not disturbed, and of a step that warms itself up
GPU_WARM_SECONDS = 0.05  # before a turn on a GPU, whose clock falls while it idles
LARGEST_GAP = 2**18  # bytes


class Task(NamedTuple):
    """What one process measures, of which `encode` and `decode` make text."""

    plan: list[Size]
    config: BenchmarkConfig
    dtype: str
    environment: Environment
    seed: Any
    process: int

    def encode(self) -> str:
        return json.dumps(self._replace(config=asdict(self.config), environment=asdict(self.environment)), default=str)

    @classmethod
    def decode(cls, text: str) -> Self:
        plan, config, dtype, environment, seed, process = json.loads(text)
        sizes = [Size(problem, sizes, [*map(Candidate.parse, names)]) for problem, sizes, names in plan]
        return cls(sizes, BenchmarkConfig(**config), dtype, Environment(**environment), seed, process)


class Turn(NamedTuple):
    """A candidate's turn: `head` is what its samples have in common, `warm_up` are its untimed steps."""

    head: Sample
    runner: Runner
    warm_up: int
    steps: int


def benchmark(
    plan: list[Size],
    *,
    config: BenchmarkConfig,
    dtype: str,
    environment: Environment,
    seed: int = 0,
    program: Sequence[str] = ("-m", "pipeline.benchmark.benchmark"),
    on_process: Callable[[str], None] = lambda _: None,
) -> tuple[list[Sample], dict[str, Any]]:
    """All samples of a plan, and what else the machine did meanwhile (provenance.beside): in the worst process.

    Raises UserError when a candidate cannot run.
    """
    samples: list[Sample] = []
    answers: list[dict[str, Any]] = []
    pythons = list(dict.fromkeys(candidate.python for size in plan for candidate in size.candidates))
    for number in range(config.processes * len(pythons)):
        python = pythons[number % len(pythons)]
        sizes = [
            size._replace(candidates=[candidate for candidate in size.candidates if candidate.python == python])
            for size in plan
        ]
        own = [size for size in sizes if size.candidates]
        task = Task(own, config, dtype, environment, [seed, number], number)
        done = subprocess.run([python, *program], input=task.encode(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"The benchmark failed in its process {number + 1}:\n{done.stderr.strip()}")
        answer = json.loads(done.stdout.splitlines()[-1])
        answers.append(answer)
        samples += [Sample(*fields)._replace(candidate=Candidate.parse(fields[2])) for fields in answer["samples"]]
        on_process(f"process {number + 1} of {config.processes * len(pythons)}: {len(answer['samples'])} samples")
    cpus = [max((answer["cpus"][at] for answer in answers), default=0.0) for at in (0, 1)]
    return samples, beside(cpus, merged([answer["gpu"] for answer in answers]))


def measure(task: Task, monitor: Monitor) -> Iterator[Sample]:
    """The samples of one process."""
    generator = np.random.default_rng(task.seed)
    groups: dict[tuple[Any, ...], list[Size]] = defaultdict(list)
    for size in task.plan:
        groups[network(size.problem, size.sizes)].append(size)
    for group in groups.values():
        yield from _measure_group(group, task, generator, monitor)
        gc.collect()  # no CUDA graph, and nothing that one uses, stays for the next group


def _measure_group(group: list[Size], task: Task, generator: np.random.Generator, monitor: Monitor) -> Iterator[Sample]:
    """The samples of sizes that are interleaved with each other."""
    environment, config = task.environment, task.config
    gaps: list[Any] = []
    made: list[tuple[Sample, Runner]] = []
    device = environment.device.partition(":")[0]
    for problem, sizes, candidates in group:
        weights, chunk = draw(problem, SimpleNamespace(**sizes), task.dtype)
        lessons = [candidate for candidate in candidates if candidate.is_implementation]
        graphs = [candidate for candidate in lessons if device in load_runtime(candidate.name).graphs]
        everything = [*candidates, *(Candidate(graph.name, "eager") for graph in graphs)]
        for index in generator.permutation(len(everything)).tolist():
            candidate = everything[index]
            gaps.append(np.empty(generator.integers(LARGEST_GAP), np.uint8))
            runner, build_seconds, capture_seconds = _ready(candidate, problem, environment, weights, chunk)
            head = Sample(problem, format_size(sizes), candidate, task.process, 0, 0, 1, build_seconds, 0)
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

    turns = [Turn(head, runner, *_calibrated(runner, config.turn_seconds, synchronize)) for head, runner in made]
    for number in range(config.rounds):
        for position, index in enumerate(generator.permutation(len(turns)).tolist()):
            yield _take(turns[index], number, position, synchronize)
            if turns[index].runner.on_gpu:
                monitor.read()


def _ready(
    candidate: Candidate, problem: str, environment: Environment, weights: Weights, chunk: Chunk
) -> tuple[Runner, float, float]:
    """What runs a candidate, the seconds that it took until its second step, without imports and without placing the
    batches, and those that it took to capture its steps afterwards."""
    load_runtime(candidate.name)(environment)
    if candidate.is_implementation:
        load_implementation(problem, candidate.name)
    with timed(lambda: None) as constructing:
        runner = Runner(candidate, problem, environment, weights)
    runner.place(chunk)
    with timed(runner.runtime.synchronize) as starting:
        runner.compile()
        runner.run_alone(runner.least_steps)
    runner.run_alone(runner.least_steps)  # after the second step CUDA graphs can be captured
    with timed(runner.runtime.synchronize) as capturing:
        runner.compile()
    return runner, constructing[0] + starting[0], capturing[0]


def _take(turn: Turn, number: int, position: int, synchronize: Callable[[], None]) -> Sample:
    runner = turn.runner
    with runner.settings():
        runner.run(turn.warm_up)
        before = runner.replays
        with timed(synchronize) as seconds:
            runner.run(turn.steps)
    replays = runner.replays - before
    return turn.head._replace(round=number, position=position, steps=turn.steps, seconds=seconds[0], replays=replays)


def _calibrated(runner: Runner, seconds: float, synchronize: Callable[[], None]) -> tuple[int, int]:
    """How many steps warm a candidate up, and how many take about `seconds`.

    The steps grow until the fastest of several trials takes half as long as it should. A call has a cost of its own,
    which would decide if there were few.
    """
    steps = least = runner.least_steps
    while True:
        fastest = _fastest(runner, steps, synchronize)
        if fastest >= seconds / 2:
            break
        steps *= min(GROWTH, 2 ** math.ceil(math.log2(seconds / fastest)))
    pace = fastest / steps

    def filling(wanted: float) -> int:
        return least * max(1, round(wanted / pace / least))

    if least * pace > LONG_SECONDS:
        return 0, least
    return filling(max(seconds, GPU_WARM_SECONDS if runner.on_gpu else 0.0)), filling(seconds)


def _fastest(runner: Runner, steps: int, synchronize: Callable[[], None]) -> float:
    """The seconds of the fastest of several calls."""
    fastest = math.inf
    for _ in range(TRIALS):
        with runner.settings(), timed(synchronize) as trial:
            runner.run(steps)
        fastest = min(fastest, trial[0])
        if fastest > LONG_SECONDS:
            break
    return fastest


def main() -> None:
    end_with_parent(signal.SIGKILL)
    task = Task.decode(sys.stdin.read())
    monitor = Monitor(task.environment.device)
    try:
        with other_processes() as others:
            samples = list(measure(task, monitor))
    except Exception as error:
        if sentence := out_of_memory(error):
            sys.exit(sentence)
        raise
    print(json.dumps({"samples": samples, "cpus": others, "gpu": monitor.summary()}, default=str))


if __name__ == "__main__":
    main()
