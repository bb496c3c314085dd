"""Run a lesson's step on small batches: read the graph that its framework recorded, and count the graphs it defines.

The batch and the weights are made here, so the graph does not depend on the experiment's data and the cost does not
depend on its sizes. Each size is a prime number of its own, so a size in a shape identifies its name.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import combinations
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np

from pipeline.contract import Array, Batch, Implementation, Weights, load_problem
from pipeline.environment import framework_of
from pipeline.graphs.graph import Example, Graph, Structure
from pipeline.graphs.on_paper import graph_of_equations
from pipeline.graphs.values import record_example
from pipeline.quantities.example import size_names
from pipeline.quantities.paper import Paper
from pipeline.runtimes import Loop, Opened

N, PRIMES = 7, (23, 19, 17, 13, 11, 29, 31)
LONGEST = (2, 4)  # time steps of the longest example in a first and a second batch
LENGTHS = (2, 3, 4, 5, 6)  # the same, where graphs are counted: one step on each
EXAMPLES = 64  # of a batch there: with 32 and fewer XLA needs fewer instructions for the loss than in a real training
LEARNING_RATE = 0.40625  # exact in every dtype, and no other number in a step is likely to have this value
AUTOGRAPH = "__autograph_generated_file"  # the code that AutoGraph makes of a lesson's functions before they run


def record_lesson(name: str, problem: str, opened: Opened) -> tuple[list[Graph], Structure, Example]:
    """The content of graphs/NAME.json."""
    small = (name, problem, opened.create, "float32")
    return record_graphs(*small), record_structure(*small), record_example(name, problem, opened.runtime)


def record_graphs(name: str, problem: str, create: Callable[[Weights, float], Loop], dtype: str) -> list[Graph]:
    """The graphs of an implementation's step.

    A problem whose examples differ in length is recorded on two batches, a short and a long one: two graphs, or one
    where both are the same. Without a recorded graph there is one, that of the equations. That is also so where the
    step fails here: a picture is no reason to stop the pipeline, so the title says what went wrong.
    """
    module = f"{__package__}.{framework_of(name)}"
    reason = "nothing is recorded"
    try:
        graphs = _recorded(module, problem, create, dtype) if find_spec(module) else []
    except Exception as error:  # the frameworks' and the lesson's exceptions may be of any class
        graphs, reason = [], f"the step could not be recorded ({type(error).__name__}: {error})"
    return graphs or [graph_of_equations(load_problem(problem).__doc__ or "", f"On paper: {reason}")]


def _recorded(module: str, problem: str, create: Callable[[Weights, float], Loop], dtype: str) -> list[Graph]:
    record = import_module(module).record
    loop, batches = _small(problem, create, dtype, LONGEST, N)
    graphs: list[Graph] = []
    for longest, batch, placed in batches:
        lengths = {"T": longest} if longest else {}
        graph = record(loop.implementation, placed, Names(problem, batch, loop.names, _sizes(problem) | lengths))
        if graph is None:
            return []
        graphs.append(graph)
        if not lengths:
            return graphs
    short, long = graphs
    if _without_shapes(short) == _without_shapes(long):
        long.title += f", the same for batches of up to {LONGEST[0]} and of up to {LONGEST[1]} time steps"
        return [long]
    for graph, (longest, batch, _) in zip(graphs, batches, strict=True):
        total = int(batch["lengths"].sum())
        graph.title += f" on a batch of {N} examples of up to {longest} time steps, {total} in all"
    return graphs


def record_structure(name: str, problem: str, create: Callable[[Weights, float], Loop], dtype: str) -> Structure:
    """Count what the framework defines to take a step on each of several batches, with a new implementation.

    Nothing is counted where no module here knows the framework, or where the step fails.
    """
    module = f"{__package__}.{framework_of(name)}"
    nothing = Structure(steps=0, lengths=0, graphs=None)
    try:
        return _counted(module, problem, create, dtype) if find_spec(module) else nothing
    except Exception:  # as in record_graphs, where the title says what went wrong
        return nothing


def _counted(module: str, problem: str, create: Callable[[Weights, float], Loop], dtype: str) -> Structure:
    loop, batches = _small(problem, create, dtype, LENGTHS, EXAMPLES)
    lengths = {longest for longest, *_ in batches} - {0}
    return import_module(module).count(loop.implementation, [placed for *_, placed in batches], len(lengths))


def _small(
    problem: str, create: Callable[[Weights, float], Loop], dtype: str, longest: Sequence[int], examples: int
) -> tuple[Loop, list[tuple[int, Batch, tuple[Any, ...]]]]:
    """A loop on small weights, and batches as they are and placed, each after the length of its longest example, which
    is 0 without lengths."""
    generator, sizes = np.random.default_rng(0), _sizes(problem)
    weights = load_problem(problem).draw_weights(SimpleNamespace(**sizes), generator)
    loop = create({key: array.astype(dtype) for key, array in weights.items()}, LEARNING_RATE)
    batches = []
    for length in longest:
        batch = _batch(problem, sizes, dtype, length, generator, examples=examples)
        loop.place({key: array[None] for key, array in batch.items()})
        batches.append((int(batch["lengths"].max()) if "lengths" in batch else 0, batch, loop.placed[0]))
    return loop, batches


def _without_shapes(graph: Graph) -> list[Any]:
    return [graph.nodes, [(edge.source, edge.target, edge.again) for edge in graph.edges]]


def _sizes(problem: str) -> dict[str, int]:
    lengths = {"min_length": max(LONGEST), "max_length": max(LONGEST)}
    return dict(zip(size_names(problem), PRIMES, strict=False)) | lengths


def _batch(
    problem: str, sizes: Mapping[str, int], dtype: str, longest: int, generator: np.random.Generator, *, examples: int
) -> dict[str, Array]:
    """A batch with this number of examples. Two examples have each length from the longest down to 1; the others have
    1."""
    lengths = {"min_length": longest, "max_length": longest}
    batch = load_problem(problem).draw_inputs(SimpleNamespace(**{**sizes, **lengths}), examples, generator)
    if "lengths" in batch:
        batch["lengths"] = np.maximum(longest - (np.arange(examples) + 1) // 2, 1)
    batch["y"] = load_problem(problem).draw_targets(SimpleNamespace(**sizes), batch, None, 1.0, generator)
    return {key: array if array.dtype.kind == "i" else array.astype(dtype) for key, array in batch.items()}


class Names:
    """The names of the weights, and the names that the maths has for sizes, numbers and values."""

    def __init__(self, problem: str, batch: Batch, weights: Iterable[str], sizes: Mapping[str, int]) -> None:
        self.problem, self.batch, self.weights = problem, batch, tuple(weights)
        sizes = {"N": N} | {name: size for name, size in sizes.items() if not name.endswith("_length")}
        self.sizes = {size: name for name, size in sizes.items() if size > 2}  # a 2 may be many things
        self.numbers = {LEARNING_RATE: "learning_rate"}
        for (one, one_size), (other, other_size) in combinations(sizes.items(), 2):
            self.numbers |= {one_size * other_size: f"{one}·{other}", 1 / (one_size * other_size): f"1/({one}·{other})"}

    def shape(self, shape: Iterable[int | None]) -> str:
        return " × ".join(self.sizes.get(size, str(size)) if size else "?" for size in shape)

    def number(self, value: float) -> str:
        names = (name for number, name in self.numbers.items() if np.isclose(abs(value), number, rtol=1e-6, atol=0))
        name = next(names, f"{abs(value):g}")
        return f"-{name}" if value < 0 else name

    def quantities(self, weights: Weights) -> "Quantities":
        """The quantities of a step on the batch. `weights` are those before the step."""
        return Quantities(Paper(self.problem, weights, self.batch, LEARNING_RATE))


class Quantities:
    """Finds the quantity of a step that has a given value. A framework may keep the examples in another order, all time
    steps in one array, or with padding. So two arrays are equal here if they have the same rows in some order, apart
    from rows of zeros.
    """

    def __init__(self, paper: Paper) -> None:
        self.rows: dict[str, list[Array]] = {}
        times: dict[str, list[Array]] = {}
        updated = {line.name for line in paper.equations if line.part == "update"}
        for (name, index), value in paper.values.items():
            if name not in updated and value.ndim == 2:
                self.rows.setdefault(name, []).append(_rows(value))
                times.setdefault(name, []).extend([value] if isinstance(index, int) and index else [])
        for name, values in times.items():
            self.rows[name] += [_rows(np.concatenate(values))] if values else []

    def name(self, value: Array) -> str:
        """The name of the quantity that has this value, to the precision of float32; "" for no quantity, and for 0."""
        rows = _rows(value.astype(np.float64)) if value.ndim > 1 else np.zeros(0)
        for name, known in self.rows.items():
            if rows.size and any(rows.shape == other.shape and np.allclose(rows, other, 1e-3, 1e-5) for other in known):
                return name
        return ""


def _rows(value: Array) -> Array:
    """The rows of an array without those of NaN and of zeros, ordered by their sums."""
    rows = value.reshape(-1, value.shape[-1])
    rows = rows[~np.isnan(rows).any(1) & rows.any(1)]
    return rows[np.argsort(rows.sum(1))]


def weights_of(implementation: Implementation, names: Names, kind: type) -> dict[str, Any]:
    """The weights, and the other values of this kind that an implementation keeps from step to step."""
    kept = {name: value for name, value in vars(implementation).items() if isinstance(value, kind)}
    return {name: getattr(implementation, name) for name in names.weights} | kept


@contextmanager
def recorded_locals(implementation: Implementation) -> Iterator[list[tuple[str, Any]]]:
    """A list that gets the local variables of each function of the lesson's file when that function returns.

    Variables that AutoGraph adds, such as retval_, are left out.
    """
    file, variables = inspect.getfile(type(implementation)), []

    def look(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code.co_filename
        if event == "return" and (code == file or AUTOGRAPH in code):
            variables.extend((name, value) for name, value in frame.f_locals.items() if "__" not in f"{name}_")

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield variables
    finally:
        sys.setprofile(before)
