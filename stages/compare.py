"""results/comparison.json and results/curves: the parity certificate. A breach fails the pipeline."""

import sys

from pipeline import records
from pipeline.evaluation import certificate, table
from pipeline.params import load_params
from stages import run


def main() -> None:
    params = load_params()
    measured = {name: records.read_json(records.parity_file(name)) for name in params.implementations}
    curves = {name: measures.pop("train_loss") for name, measures in measured.items()}
    for problem in sorted(set(params.implementations.values())):
        names = [name for name in curves if params.implementations[name] == problem]
        rows = ((step, loss, name) for name in names for step, loss in enumerate(curves[name]))
        records.write_rows(records.curves_file(problem), "step,train_loss,implementation", rows)
    comparison = certificate(params, measured)
    # A breach is written too: the last certificate does not speak of these weights.
    records.write_json(records.COMPARISON, comparison)
    print(table(comparison))
    if not comparison["passed"]:
        sys.exit("ERROR: parity is breached in the rows marked ✗; the tolerances are in params.yaml under parity.")


if __name__ == "__main__":
    run(main)
