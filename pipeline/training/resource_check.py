"""What an experiment takes in memory and on disk, judged before any of it is computed.

A lower estimate, of the float64 reference run and of the evaluation: what is refused could not run, what is let through
may still be too much.
"""

import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from pipeline.contract import Problem, load_problem
from pipeline.environment import available_memory
from pipeline.errors import UserError
from pipeline.params import PARAMS, Params

GIB = 2**30


class Demand(NamedTuple):
    what: str
    section: str  # of params.yaml, where the sizes are that may have to change
    keys: tuple[str, ...]
    sizes: dict[str, int]
    bytes_of: Callable[[Any], int]  # of the sizes


def check_memory(params: Params) -> None:
    """Raises UserError when the experiment takes more memory than there is."""
    free = available_memory()
    for demand in _memory(params):
        _check(demand, free, "memory")


def check_disk(params: Params, problem: str) -> None:
    """Raises UserError when the data of a problem take more disk than there is."""
    sizes, itemsize = getattr(params.data, problem).model_dump(), 8 if params.dtype == "float64" else 4
    demand = Demand(
        "the data, in the working tree and in DVC's cache,",
        f"data.{problem}",
        ("train_examples", "test_examples", "inputs", "outputs"),
        sizes,
        lambda at: 2 * itemsize * (at.train_examples + at.test_examples) * sum(_numbers(problem, at)),
    )
    _check(demand, shutil.disk_usage(Path()).free, "disk")


def _numbers(problem: str, at: Any) -> tuple[int, int]:
    """Of an example's input and target."""
    return load_problem(problem).example_numbers(at)[0], at.outputs


def _memory(params: Params) -> Iterator[Demand]:
    for problem in dict.fromkeys(params.implementations.values()):
        module, data = load_problem(problem), getattr(params.data, problem).model_dump()
        widths = ("inputs", "hidden", "outputs")
        layers = ("inputs", "hidden", "max_length") if "max_length" in data else ("inputs", "hidden")
        cases = [
            (f"benchmark.{problem}.{at}", case.model_dump()) for at, case in enumerate(params.benchmark.of(problem))
        ]
        training = data | {"batch_size": params.train.of(problem).batch_size}
        for section, sizes in [(f"data.{problem}", data), *cases]:
            rows, columns = max(module.weight_shapes(SimpleNamespace(**sizes)).values(), key=math.prod)
            what = f"weights of {rows:,} × {columns:,}, and others beside them, three times in float64"
            yield Demand(what, section, widths, sizes, partial(_weights, module))
        keys = ("test_examples", *layers)
        yield Demand("the test set in float64", f"data.{problem}", keys, data, partial(_test_set, module))
        yield Demand("a batch in float64", f"train.{problem}", ("batch_size",), training, partial(_batch, module))
        for section, sizes in cases:
            yield Demand("a batch in float64", section, ("batch_size", *layers), sizes, partial(_batch, module))


def _weights(problem: Problem, at: Any) -> int:
    """Weights, their gradients, and what comes of the two."""
    return 3 * 8 * sum(rows * columns for rows, columns in problem.weight_shapes(at).values())


def _batch(problem: Problem, at: Any) -> int:
    return 8 * at.batch_size * sum(problem.example_numbers(at))


def _test_set(problem: Problem, at: Any) -> int:
    """The inputs, and the last of the states."""
    return 8 * at.test_examples * (problem.example_numbers(at)[0] + at.hidden)


def _check(demand: Demand, free: int, of: str) -> None:
    def need(**changed: int) -> int:
        return demand.bytes_of(SimpleNamespace(**demand.sizes | changed))

    if need() <= free:
        return
    key = max(demand.keys, key=lambda each: demand.sizes[each])
    fits, too_many = 0, demand.sizes[key]
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if need(**{key: middle}) <= free else (fits, middle)
    at_most = f"Take at most about {_rounded(fits):,}." if fits else "Make other sizes of that section smaller, too."
    raise UserError(
        f"{PARAMS}: {demand.section}.{key} is {demand.sizes[key]:,}: {demand.what} take {_gib(need())}, and "
        f"{_gib(free)} of {of} are free. {at_most}"
    )


def _rounded(value: int) -> int:
    """Down, to two digits."""
    scale = 10 ** max(0, len(str(value)) - 2)
    return value // scale * scale


def _gib(size: int) -> str:
    return f"{size / GIB:,.3g} GiB" if size < 1000 * GIB else f"{size // GIB:,} GiB"
