"""Measure how long a step takes, and compare. The pipeline, `make bench` and `make bench-gpu` use this module. Each
network is measured in several processes, because the same program may be faster in one process than in the next. Where
each framework has its own interpreter, each interpreter has several processes. In a process all candidates are
interleaved (pipeline/benchmark/process.py). Networks with a headline are measured in as many processes as params.yaml
asks for, other networks in FEWEST. While time is left, the benchmark starts more processes: first for headlines until
each has LEAST_PROCESSES, then for other networks that lack processes, then for headlines whose interval is too wide. A
process that was disturbed does not count. Another process replaces it while time is left.
"""

import json
import os
import subprocess
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import inf, log
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, NamedTuple, Self

from pipeline.benchmark.candidates import Candidate
from pipeline.benchmark.plan import BenchmarkConfig, Size
from pipeline.benchmark.process import LEAST_ROUNDS, Pace, Paces, Task
from pipeline.benchmark.samples import Sample, cases_of, disturbance, format_size, network
from pipeline.clock import now
from pipeline.environment import Environment
from pipeline.errors import UserError
from pipeline.results import Conditions
from pipeline.running.machine import available_cpus

FEWEST = 2  # processes for a network without a headline, whatever time they need
LEAST_PROCESSES = 4  # for a headline: with fewer processes, the interval at which the benchmark stops covers too rarely
FEWER_ROUNDS = 0.25  # the share of the rounds for a network without a headline, where other networks have one
ENOUGH = 1e6  # the priority of a network that lacks processes, over headlines that are too wide
NARROW = "all ratios at the top of the report are precise enough"
TIME_UP = "its time limit was reached, and some ratios at the top of the report are less precise than intended"
NO_HEADLINES = "each size was measured in the number of processes that params.yaml asks for"


class Group(NamedTuple):
    """The sizes of a network, which are interleaved with each other, and the interpreter that measures them."""

    python: str
    sizes: list[Size]

    @property
    def headlined(self) -> list[Size]:
        """The sizes with headlines. Further processes measure only these."""
        return [size for size in self.sizes if size.pairs]


class Server:
    """An interpreter that has imported the frameworks. It measures each task in a fork."""

    def __init__(self, python: str, program: Sequence[str]) -> None:
        self.errors = TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (it is closed with the process)
        # A fork ends without removing the files that TensorFlow wrote for traced code.
        self.folder = TemporaryDirectory(prefix="benchmark-")
        self.process: Any = subprocess.Popen(
            [python, *program],
            env=os.environ | {"TMPDIR": self.folder.name},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            encoding="utf-8",
            errors="replace",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()
        self.folder.cleanup()

    def measure(self, task: Task) -> dict[str, Any]:
        """The answer of pipeline/benchmark/process.py to a task. Raises UserError when a candidate cannot run."""
        try:
            print(task.encode(), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:  # it has ended
            line = ""
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise UserError(f"The benchmark failed in its process {task.process + 1}:\n{self.errors.read().strip()}")
        return json.loads(line)


class Session:
    """A benchmark under way."""

    def __init__(
        self, plan: list[Size], config: BenchmarkConfig, dtype: str, environment: Environment, seed: int
    ) -> None:
        self.config, self.dtype, self.environment, self.seed = config, dtype, environment, seed
        self.groups = _groups(plan)
        self.headlined = [at for at, group in enumerate(self.groups) if group.headlined]
        self.samples: list[Sample] = []
        self.processes: list[Conditions] = []
        self.disturbed: dict[int, str] = {}
        self.paces: Paces = {}
        self.numbers: dict[int, list[int]] = defaultdict(list)  # the number of processes of each group
        self.seconds: dict[int, float] = {}  # of the last process of each group

    def task(self, at: int, *, further: bool) -> Task:
        group, config = self.groups[at], self.config
        sizes = group.headlined if further and at in self.headlined else group.sizes
        share = FEWER_ROUNDS if self.headlined and at not in self.headlined else 1.0
        number = len(self.processes)
        return Task(
            sizes,
            max(LEAST_ROUNDS, round(share * config.rounds)),
            config.turn_seconds,
            share * config.process_seconds,
            self.dtype,
            self.environment,
            [self.seed, number],
            number,
            self.paces,
        )

    def take(self, at: int, answer: dict[str, Any]) -> int:
        """Keep the answer of a group's process. Returns how many samples it has."""
        number = len(self.processes)
        conditions = Conditions(**answer["conditions"])
        self.samples += [Sample(*fields)._replace(candidate=Candidate.parse(fields[2])) for fields in answer["samples"]]
        self.processes.append(conditions)
        self.numbers[at].append(number)
        threads, cpus = self.environment.threads, available_cpus()
        if reason := disturbance(conditions, threads=threads, cpus=cpus):
            self.disturbed[number] = reason
        else:  # a candidate takes the same number of steps in all processes, so the cost of a call is spread alike
            self.paces |= {key: Pace(*pace) for key, pace in answer["paces"].items()}
        return len(answer["samples"])

    def missing(self, at: int) -> float:
        """The priority of a group for another process: over 1 where it needs one."""
        group, quiet = self.groups[at], [number for number in self.numbers[at] if number not in self.disturbed]
        pairs = [(size, pair) for size in group.sizes for pair in size.pairs]
        if len(quiet) < (max(LEAST_PROCESSES, self.config.processes) if pairs else self.config.processes):
            return inf if pairs else ENOUGH
        of_quiet = [sample for sample in self.samples if sample.process in quiet]
        cases = {
            (case.problem, format_size(case.sizes)): case
            for case in cases_of(of_quiet, {}, on_gpu=self.environment.device != "cpu")
        }
        widths = [0.0]
        for size, pair in pairs:
            estimate = cases[size.problem, format_size(size.sizes)].ratio(pair.above, pair.below)
            widths.append(estimate.half_width / log(1 + pair.within) if estimate else inf)
        return max(widths)

    def needed(self, number: int) -> list[int]:
        """The groups that have fewer than this number of processes and need one more, whatever time it takes."""
        return self.headlined if self.headlined and number >= FEWEST else [*range(len(self.groups))]

    def following(self, left: float) -> int | None:
        """The group with the highest priority for its cost whose next process would end within the seconds left."""
        wanting = [at for at in range(len(self.groups)) if self.missing(at) > 1]
        possible = [at for at in wanting if self.seconds[at] <= left]
        return max(possible, key=lambda at: (self.missing(at) / self.seconds[at], -len(self.numbers[at])), default=None)

    @property
    def stopped(self) -> str:
        """Why no further process was started."""
        if any(self.missing(at) > 1 for at in range(len(self.groups))):
            return TIME_UP
        return NARROW if self.headlined else NO_HEADLINES


def benchmark(
    plan: list[Size],
    *,
    config: BenchmarkConfig,
    dtype: str,
    environment: Environment,
    seed: int = 0,
    program: Sequence[str] = ("-m", "pipeline.benchmark.process"),
    on_process: Callable[[str], None] = lambda _: None,
) -> tuple[list[Sample], dict[str, Any]]:
    """All samples of a plan, and the fields of results.BenchmarkProvenance on how they were taken. Raises UserError
    when a candidate cannot run.
    """
    session, deadline = Session(plan, config, dtype, environment, seed), now() + config.seconds
    servers: dict[str, Server] = {}
    with ExitStack() as stack:

        def measure(at: int, *, further: bool) -> None:
            start, group = now(), session.groups[at]
            if group.python not in servers:
                servers[group.python] = stack.enter_context(Server(group.python, program))
            count = session.take(at, servers[group.python].measure(session.task(at, further=further)))
            session.seconds[at] = now() - start
            number, problem = len(session.processes), group.sizes[0].problem
            reason = session.disturbed.get(number - 1, "")
            on_process(f"process {number}, {problem}: {count} samples" + f"; disturbed: {reason}" * bool(reason))

        for number in range(config.processes):
            for at in session.needed(number):
                measure(at, further=False)
        while config.processes and (at := session.following(deadline - now())) is not None:
            measure(at, further=True)
    return session.samples, {
        "cpus": available_cpus(),
        "processes": session.processes,
        "stopped": session.stopped if config.processes else "benchmark.processes is 0 in params.yaml",
    }


def _groups(plan: list[Size]) -> list[Group]:
    """The sizes of each network, for each interpreter that its candidates need."""
    groups: dict[tuple[Any, ...], Group] = {}
    for size in plan:
        for python in dict.fromkeys(candidate.python for candidate in size.candidates):
            chosen = [candidate for candidate in size.candidates if candidate.python == python]
            pairs = [pair for pair in size.pairs if pair.above.python == python]
            key = (python, *network(size.problem, size.sizes))
            groups.setdefault(key, Group(python, [])).sizes.append(size._replace(candidates=chosen, pairs=pairs))
    return list(groups.values())
