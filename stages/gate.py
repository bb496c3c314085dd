"""Ends the pipeline with exit status 1 when an implementation fails the parity check."""

from pipeline import files
from pipeline.params import load_params
from pipeline.parity.report import gate
from pipeline.tracking import store
from stages import run


def main() -> None:
    gate()
    runs = f"{store.server()} shows" if store.server() else "`make ui` shows"
    print(f"Open {files.LESSONS} and {files.REPORT} in a browser. {runs} the runs in MLflow.")
    print(f"Try next: dvc exp run -S train.learning_rate={load_params().train.learning_rate / 2:g}")


if __name__ == "__main__":
    run(main)
