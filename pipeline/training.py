"""The only training loop: every implementation goes through it, on the same data, from the same weights."""

from collections.abc import Callable
from itertools import cycle
from types import ModuleType
from typing import NamedTuple

import numpy as np

from pipeline.contract import Array, Implementation, Weights
from pipeline.data import DataSet
from pipeline.errors import UserError
from pipeline.timing import Stopwatch

CALLS = 20  # of `train` in a run: enough for a median and for progress, few enough to cost nothing


class Training(NamedTuple):
    losses: Array  # (steps,), each before its step's update
    weights: Weights


@np.errstate(over="ignore", invalid="ignore")  # a loss that is not finite is refused below, by its step
def train(
    name: str,
    create: Callable[[Weights, float], Implementation],
    data: DataSet,
    *,
    learning_rate: float,
    steps: int,
    batch_size: int,
    runtime: ModuleType,
    stopwatch: Stopwatch,
    on_progress: Callable[[int, float], None],
) -> Training:
    """Construct an implementation and train it for `steps` steps, one batch each, round and round the training set.

    `create(weights, learning_rate)` constructs it; `on_progress` hears the steps done and the last loss. The stopwatch
    gets a call of no steps, which is the compilation, one of the first step, and some CALLS of the others.

    Raises UserError when a loss is not finite.
    """
    with stopwatch.measure("setup"):
        implementation = create(data.initial, learning_rate)
    losses = np.empty(steps)
    blocks, per_call = data.blocks(batch_size), max(1, steps // CALLS)
    done = heard = 0
    for block in cycle(blocks):
        with stopwatch.measure("read"):
            batches = data.read(block, batch_size)
        with stopwatch.measure("transfer"):
            implementation.load(batches)
        if done == 0:
            with stopwatch.measure("compile"):
                implementation.train(0)
        length = len(batches["y"])
        # With a single block the rounds need no second transfer.
        end = steps if len(blocks) == 1 else min(steps, done + length)
        while done < end:
            # Every round is cut into the same calls, so that what a runtime learned from one serves in the next.
            position = implementation.next
            count = min(per_call - position % per_call, length - position, end - done) if done else 1
            with stopwatch.measure("train" if done else "first_step", steps=count):
                on_device = implementation.train(count)
            with stopwatch.measure("read_back"):
                losses[done : done + count] = runtime.to_host(on_device)
            finite = np.isfinite(losses[done : done + count])
            if not finite.all():
                step = done + int(finite.argmin())
                raise UserError(
                    f"{name}: the loss is {losses[step]} at step {step} with learning rate {learning_rate}. "
                    "Lower train.learning_rate in params.yaml."
                )
            done += count
            if done - heard >= per_call or done == steps:  # a small block makes for many calls
                heard = done
                with stopwatch.measure("log"):
                    on_progress(done, float(losses[done - 1]))
        if done == steps:
            break
    with stopwatch.measure("read_back"):
        weights = implementation.weights()
    return Training(losses, weights)
