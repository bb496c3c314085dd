"""reference/PROBLEM.safetensors: the same training in float64 by the equations, which all others are compared with."""

from pipeline import files
from pipeline.array_files import write_arrays
from pipeline.experiment.checkpoint import Checkpoint, depends_on
from pipeline.experiment.data import DataSet
from pipeline.experiment.evaluation import reference_run
from pipeline.params import load_params
from stages import run


def main(problem: str) -> None:
    params = load_params()
    schedule = params.train.of(problem)
    basis = {"learning_rate": params.train.learning_rate, **schedule.model_dump()}
    stage = f"reference@{problem}"
    checkpoint = Checkpoint(stage, depends_on(stage, basis), params.train.checkpoint_seconds)
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
