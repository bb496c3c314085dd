"""reference/PROBLEM.safetensors: the same training in float64 by the equations, which all others are compared with."""

from pipeline import records
from pipeline.data import DataSet
from pipeline.evaluation import reference_run
from pipeline.params import load_params
from pipeline.tensors import write_tensors
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
    write_tensors(records.reference_file(problem), reference)


if __name__ == "__main__":
    run(main)
