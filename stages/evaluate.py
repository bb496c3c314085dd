"""results/NAME/evaluation.json and parity/NAME.json: one trained implementation, judged. Needs no framework."""

import numpy as np

from pipeline import files
from pipeline.array_files import read_arrays
from pipeline.experiment.data import DataSet
from pipeline.experiment.evaluation import evaluate
from pipeline.params import load_params
from stages import run


def main(name: str) -> None:
    problem = load_params().problem_of(name)
    data, reference = DataSet(problem), read_arrays(files.reference_file(problem))
    shapes = {key: array.shape for key, array in data.initial.items()}
    steps, losses = files.read_history(name)
    evaluation = evaluate(
        problem,
        data,
        weights=read_arrays(files.weights_file(name), shapes),
        outputs=read_arrays(files.outputs_file(name)),
        losses=np.array(losses),
        reference=reference,
    )
    files.write_json(files.result_file(name, "evaluation.json"), evaluation)
    files.write_json(files.parity_file(name), evaluation | {"step": steps, "train_loss": losses})


if __name__ == "__main__":
    run(main)
