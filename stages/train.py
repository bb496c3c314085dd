"""models/NAME and results/NAME: one implementation, trained."""

from pipeline import records
from pipeline.contract import load_implementation, load_runtime
from pipeline.data import DataSet
from pipeline.environment import enter_interpreter, framework_of
from pipeline.params import load_params
from pipeline.progress import Progress
from pipeline.tensors import write_tensors
from pipeline.timing import Stopwatch
from pipeline.training import train
from stages import run


def main(name: str) -> None:
    enter_interpreter(framework_of(name))
    params, environment = load_params(), records.read_environment()
    problem = params.problem_of(name)
    schedule, runtime, implementation = params.train.of(problem), load_runtime(name), load_implementation(problem, name)
    stopwatch = Stopwatch(runtime.synchronize)
    with stopwatch.measure("device_context"):
        device = runtime.start(environment)
    with stopwatch.measure("read"):
        data = DataSet(problem)
    with Progress(name, schedule.steps) as progress:
        training = train(
            name,
            lambda weights, rate: runtime.prepare(implementation(weights, learning_rate=rate, device=device)),
            data,
            learning_rate=params.train.learning_rate,
            steps=schedule.steps,
            batch_size=schedule.batch_size,
            runtime=runtime,
            stopwatch=stopwatch,
            on_progress=progress.show,
        )
    with stopwatch.measure("save"):
        write_tensors(records.weights_file(name), training.weights)
        records.write_history(name, training.losses.tolist())
    records.write_timing(name, environment, stopwatch.summary(schedule.batch_size), runtime.peak_memory_bytes())


if __name__ == "__main__":
    run(main)
