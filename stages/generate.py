"""data/PROBLEM: random data and initial weights."""

from pipeline.experiment.data import generate
from pipeline.params import load_params
from stages import run


def main(problem: str) -> None:
    params = load_params()
    generate(problem, params.data, seed=params.seed, dtype=params.dtype)


if __name__ == "__main__":
    run(main)
