"""The stage `train`: it trains an implementation. All have the same data and the same initial weights."""

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import NamedTuple

import numpy as np

from pipeline import files
from pipeline.array_files import write_arrays
from pipeline.clock import Stopwatch
from pipeline.contract import Array, Weights
from pipeline.environment import check_imported, enter_interpreter, framework_of
from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.provenance import provenance
from pipeline.results import Metrics, Timing
from pipeline.runtimes import Loop, load_runtime, open_implementation
from pipeline.training.checkpoint import NONE, Checkpoint, State, checkpoint_of
from pipeline.training.data import DataSet
from pipeline.training.history import kept_steps
from pipeline.training.outputs import outputs
from pipeline.training.progress import Progress
from pipeline.training.resource_check import check_memory

CALLS = 20  # of a loop's `run` in a training: enough for a median and for progress, without a cost in time
CALL_STEPS = 10_000  # in a call, at most: a long training shows progress, and holds few losses at a time
CALL_SECONDS = 5.0  # of a call, about, at most: progress and checkpoints come only between calls


def main(name: str, *, live_log: Callable[[str], Callable[[int, float], None] | None]) -> None:
    """Train an implementation. `live_log(name)` returns a function that receives steps and losses during training, or
    None."""
    enter_interpreter(framework_of(name))
    params, environment = load_params(), files.read_environment()
    check_memory(params)
    problem = params.problem_of(name)
    schedule = params.problems[problem].train
    load_runtime(name)  # imports the framework before the stopwatch records the time of imports
    check_imported(environment)
    stopwatch = Stopwatch()
    with stopwatch.measure("device_context"):
        opened = open_implementation(name, problem, environment)
        stopwatch.synchronize = opened.runtime.synchronize
    with stopwatch.measure("read"):
        data = DataSet(problem)
    checkpoint = checkpoint_of(f"train@{name}", problem, params)
    with stopwatch.measure("log"):
        live = live_log(name)
    with Progress(name, schedule.steps, live) as progress:
        training = train(
            name,
            opened.create,
            data,
            learning_rate=params.train.learning_rate,
            steps=schedule.steps,
            batch_size=schedule.batch_size,
            stopwatch=stopwatch,
            on_progress=progress.show,
            checkpoint=checkpoint,
        )
    memory, loop = opened.runtime.peak_memory_bytes(), training.loop
    with stopwatch.measure("predict"):
        judged = outputs(opened.create, training.loop, data, schedule.batch_size)
    with stopwatch.measure("save"):
        curve = {"step": np.array(training.steps), "train_loss": training.losses}
        write_arrays(files.weights_file(name), training.weights)
        write_arrays(files.outputs_file(name), judged | curve)
        rows = zip(training.steps, training.losses.tolist(), strict=True)
        files.write_rows(files.result_file(name, "history.csv"), "step,train_loss", rows)
        last = Metrics(train_loss=float(training.losses[-1]), steps=schedule.steps)
        last.write(files.result_file(name, "metrics.json"))
    timing = Timing(
        **provenance(environment, opened.device, opened.device_name),
        **stopwatch.summary(schedule.batch_size),
        peak_memory_bytes=memory,
        captured_graphs=loop.captures,
        replayed_steps=loop.replays,
        continued_at=list(training.continued_at),
    )
    timing.write(files.result_file(name, "timing.json"))
    checkpoint.remove()


class Training(NamedTuple):
    steps: range  # whose losses are kept
    losses: Array  # each before its step's update
    weights: Weights
    loop: Loop
    continued_at: tuple[int, ...]  # the steps at which it was resumed from a checkpoint


@np.errstate(over="ignore", invalid="ignore")  # the check below names the step of a loss that is not finite
def train(
    name: str,
    create: Callable[[Weights, float], Loop],
    data: DataSet,
    *,
    learning_rate: float,
    steps: int,
    batch_size: int,
    stopwatch: Stopwatch,
    on_progress: Callable[[int, float], None],
    checkpoint: Checkpoint = NONE,
) -> Training:
    """Train an implementation for `steps` steps, one batch each, over as many epochs as needed. `create(weights,
    learning_rate)` constructs it. `on_progress` is called with the steps done and the last loss. The training resumes
    from the checkpoint, if there is one. Raises UserError when a loss is not finite.
    """
    with stopwatch.measure("checkpoint"):
        state = checkpoint.load(data.initial)
    with stopwatch.measure("setup"):
        loop = create(state.weights, learning_rate)
    kept = kept_steps(steps)
    losses = np.empty(len(kept))
    losses[: len(state.losses)] = state.losses
    chunks, most = data.chunks(batch_size), max(1, min(steps // CALLS, CALL_STEPS))
    per_call = most
    started = done = state.done
    for chunk, first in _from_step(done, chunks, batch_size):
        with stopwatch.measure("read"):
            batches = data.read(chunk, batch_size)
        with stopwatch.measure("transfer"):
            loop.place(batches)
            loop.next = first
        # With a single chunk an epoch ends where the next one begins, and nothing has to be placed again.
        end = steps if len(chunks) == 1 else min(steps, done + len(batches["y"]) - first)
        while done < end:
            count = min(loop.first_steps if done == started else per_call, end - done)
            with stopwatch.measure("compile"):
                loop.compile_for(count)
            with stopwatch.measure("first_steps" if done == started else "train", steps=count) as seconds:
                on_device = loop.run(count)
            # The first call includes one-time costs, and any call may be disturbed, so the number of steps may grow
            # again.
            per_call = max(1, min(most, int(CALL_SECONDS * count / seconds[0])))
            with stopwatch.measure("read_back"):
                call_losses = loop.to_host(on_device)
            finite = np.isfinite(call_losses)
            if not finite.all():
                step = int(finite.argmin())
                raise UserError(
                    f"{name}: the loss is {call_losses[step]} at step {done + step} with learning rate "
                    f"{learning_rate}. Lower train.learning_rate in params.yaml. `make explain NAME={name}` looks for "
                    "a wrong line."
                )
            first_kept = -(-done // kept.step)  # of this call, counted among the kept ones
            chosen = call_losses[first_kept * kept.step - done :: kept.step]
            losses[first_kept : first_kept + len(chosen)] = chosen
            done += count
            with stopwatch.measure("log"):
                on_progress(done, float(call_losses[-1]))
            if checkpoint.due and done < steps:
                with stopwatch.measure("checkpoint"):
                    so_far = losses[: first_kept + len(chosen)]
                    checkpoint.write(State(loop.weights(), so_far, done, state.continued_at))
        if done == steps:
            break
    with stopwatch.measure("read_back"):
        weights = loop.weights()
    return Training(kept, losses, weights, loop, state.continued_at)


def _from_step(done: int, chunks: list[slice], batch_size: int) -> Iterator[tuple[slice, int]]:
    """An endless iterator over the chunks in the order of the remaining steps, each with the batch at which it begins.
    That is 0, except for the first chunk, of which some batches may be done."""
    skipped = done % (chunks[-1].stop // batch_size) * batch_size
    for chunk in cycle(chunks):
        if skipped < chunk.stop:
            yield chunk, max(0, skipped - chunk.start) // batch_size
            skipped = 0
