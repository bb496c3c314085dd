"""The only training: every implementation goes through it, on the same data, from the same weights."""

from collections.abc import Callable
from itertools import cycle
from types import ModuleType
from typing import NamedTuple

import numpy as np

from pipeline.contract import Array, Weights
from pipeline.errors import UserError
from pipeline.experiment.data import DataSet
from pipeline.experiment.history import kept_steps
from pipeline.measuring.clock import Stopwatch
from pipeline.runtimes import Loop

CALLS = 20  # of a loop's `run` in a training: enough for a median and for progress, few enough to cost nothing
CALL_STEPS = 10_000  # in a call, at most: a long training shows progress too, and holds few losses at a time


class Training(NamedTuple):
    losses: Array  # each before its step's update, of the steps that `kept_steps` names
    weights: Weights
    loop: Loop


@np.errstate(over="ignore", invalid="ignore")  # a loss that is not finite is refused below, by its step
def train(
    name: str,
    create: Callable[[Weights, float], Loop],
    data: DataSet,
    *,
    learning_rate: float,
    steps: int,
    batch_size: int,
    runtime: ModuleType,
    stopwatch: Stopwatch,
    on_progress: Callable[[int, float], None],
) -> Training:
    """Train an implementation for `steps` steps, one batch each, for as many epochs as that takes.

    `create(weights, learning_rate)` constructs it; `on_progress` hears the steps done and the last loss.
    Raises UserError when a loss is not finite.
    """
    with stopwatch.measure("setup"):
        loop = create(data.initial, learning_rate)
    kept = kept_steps(steps)
    losses = np.empty(len(kept))
    chunks, per_call = data.chunks(batch_size), max(1, min(steps // CALLS, CALL_STEPS))
    done = shown = 0
    for chunk in cycle(chunks):
        with stopwatch.measure("read"):
            batches = data.read(chunk, batch_size)
        with stopwatch.measure("transfer"):
            loop.place(batches)
        with stopwatch.measure("compile"):
            loop.compile()
        # With a single chunk an epoch ends where the next one begins, and nothing has to be placed again.
        end = steps if len(chunks) == 1 else min(steps, done + len(batches["y"]))
        while done < end:
            count = min(per_call if done else loop.first_steps, end - done)
            with stopwatch.measure("train" if done else "first_steps", steps=count):
                on_device = loop.run(count)
            if not done:
                with stopwatch.measure("compile"):
                    loop.compile()  # what can only be recorded after the first steps
            with stopwatch.measure("read_back"):
                found = runtime.to_host(on_device)
            finite = np.isfinite(found)
            if not finite.all():
                step = int(finite.argmin())
                raise UserError(
                    f"{name}: the loss is {found[step]} at step {done + step} with learning rate {learning_rate}. "
                    "Lower train.learning_rate in params.yaml."
                )
            first = -(-done // kept.step)  # the first kept step of this call, counted among the kept ones
            chosen = found[first * kept.step - done :: kept.step]
            losses[first : first + len(chosen)] = chosen
            done += count
            if done - shown >= per_call or done == steps:  # small chunks make for many calls
                shown = done
                with stopwatch.measure("log"):
                    on_progress(done, float(found[-1]))
        if done == steps:
            break
    with stopwatch.measure("read_back"):
        weights = loop.weights()
    return Training(losses, weights, loop)
