"""Log the results in MLflow, and write state.json: the digest of the results, on which the last stage depends."""

from pipeline import files
from pipeline.params import load_params
from pipeline.tracking.runs import log_results
from stages import run


def main() -> None:
    files.write_json(files.STATE, {"state": log_results(load_params())})


if __name__ == "__main__":
    run(main, alone=False)  # it reads the results, and other senders wait for it
