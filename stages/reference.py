"""reference/PROBLEM.safetensors: the same training in float64 by the equations, which all others are compared with."""

from pipeline import files
from pipeline.array_files import write_arrays
from pipeline.experiment.data import DataSet
from pipeline.experiment.evaluation import reference_run
from pipeline.params import load_params
from stages import run


def main(problem: str) -> None:
    params = load_params()
    schedule = params.train.of(problem)
    reference = reference_run(
        problem,
        DataSet(problem),
        steps=schedule.steps,
        batch_size=schedule.batch_size,
        learning_rate=params.train.learning_rate,
    )
    write_arrays(files.reference_file(problem), reference)


if __name__ == "__main__":
    run(main)
