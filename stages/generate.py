"""data/PROBLEM: random data and initial weights."""

from pipeline.params import load_params
from pipeline.training.data import generate
from pipeline.training.resource_check import check_disk, check_memory
from stages import run


def main(problem: str) -> None:
    params = load_params()
    check_memory(params)
    check_disk(params, problem)
    generate(problem, params.data, seed=params.seed, dtype=params.dtype)


if __name__ == "__main__":
    run(main)
