"""models/NAME and results/NAME: one implementation, trained."""

from pipeline import files, graphs
from pipeline.array_files import write_arrays
from pipeline.clock import Stopwatch
from pipeline.environment import enter_interpreter, framework_of
from pipeline.params import load_params
from pipeline.provenance import provenance
from pipeline.runtimes import load_runtime, open_implementation
from pipeline.training.checkpoint import checkpoint_of
from pipeline.training.data import DataSet
from pipeline.training.outputs import outputs
from pipeline.training.progress import Progress
from pipeline.training.resource_check import check_memory
from pipeline.training.training import train
from stages import run


def main(name: str) -> None:
    enter_interpreter(framework_of(name))
    params, environment = load_params(), files.read_environment()
    check_memory(params)
    problem = params.problem_of(name)
    schedule, runtime = params.train.of(problem), load_runtime(name)
    stopwatch = Stopwatch(runtime.synchronize)
    with stopwatch.measure("device_context"):
        opened = open_implementation(name, problem, environment)
    with stopwatch.measure("read"):
        data = DataSet(problem)
    checkpoint = checkpoint_of(f"train@{name}", problem, params.train)
    with Progress(name, schedule.steps) as progress:
        training = train(
            name,
            opened.create,
            data,
            learning_rate=params.train.learning_rate,
            steps=schedule.steps,
            batch_size=schedule.batch_size,
            runtime=runtime,
            stopwatch=stopwatch,
            on_progress=progress.show,
            checkpoint=checkpoint,
        )
    memory, loop = runtime.peak_memory_bytes(), training.loop
    with stopwatch.measure("predict"):
        found = outputs(opened.create, training, data, schedule.batch_size)
    with stopwatch.measure("graph"):
        traced = graphs.trace(name, problem, opened.create, params.dtype)
    with stopwatch.measure("save"):
        write_arrays(files.weights_file(name), training.weights)
        write_arrays(files.outputs_file(name), found)
        files.write_history(name, training.steps, training.losses.tolist(), schedule.steps)
        files.write_json(files.result_file(name, "graph.json"), traced)
    counts = {"peak_memory_bytes": memory, "captured_graphs": loop.captures, "replayed_steps": loop.replays}
    measured = stopwatch.summary(schedule.batch_size) | counts | {"continued_at": list(training.continued_at)}
    where = provenance(environment, opened.device, opened.device_name)
    files.write_json(files.result_file(name, "timing.json"), measured | where)
    checkpoint.remove()


if __name__ == "__main__":
    run(main)
