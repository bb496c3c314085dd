"""The file of a lesson to explain, by its name: an existing file, or a skeleton for a new lesson."""

import re
from pathlib import Path

from pipeline import files
from pipeline.contract import implementation_file
from pipeline.environment import framework_of
from pipeline.errors import UserError
from pipeline.problems import PROBLEMS
from pipeline.quantities.example import example_to_compare

SKELETON = '''"""TODO: what is computed, how this file does it, and what the framework's idea means."""

from pipeline.contract import Array, Batch, Weights


class Implementation:
    def __init__(self, weights: Weights, *, learning_rate: float, device: str) -> None:
        ...  # keep {kept} and self.learning_rate; the runtime reads the weights

    def place(self, batch: Batch):
        ...  # what `step` takes, on the device: {batch}

    def step(self, {arguments}):
        ...  # forward, backward, update; returns the loss before the update

    def predict(self, {inputs}) -> Array:
        ...  # the predictions of the forward pass, as a NumPy array
'''


def find_or_write(name: str, problem: str | None) -> str:
    """The problem of the lesson with this name. With `problem`, a missing file is written. Raises UserError when there
    is no such lesson or the name is not valid.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*_[a-z0-9_]+", name):
        raise UserError(f"NAME is {name}. A lesson is named <framework>_<mechanism>, such as numpy_mine.")
    runtime = Path("pipeline/runtimes", f"{framework_of(name)}.py")
    if not runtime.exists():
        frameworks = sorted(path.stem for path in runtime.parent.glob("[!_]*.py") if path.stem != "xla")
        raise UserError(f"NAME is {name}, but there is no {runtime}. A name begins with {', '.join(frameworks)}.")
    if problem is not None and problem not in PROBLEMS:
        raise UserError(f"PROBLEM is {problem}. The problems are {', '.join(PROBLEMS)}.")
    problems = sorted(path.parent.name for path in Path("pipeline/lessons").glob(f"*/{name}.py"))
    if problem is None and len(problems) == 1:
        return problems[0]
    if problem is None:
        more = f"in {' and '.join(problems)}: add PROBLEM=" if problems else "missing. To write a new one, add PROBLEM="
        raise UserError(f"The lesson {name} is {more} (one of {', '.join(PROBLEMS)}).")
    if problems and problem not in problems:
        raise UserError(
            f"The lesson {name} belongs to {' and '.join(problems)}. Leave PROBLEM out, or take another name."
        )
    file = implementation_file(problem, name)
    if not file.exists():
        files.write_bytes(file, _skeleton(problem).encode())
        print(f"{file} is new: replace each `...` with code, and run this again.\n", flush=True)
    return problem


def _skeleton(problem: str) -> str:
    weights, batch = example_to_compare(problem)
    *inputs, _ = batch
    return SKELETON.format(
        kept=", ".join(f"self.{key}" for key in weights),
        batch=", ".join(batch),
        arguments=", ".join(batch),
        inputs=", ".join(f"{key}: Array" for key in inputs),
    )
