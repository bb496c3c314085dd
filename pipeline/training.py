"""The only training loop: every implementation goes through it, on the same data, from the same weights."""

from collections.abc import Callable
from itertools import cycle
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
    stopwatch: Stopwatch


def train(
    name: str,
    create: Callable[[Weights, float], Implementation],
    data: DataSet,
    *,
    learning_rate: float,
    steps: int,
    batch_size: int,
    synchronize: Callable[[], None],
    on_progress: Callable[[int, float], None],
) -> Training:
    """Construct an implementation and train it for `steps` steps, one batch each, round and round the training set.

    `create(weights, learning_rate)` constructs it; `synchronize()` returns when its device is idle;
    `on_progress` hears the steps done and the last loss, between timed calls.

    Raises UserError when a loss is not finite.
    """
    stopwatch = Stopwatch(synchronize)
    with stopwatch.measure("setup"):
        implementation = create(data.initial, learning_rate)
    losses = np.empty(steps)
    blocks, per_call = data.blocks(batch_size), max(1, steps // CALLS)
    done = 0
    for block in cycle(blocks):
        batches = data.read(block, batch_size)
        with stopwatch.measure("transfer"):
            implementation.load(batches)
        # With a single block the rounds need no second transfer.
        end = steps if len(blocks) == 1 else min(steps, done + len(batches["y"]))
        while done < end:
            count = min(per_call, end - done)
            with stopwatch.measure("train", steps=count):
                losses[done : done + count] = implementation.train(count)
            finite = np.isfinite(losses[done : done + count])
            if not finite.all():
                step = done + int(finite.argmin())
                raise UserError(
                    f"{name}: the loss is {losses[step]} at step {step} with learning rate {learning_rate}. "
                    "Lower train.learning_rate in params.yaml."
                )
            done += count
            on_progress(done, float(losses[done - 1]))
        if done == steps:
            break
    return Training(losses, implementation.weights(), stopwatch)
