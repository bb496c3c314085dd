"""results/NAME/evaluation.json and parity/NAME.json: one trained implementation, judged. Needs no framework."""

from pipeline import files
from pipeline.array_files import read_arrays
from pipeline.params import load_params
from pipeline.parity.evaluation import evaluate
from pipeline.training.data import DataSet
from stages import run


def main(name: str) -> None:
    problem = load_params().problem_of(name)
    data = DataSet(problem)
    weights = {key: array.shape for key, array in data.initial.items()}
    judged = {"train_loss": None, "predictions": data.test["y"].shape}
    judged |= {f"gradient.{key}": shape for key, shape in weights.items()}
    reference = read_arrays(files.reference_file(problem), judged)
    kept = reference["train_loss"].shape
    outputs = judged | {"initial_predictions": data.test["y"].shape, "train_loss": kept, "step": kept}
    found = read_arrays(files.outputs_file(name), outputs)
    evaluation = evaluate(
        problem, data, weights=read_arrays(files.weights_file(name), weights), outputs=found, reference=reference
    )
    files.write_json(files.result_file(name, "evaluation.json"), evaluation)
    curve = {key: found[key].tolist() for key in ("step", "train_loss")}
    files.write_json(files.parity_file(name), evaluation | curve)


if __name__ == "__main__":
    run(main)
