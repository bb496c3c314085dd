"""results/comparison.json and results/curves: the parity certificate. A breach fails the pipeline."""

import sys

from pipeline import files
from pipeline.params import load_params
from pipeline.parity.report import certificate, table
from stages import run


def main() -> None:
    params = load_params()
    measured = {name: files.read_json(files.parity_file(name)) for name in params.implementations}
    curves = {name: list(zip(each.pop("step"), each.pop("train_loss"), strict=True)) for name, each in measured.items()}
    for problem in sorted(set(params.implementations.values())):
        names = [name for name in curves if params.implementations[name] == problem]
        rows = ((step, loss, name) for name in names for step, loss in curves[name])
        files.write_rows(files.curves_file(problem), "step,train_loss,implementation", rows)
    comparison = certificate(params, measured)
    # A breach is written too: the last certificate does not speak of these weights.
    files.write_json(files.COMPARISON, comparison)
    print(table(comparison))
    if not comparison["passed"]:
        sys.exit("ERROR: parity is breached in the rows marked ✗; the tolerances are in params.yaml under parity.")


if __name__ == "__main__":
    run(main)
