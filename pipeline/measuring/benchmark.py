"""How long a step takes, compared: the one way in which it is done, for the pipeline and every benchmark beside it.

A plan names sizes, and for each the candidates. It is carried out in several fresh processes, since the same program
may be faster in one process than in the next; where each framework has an interpreter of its own, in several for each.
In a process all candidates of a size are interleaved: in every round each takes a turn, in a random order, so that a
slow minute of the machine, or a neighbour that leaves its threads awake, is there for all alike. Before the timed part
of a turn the candidate runs untimed, so that caches hold its data; not where a single step takes a whole turn.

Where a candidate's arrays lie in memory makes it up to 5 % faster or slower, and would be the same in every process:
the second of two instances of one program was measured to take 1.05 times as long as the first, always. So each process
makes the candidates in an order of its own, with gaps of random size between them. What luck is left differs from
process to process, and the interval covers it.

Every sample is kept. What may be said of them is intervals.py's.
"""

import json
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from pipeline.contract import load_implementation
from pipeline.environment import Environment
from pipeline.errors import UserError
from pipeline.measuring.candidates import Candidate, draw, python_of
from pipeline.measuring.clock import other_processes, timed
from pipeline.measuring.samples import SIZES, Sample, parts_of
from pipeline.processes import end_with_parent
from pipeline.runtimes import load_runtime

GUESSES = 3
LARGEST_GAP = 2**18  # bytes


class Size(NamedTuple):
    """A problem at given sizes (batch_size and the problem's own), and the names of its candidates.

    Each static graph among them brings its lines run eagerly, eager/NAME, and what it costs to build, build/NAME.
    """

    problem: str
    sizes: dict[str, int]
    candidates: list[str]


class Effort(NamedTuple):
    processes: int
    rounds: int
    turn_seconds: float  # the timed part of a turn, or one step where that takes longer


def benchmark(
    plan: list[Size],
    *,
    effort: Effort,
    dtype: str,
    environment: Environment,
    seed: int = 0,
    program: Sequence[str] = ("-m", "pipeline.measuring.benchmark"),
    on_process: Callable[[str], None] = lambda _: None,
) -> tuple[list[Sample], float]:
    """All samples of a plan, and how many CPUs other processes kept busy meanwhile: in the process where it was most.

    Raises UserError when a candidate cannot run.
    """
    samples: list[Sample] = []
    busiest = 0.0
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
        samples += [Sample(*fields) for fields in answer["samples"]]
        busiest = max(busiest, answer["other_cpus"])
        on_process(f"process {number + 1} of {effort.processes * len(pythons)}: {len(answer['samples'])} samples")
    return samples, busiest


def measure(task: Mapping[str, Any]) -> Iterator[Sample]:
    """The samples of one process."""
    environment, effort = Environment(**task["environment"]), Effort(*task["effort"])
    generator = np.random.default_rng(task["seed"])
    sizes = [Size(*each) for each in task["plan"]]
    gaps: list[Any] = []
    groups: dict[tuple, list[Size]] = defaultdict(list)
    for size in sizes:
        groups[_interleaved_with(size)].append(size)
    for group in groups.values():
        turns = []
        for size in group:
            weights, chunk = draw(size.problem, SimpleNamespace(**size.sizes), task["dtype"])
            total_length = float(chunk["lengths"].sum(1).mean() if "lengths" in chunk else size.sizes["batch_size"])
            sizes_of = {key: size.sizes.get(key, 0) for key in SIZES}
            head = {"problem": size.problem, **sizes_of, "total_length": total_length, "process": task["process"]}
            graphs = [name for name in size.candidates if "/" not in name and load_runtime(name).eagerly]
            names = [*size.candidates, *(f"eager/{name}" for name in graphs)]
            for name in generator.permutation(names).tolist():
                gaps.append(np.empty(generator.integers(LARGEST_GAP), np.uint8))
                candidate, seconds = _ready(name, size.problem, environment, weights, chunk)
                turns.append((head, name, candidate))
                if name in graphs:
                    yield Sample(
                        **head, candidate=f"build/{name}", round=0, position=0, steps=1, seconds=seconds, replays=0
                    )
        yield from _interleaved(turns, effort, generator)


def _interleaved_with(size: Size) -> tuple:
    """Sizes that differ in the lengths alone are interleaved with each other, to be compared."""
    return size.problem, *(size.sizes[key] for key in SIZES[:4])


def _ready(name: str, problem: str, environment: Environment, weights: Any, chunk: Any) -> tuple[Candidate, float]:
    """A candidate, and the seconds that it took until its second step, beside imports and placing the batches."""
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
    return candidate, constructing[0] + starting[0]


def _interleaved(
    turns: list[tuple[dict[str, Any], str, Candidate]], effort: Effort, generator: np.random.Generator
) -> Iterator[Sample]:
    runtimes = {id(candidate.runtime): candidate.runtime for _, _, candidate in turns}

    def synchronize() -> None:
        for runtime in runtimes.values():
            runtime.synchronize()

    steps = [_steps_in(effort.turn_seconds, candidate, synchronize) for _, _, candidate in turns]
    for number in range(effort.rounds):
        for position, index in enumerate(generator.permutation(len(turns)).tolist()):
            (head, name, candidate), count = turns[index], steps[index]
            before = candidate.replays
            with candidate.settings():
                if count > candidate.least_steps:  # else a step takes a whole turn, and needs no warming up
                    candidate.run(count)
                    before = candidate.replays
                with timed(synchronize) as taken:
                    candidate.run(count)
            yield Sample(
                **head,
                candidate=name,
                round=number,
                position=position,
                steps=count,
                seconds=taken[0],
                replays=candidate.replays - before,
            )


def _steps_in(seconds: float, candidate: Candidate, synchronize: Callable[[], None]) -> int:
    """How many steps take about so long. A call of few takes longer for each, so the first guesses are too low."""
    steps = least = candidate.least_steps
    for _ in range(GUESSES):
        with candidate.settings(), timed(synchronize) as trial:
            candidate.run(steps)
        guess = least * max(1, round(steps * seconds / trial[0] / least))
        if guess == steps:
            break
        steps = guess
    return steps


def main() -> None:
    end_with_parent(signal.SIGKILL)
    task = json.load(sys.stdin)
    with other_processes() as others:
        samples = list(measure(task))
    print(json.dumps({"samples": samples, "other_cpus": others[0]}))


if __name__ == "__main__":
    main()
