"""Estimate the memory and the disk space of an experiment before anything is computed. It is a lower estimate, for the
float64 reference run and the evaluation: a refused experiment could not run, an accepted one may still need too much.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from pipeline.contract import load_problem
from pipeline.errors import UserError
from pipeline.params import PARAMS, Params
from pipeline.running.machine import available_memory

DRAW = 1024  # examples in one draw of `generate`; another number would give other data
GIB = 2**30
COUNTS = ("train_examples", "test_examples", "batch_size")


class Need(NamedTuple):
    """`bytes_of(sizes)` is the number of bytes of `what`. The sizes are in `section` of params.yaml; it depends on
    `keys`."""

    what: str
    section: str
    keys: tuple[str, ...]
    sizes: Mapping[str, int]
    bytes_of: Callable[[Any], int]


def check_memory(params: Params) -> None:
    """Raises UserError when the experiment takes more memory than is free."""
    free = available_memory()
    for need in _memory(params):
        _check(need, free, "memory")


def check_disk(params: Params, problem: str) -> None:
    """Raises UserError when the data of a problem take more disk than is free."""
    sizes, itemsize = params.problems[problem].data.model_dump(), 8 if params.dtype == "float64" else 4

    def data(at: Any) -> int:
        numbers = load_problem(problem).example_numbers(at)[0] + at.outputs
        return 2 * itemsize * (at.train_examples + at.test_examples) * numbers

    what = "the data, in the working tree and in DVC's cache,"
    _check(Need(what, f"problems.{problem}.data", tuple(sizes), sizes, data), shutil.disk_usage(Path()).free, "disk")


def _memory(params: Params) -> Iterator[Need]:
    for problem in params.used_problems:
        module, section = load_problem(problem), params.problems[problem]

        def weights(at: Any, module: Any = module) -> int:
            """Weights, their gradients, and the new weights."""
            return 3 * 8 * sum(rows * columns for rows, columns in module.weight_shapes(at).values())

        def batch(at: Any, module: Any = module) -> int:
            return 8 * at.batch_size * sum(module.example_numbers(at))

        def test_set(at: Any, module: Any = module) -> int:
            return 8 * at.test_examples * (module.example_numbers(at)[0] + at.outputs)

        def draw(at: Any, module: Any = module) -> int:
            return 4 * DRAW * module.example_numbers(at)[0]

        name, data = f"problems.{problem}", section.data.model_dump()
        cases = [(f"{name}.benchmark.{at}", case.model_dump()) for at, case in enumerate(section.benchmark)]
        cases *= params.benchmark.processes > 0
        for where, sizes in [(f"{name}.data", data), *cases]:
            keys = tuple(key for key in sizes if key not in COUNTS)
            yield Need("the weights, three times in float64,", where, keys, sizes, weights)
        keys = tuple(key for key in data if key != "train_examples")
        yield Need("the inputs of the test set in float64", f"{name}.data", keys, data, test_set)
        keys = tuple(key for key in data if key not in COUNTS)
        yield Need(f"the inputs of the {DRAW:,} examples that are drawn at a time", f"{name}.data", keys, data, draw)
        yield Need("a batch in float64", f"{name}.train", ("batch_size",), data | section.sizes, batch)
        for where, sizes in cases:
            yield Need("a batch in float64", where, tuple(sizes), sizes, batch)


def _check(need: Need, free: int, of: str) -> None:
    def taken(**changed: int) -> int:
        return need.bytes_of(SimpleNamespace(**{**need.sizes, **changed}))

    if taken() <= free:
        return
    # The largest size that the memory depends on. A size that changes nothing is left out.
    keys = [key for key in need.keys if taken(**{key: 1}) < taken()]
    key = max(keys, key=lambda key: need.sizes[key])
    fits, too_many = 0, need.sizes[key]
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if taken(**{key: middle}) <= free else (fits, middle)
    remedy = f"Take at most about {_rounded(fits):,}." if fits else "Make other sizes of that section smaller, too."
    raise UserError(
        f"{PARAMS}: {need.section}.{key} is {need.sizes[key]:,}: {need.what} take {_gib(taken())}, and "
        f"{_gib(free)} of {of} are free. {remedy}"
    )


def _rounded(value: int) -> int:
    """Down, to two digits."""
    scale = 10 ** max(0, len(str(value)) - 2)
    return value // scale * scale


def _gib(size: int) -> str:
    return f"{size / GIB:,.3g} GiB" if size < 1000 * GIB else f"{size // GIB:,} GiB"
