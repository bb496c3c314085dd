"""The candidates of a benchmark, by name. The text form, in tables and in arguments, is KIND/NAME+OPTION:

NAME                     an implementation, in its runtime's loop
matmul/FRAMEWORK         the matrix products of a step alone, with the framework's own library
launch_floor/NAME        on a GPU: as many empty kernels as the CUDA graph of the step has nodes
eager/NAME               the lines of an implementation whose steps are graphs, run as Python instead
cpu/NAME                 the implementation on the CPU of a machine with a GPU
padded/NAME              the implementation on batches whose examples are all as long as the longest one may be
tuned/NAME               hand-tuned for speed (pipeline/benchmark/tuned)
peers/NAME+OPTION        what a user might write instead (pipeline/benchmark/peers)
NAME+nondeterministic    the implementation with `deterministic: false`
NAME+tf32                the implementation, or the matrix products, with `precision: tf32`
NAME+no_xla              a static graph that XLA does not compile
self/NAME                the implementation once more, for an A/A test
slowed/NAME+N            the implementation with N % of its steps taken twice: a slowdown that is planted for a test
build/NAME               what the graph of an implementation costs before its second step: once in a process
capture/NAME             what capturing its CUDA graphs costs: once in a process

All but the last two, the baselines and padded/NAME take the same steps on the same batches.
"""

import os
import sys
from dataclasses import dataclass
from typing import Self

from pipeline.environment import framework_of

MATMUL, LAUNCH_FLOOR = "matmul", "launch_floor"
BASELINES = (MATMUL, LAUNCH_FLOOR)  # lower limits of a step's time, not steps of training
ONCE = ("build", "capture")


@dataclass(frozen=True)
class Candidate:
    """`kind` is empty for an implementation. The framework is the beginning of `name`."""

    name: str
    kind: str = ""
    option: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        kind, _, rest = text.rpartition("/")
        name, _, option = rest.partition("+")
        return cls(name, kind, option)

    def __str__(self) -> str:
        return f"{self.kind}/" * bool(self.kind) + self.name + f"+{self.option}" * bool(self.option)

    @property
    def framework(self) -> str:
        return framework_of(self.name)

    @property
    def is_implementation(self) -> bool:
        return self == Candidate(self.name)

    @property
    def is_step(self) -> bool:
        """Whether a step of it is a step of training."""
        return self.kind not in (*BASELINES, *ONCE)

    @property
    def python(self) -> str:
        """The interpreter that can run it. NumPy is installed in each interpreter."""
        framework = "torch" if self.framework == "numpy" else self.framework
        return os.environ.get(f"{framework}_PYTHON".upper(), sys.executable)
