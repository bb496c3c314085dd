"""How long a step takes, compared: the one way in which it is done, for the pipeline and every benchmark beside it.

A plan names sizes, and for each the candidates. It is carried out in several fresh processes, since the same program
may be faster in one process than in the next; where each framework has an interpreter of its own, in several for each.
In a process all candidates of a size are interleaved: in every round each takes a turn, in a random order, so that a
slow minute of the machine, or a neighbour that leaves its threads awake, is there for all alike. Before the timed part
of a turn the candidate runs untimed, so that caches hold its data and a GPU has left its idle clock; not where a step
takes over a second.

How many steps fill a turn is decided by the fastest of several trials: noise makes a trial longer, never shorter. One
disturbed call used to leave a candidate with one cold step a turn for the whole process.

Where a candidate's arrays lie in memory makes it up to 5 % faster or slower, and would be the same in every process:
the second of two instances of one program was measured to take 1.05 times as long as the first, always. So each process
makes the candidates in an order of its own, with gaps of random size between them. What luck is left differs from
process to process, and the interval covers it.

Every sample is kept. What may be said of them is intervals.py's.
"""

import gc
import json
import math
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from pipeline.benchmark.candidates import Candidate, draw, python_of
from pipeline.benchmark.monitor import Monitor, merged
from pipeline.benchmark.samples import SIZES, Sample, parts_of
from pipeline.clock import other_processes, timed
from pipeline.contract import load_implementation
from pipeline.environment import Environment
from pipeline.errors import UserError, out_of_memory
from pipeline.processes import end_with_parent
from pipeline.provenance import beside
from pipeline.runtimes import load_runtime

TRIALS = 3  # of which the fastest counts
GROWTH = 16  # times as many steps in the next trial, at most
LONG_SECONDS = 1.0  # of a trial that is long and not disturbed, and of a step that warms itself up
GPU_WARM_SECONDS = 0.05  # before a turn on a GPU, whose clock falls while it idles
LARGEST_GAP = 2**18  # bytes


class Size(NamedTuple):
    """A problem at given sizes (batch_size and the problem's own), and the names of its candidates.

    Each implementation whose steps are graphs brings its lines run eagerly, eager/NAME, and what the graph costs:
    build/NAME, or of CUDA graphs capture/NAME.
    """

    problem: str
    sizes: dict[str, int]
    candidates: list[str]


class Effort(NamedTuple):
    processes: int
    rounds: int
    turn_seconds: float  # the timed part of a turn, or one step where that takes longer


class Turn(NamedTuple):
    """A candidate at a size: `head` is what its samples have in common, `warm_up` the untimed steps of a turn."""

    head: dict[str, Any]
    name: str
    candidate: Candidate
    warm_up: int
    steps: int


def benchmark(
    plan: list[Size],
    *,
    effort: Effort,
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
    pythons = list(dict.fromkeys(python_of(name) for size in plan for name in size.candidates))
    for number in range(effort.processes * len(pythons)):
        python = pythons[number % len(pythons)]
        own = [
            size._replace(candidates=[each for each in size.candidates if python_of(each) == python]) for size in plan
        ]
        task = {
            "plan": [size for size in own if size.candidates],
            "effort": effort,
            "dtype": dtype,
            "environment": asdict(environment),
            "seed": [seed, number],
            "process": number,
        }
        done = subprocess.run(
            [python, *program],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise UserError(f"The benchmark failed in its process {number + 1}:\n{done.stderr.strip()}")
        answer = json.loads(done.stdout.splitlines()[-1])
        answers.append(answer)
        samples += [Sample(*fields) for fields in answer["samples"]]
        on_process(f"process {number + 1} of {effort.processes * len(pythons)}: {len(answer['samples'])} samples")
    cpus = [max((answer["cpus"][at] for answer in answers), default=0.0) for at in (0, 1)]
    return samples, beside(cpus, merged([answer["gpu"] for answer in answers]))


def measure(task: Mapping[str, Any], monitor: Monitor) -> Iterator[Sample]:
    """The samples of one process."""
    generator = np.random.default_rng(task["seed"])
    groups: dict[tuple, list[Size]] = defaultdict(list)
    for size in (Size(*each) for each in task["plan"]):
        groups[_interleaved_with(size)].append(size)
    for group in groups.values():
        yield from _measure_group(group, task, generator, monitor)
        gc.collect()  # no CUDA graph, and nothing that one uses, stays for the next group


def _measure_group(
    group: list[Size], task: Mapping[str, Any], generator: np.random.Generator, monitor: Monitor
) -> Iterator[Sample]:
    """The samples of sizes that are interleaved with each other."""
    environment, effort = Environment(**task["environment"]), Effort(*task["effort"])
    gaps: list[Any] = []
    made: list[tuple[dict[str, Any], str, Candidate]] = []
    for size in group:
        weights, chunk = draw(size.problem, SimpleNamespace(**size.sizes), task["dtype"])
        total_length = float(chunk["lengths"].sum(1).mean() if "lengths" in chunk else size.sizes["batch_size"])
        sizes_of = {key: size.sizes.get(key, 0) for key in SIZES}
        head = {"problem": size.problem, **sizes_of, "total_length": total_length, "process": task["process"]}
        kind = environment.device.partition(":")[0]
        implementations = [name for name in size.candidates if parts_of(name) == ("", name, "")]
        graphs = [name for name in implementations if kind in load_runtime(name).GRAPHS]
        names = [*size.candidates, *(f"eager/{name}" for name in graphs)]
        for name in generator.permutation(names).tolist():
            gaps.append(np.empty(generator.integers(LARGEST_GAP), np.uint8))
            candidate, building, capturing = _ready(name, size.problem, environment, weights, chunk)
            made.append((head, name, candidate))
            if name in graphs:
                what, seconds, steps = "build", building, 1
                if candidate.captures:
                    what, seconds, steps = "capture", capturing, candidate.captures
                once = {"candidate": f"{what}/{name}", "round": 0, "position": 0, "replays": 0}
                yield Sample(**head, **once, steps=steps, seconds=seconds)
    runtimes = {id(candidate.runtime): candidate.runtime for _, _, candidate in made}

    def synchronize() -> None:
        for runtime in runtimes.values():
            runtime.synchronize()

    turns = [Turn(*each, *_calibrated(each[2], effort.turn_seconds, synchronize)) for each in made]
    for number in range(effort.rounds):
        for position, index in enumerate(generator.permutation(len(turns)).tolist()):
            yield _take(turns[index], number, position, synchronize)
            if turns[index].candidate.on_gpu:
                monitor.read()


def _interleaved_with(size: Size) -> tuple:
    """Sizes that differ in the lengths alone are interleaved with each other, to be compared."""
    return size.problem, *(size.sizes[key] for key in SIZES[:4])


def _ready(
    name: str, problem: str, environment: Environment, weights: Any, chunk: Any
) -> tuple[Candidate, float, float]:
    """A candidate, the seconds that it took until its second step, beside imports and placing the batches, and those
    that it took to capture its steps afterwards."""
    kind, implementation, _ = parts_of(name)
    load_runtime(implementation).start(environment)
    if not kind:
        load_implementation(problem, implementation)
    with timed(lambda: None) as constructing:
        candidate = Candidate(name, problem, environment, weights)
    candidate.place(chunk)
    with timed(candidate.runtime.synchronize) as starting:
        candidate.start()
    candidate.warm_up()
    with timed(candidate.runtime.synchronize) as capturing:
        candidate.compile()
    return candidate, constructing[0] + starting[0], capturing[0]


def _take(turn: Turn, number: int, position: int, synchronize: Callable[[], None]) -> Sample:
    candidate = turn.candidate
    with candidate.settings():
        candidate.run(turn.warm_up)
        before = candidate.replays
        with timed(synchronize) as taken:
            candidate.run(turn.steps)
    return Sample(
        **turn.head,
        candidate=turn.name,
        round=number,
        position=position,
        steps=turn.steps,
        seconds=taken[0],
        replays=candidate.replays - before,
    )


def _calibrated(candidate: Candidate, seconds: float, synchronize: Callable[[], None]) -> tuple[int, int]:
    """How many steps warm a candidate up, and how many take about `seconds`.

    The steps grow until the fastest of several trials takes half as long as it should. A call has a cost of its own,
    which would decide if there were few.
    """
    steps = least = candidate.least_steps
    while True:
        fastest = _fastest(candidate, steps, synchronize)
        if fastest >= seconds / 2:
            break
        steps *= min(GROWTH, 2 ** math.ceil(math.log2(seconds / fastest)))
    pace = fastest / steps

    def filling(wanted: float) -> int:
        return least * max(1, round(wanted / pace / least))

    if least * pace > LONG_SECONDS:
        return 0, least
    return filling(max(seconds, GPU_WARM_SECONDS if candidate.on_gpu else 0.0)), filling(seconds)


def _fastest(candidate: Candidate, steps: int, synchronize: Callable[[], None]) -> float:
    """The seconds of the fastest of several calls."""
    fastest = math.inf
    for _ in range(TRIALS):
        with candidate.settings(), timed(synchronize) as trial:
            candidate.run(steps)
        fastest = min(fastest, trial[0])
        if fastest > LONG_SECONDS:
            break
    return fastest


def main() -> None:
    end_with_parent(signal.SIGKILL)
    task = json.load(sys.stdin)
    monitor = Monitor(task["environment"]["device"])
    try:
        with other_processes() as others:
            samples = list(measure(task, monitor))
    except Exception as error:
        if sentence := out_of_memory(error):
            sys.exit(sentence)
        raise
    print(json.dumps({"samples": samples, "cpus": others, "gpu": monitor.summary()}))


if __name__ == "__main__":
    main()
