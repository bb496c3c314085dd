"""How long a step takes at each of a range of sizes, beside what it is compared with: in turn, in one process.

The floor of a step is the time of its matrix products alone, at the same shapes. On a CPU it is taken on NumPy's BLAS
and on torch's, and the faster counts; on a GPU on the framework's own.

What is compared takes turns, round by round, so that a slow minute of the machine is slow for all. The first half of a
turn is not timed: the last one's threads have gone to sleep, caches and clock are this one's own. Every turn's time is
kept; what is made of them is pipeline/statistics.py's.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from pipeline.contract import Array, Implementation, Weights, load_implementation, load_problem, load_runtime
from pipeline.environment import Environment, framework_of
from pipeline.timing import timed

ROUNDS = 10  # of a size, fewer where they would take longer than the time that is given
FEWEST_ROUNDS = 5
GUESSES = 3
BUILDS = 3  # of a graph, each from nothing
BLOCK_BATCHES = 64  # at most in a block, the most steps that a call of `train` takes
BLOCK_BYTES = 32 * 2**20
SEED = 0

Steps = Callable[[int], object]  # does so many steps


class Case(Protocol):
    """A size of params.yaml: batch_size and the problem's own sizes."""

    batch_size: int


class Sample(NamedTuple):
    """A turn: `steps` steps of `contestant` took `seconds`. For `build`, what a graph costs before its second step."""

    contestant: str
    round: int
    steps: int
    seconds: float


def benchmark(
    name: str, problem: str, cases: list[Any], *, seconds: float, dtype: str, environment: Environment
) -> Iterator[tuple[Any, float, Sample]]:
    """Every sample of an implementation, with its case and the mean sum of the lengths in a batch of it.

    The contestants are the implementation (`step`); the floors (`floor_FRAMEWORK`); of a static graph also the same
    lines run eagerly (`eager`) and `build`: constructing the implementation, compiling, and the first step. On a GPU
    also the same implementation on the CPU (`cpu`), and NumPy's of the two-layer network (`numpy_arrays`).
    """
    framework = framework_of(name)
    runtime, implementation = load_runtime(name), load_implementation(problem, name)
    device = runtime.start(environment)

    def create(weights: Weights) -> Implementation:
        return runtime.prepare(implementation(weights, learning_rate=1e-3, device=device))

    built: tuple[Any, Implementation, list[float]] | None = None
    for case in cases:
        weights, batches = draw(problem, case, dtype)
        lengths = batches["lengths"].sum(1).mean() if "lengths" in batches else case.batch_size
        shapes = {key: array.shape for key, array in weights.items()}
        if built is None or built[0] != shapes:  # a graph serves all lengths
            builds = [_build(create, weights, batches, runtime) for _ in range(BUILDS)] if runtime.eagerly else []
            built = shapes, create(weights), builds
        _, ours, builds = built
        for turn, taken in enumerate(builds):
            yield case, lengths, Sample("build", turn, 1, taken)
        ours.load(batches)
        contestants: dict[str, Steps] = {"step": rounds(ours, batches)}
        if runtime.eagerly:
            contestants["eager"] = _eagerly(rounds(ours, batches), runtime)
        contestants |= floors(framework, environment, problem, weights, batches)
        if environment.device_of(framework)[0] != "cpu":
            contestants |= _on_the_cpu(name, problem, weights, batches)
        for sample in in_turn(contestants, seconds=seconds / len(cases), synchronize=runtime.synchronize):
            yield case, lengths, sample


def side_by_side(
    names: list[str], problem: str, case: Any, *, seconds: float, dtype: str, environment: Environment
) -> Iterator[tuple[Any, float, Sample]]:
    """Samples of implementations that share an interpreter, in turn with each other: the contestants are their names.

    Of the same step, one process was seen to take 70 % longer than another, and one second than the next.
    """
    weights, batches = draw(problem, case, dtype)
    contestants: dict[str, Steps] = floors("torch", environment, problem, weights, batches)
    for name in names:
        runtime = load_runtime(name)
        device = runtime.start(environment)
        create = load_implementation(problem, name)
        implementation = runtime.prepare(create(weights, learning_rate=1e-3, device=device))
        implementation.load(batches)
        contestants[name] = rounds(implementation, batches)
    for sample in in_turn(contestants, seconds=seconds, synchronize=load_runtime("torch").synchronize):
        yield case, case.batch_size, sample


def draw(problem: str, case: Any, dtype: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """Initial weights and a block of batches of a case, as many as BLOCK_BATCHES and BLOCK_BYTES allow, but two."""
    module, generator = load_problem(problem), np.random.default_rng(SEED)
    weights = {key: array.astype(dtype) for key, array in module.draw_weights(case, generator).items()}
    one = module.draw_inputs(case, case.batch_size, np.random.default_rng(SEED))
    count = int(np.clip(BLOCK_BYTES // sum(array.nbytes for array in one.values()), 2, BLOCK_BATCHES))
    arrays = module.draw_inputs(case, count * case.batch_size, generator)
    arrays["y"] = generator.standard_normal((count * case.batch_size, case.outputs), dtype=np.float32)
    return weights, {
        key: (array.astype(dtype) if array.dtype == np.float32 else array).reshape(
            count, case.batch_size, *array.shape[1:]
        )
        for key, array in arrays.items()
    }


def in_turn(contestants: Mapping[str, Steps], *, seconds: float, synchronize: Callable[[], None]) -> Iterator[Sample]:
    """Samples of all contestants in turn, for about so many seconds; never fewer than FEWEST_ROUNDS of each."""
    half_turn = seconds / (ROUNDS * len(contestants)) / 2
    steps = {name: _steps_in(half_turn, run, synchronize) for name, run in contestants.items()}
    spent = 0.0
    for turn in range(ROUNDS):
        if turn >= FEWEST_ROUNDS and spent > seconds:
            break
        with timed(synchronize) as whole:
            for name, run in contestants.items():
                run(steps[name])
                with timed(synchronize) as taken:
                    run(steps[name])
                yield Sample(name, turn, steps[name], taken[0])
        spent += whole[0]


def _steps_in(seconds: float, run: Steps, synchronize: Callable[[], None]) -> int:
    """How many steps take about so long. A call of few takes longer for each, so the first guesses are too low."""
    steps = 1
    for _ in range(GUESSES):
        run(steps)  # what depends on the number of steps is compiled or captured now
        with timed(synchronize) as trial:
            run(steps)
        guess = max(1, round(steps * seconds / trial[0]))
        if guess == steps:
            break
        steps = guess
    return steps


def rounds(implementation: Implementation, batches: Mapping[str, Array]) -> Steps:
    """Any number of steps: a call of `train` takes at most a round of the block."""
    length = len(batches["y"])

    def run(steps: int) -> None:
        for start in range(0, steps, length):
            implementation.train(min(length, steps - start))

    return run


def _build(
    create: Callable[[Weights], Implementation], weights: Weights, batches: Mapping[str, Array], runtime: ModuleType
) -> float:
    with timed(runtime.synchronize) as building:
        implementation = create(weights)
    implementation.load(batches)
    with timed(runtime.synchronize) as starting:
        implementation.train(0)
        implementation.train(1)
    return building[0] + starting[0]


def _eagerly(run: Steps, runtime: ModuleType) -> Steps:
    def eager(steps: int) -> None:
        with runtime.eagerly():
            run(steps)

    return eager


def floors(
    framework: str, environment: Environment, problem: str, weights: Weights, batches: Mapping[str, Array]
) -> dict[str, Steps]:
    """A step's matrix products alone, on the libraries that they may be fastest on: floor_FRAMEWORK each."""
    on_cpu = environment.device_of(framework)[0] == "cpu"
    # Which of the two is at hand: the GPU image has an interpreter for each framework.
    names = [name for name in ("numpy", "torch") if find_spec(name)] if on_cpu else [framework]
    products = load_problem(problem).products
    factors = [products(weights, *batch) for batch in zip(*batches.values(), strict=True)]
    found = {}
    for floor in names:
        runtime = load_runtime(floor)
        if floor != framework:
            runtime.start(replace(environment, device="cpu"))
        found[f"floor_{floor}"] = runtime.multiply(factors)
    return found


def _on_the_cpu(name: str, problem: str, weights: Weights, batches: Mapping[str, Array]) -> dict[str, Steps]:
    found = {}
    for contestant, other in (("cpu", name), ("numpy_arrays", "numpy_arrays")):
        if contestant == "cpu" or problem == "two_layer":
            implementation = load_implementation(problem, other)(weights, learning_rate=1e-3, device="cpu")
            implementation.load(batches)
            found[contestant] = rounds(implementation, batches)
    return found
