"""results/NAME/evaluation.json and parity/NAME.json: one trained implementation, measured."""

import numpy as np

from pipeline import records
from pipeline.contract import load_implementation, load_runtime
from pipeline.data import DataSet
from pipeline.environment import enter_interpreter, framework_of
from pipeline.evaluation import evaluate
from pipeline.params import load_params
from pipeline.tensors import read_tensors
from stages import run


def main(name: str) -> None:
    enter_interpreter(framework_of(name))
    params, environment = load_params(), records.read_environment()
    problem = params.problem_of(name)
    data, reference = DataSet(problem), read_tensors(records.reference_file(problem))
    shapes = {key: array.shape for key, array in data.initial.items()}
    weights, losses = read_tensors(records.weights_file(name), shapes), records.read_history(name)
    runtime, implementation = load_runtime(name), load_implementation(problem, name)
    device = runtime.start(environment)
    evaluation = evaluate(
        lambda weights, rate: runtime.prepare(implementation(weights, learning_rate=rate, device=device)),
        data,
        weights=weights,
        losses=np.array(losses),
        reference=reference,
        batch_size=params.train.of(problem).batch_size,
    )
    records.write_json(records.result_file(name, "evaluation.json"), evaluation)
    records.write_json(records.parity_file(name), evaluation | {"train_loss": losses})


if __name__ == "__main__":
    run(main)
