"""reference/PROBLEM.safetensors: the same training in float64 by the equations, which all others are compared with."""

from pipeline import files
from pipeline.array_files import write_arrays
from pipeline.params import load_params
from pipeline.training.checkpoint import checkpoint_of
from pipeline.training.data import DataSet
from pipeline.training.reference import reference_run
from pipeline.training.resource_check import check_memory
from stages import run


def main(problem: str) -> None:
    params = load_params()
    check_memory(params)
    schedule = params.train.of(problem)
    checkpoint = checkpoint_of(f"reference@{problem}", problem, params.train)
    reference = reference_run(
        problem,
        DataSet(problem),
        steps=schedule.steps,
        batch_size=schedule.batch_size,
        learning_rate=params.train.learning_rate,
        checkpoint=checkpoint,
    )
    write_arrays(files.reference_file(problem), reference)
    checkpoint.remove()


if __name__ == "__main__":
    run(main)
