"""The current results, in the MLflow store: whatever it does not show yet."""

from pipeline.params import load_params
from pipeline.tracking import view
from stages import run


def main() -> None:
    view.show_results(load_params())


if __name__ == "__main__":
    run(main, alone=False)  # it keeps the store to itself, and leaves the results alone
