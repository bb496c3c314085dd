"""The whole pipeline runs with the smallest and the largest valid params."""

from collections.abc import Callable
from typing import Any

import pytest
from conftest import LESSONS, Clone

pytestmark = pytest.mark.environments


@pytest.fixture(scope="module")
def clone(make_clone: Callable[..., Clone]) -> Clone:
    return make_clone(*LESSONS, benchmark=True)


def test_pipeline_runs_with_every_size_1(clone: Clone):
    """One test example leaves no variance for R². With one time step no gradient reaches wh."""
    params: dict[str, Any] = clone.params()
    for problem in params["problems"].values():
        problem["data"] = dict.fromkeys(problem["data"], 1)
        problem["train"] = {"batch_size": 1, "steps": 1}
        problem["benchmark"] = [dict.fromkeys(problem["benchmark"][0], 1)]
    clone.write_params(params)
    assert "NaN" not in clone.run("dvc", "repro").stdout


def test_pipeline_runs_with_zero_targets_and_a_skipped_huge_benchmark(clone: Clone):
    params = clone.params() | {"data": {"target": "random", "noise": 0}, "seed": 2**128 - 1, "dtype": "float64"}
    params["train"]["learning_rate"] = 1e-300
    params["benchmark"]["processes"] = 0
    huge = {"batch_size": 10**6, "inputs": 10**6, "hidden": 10**6, "outputs": 10}
    params["problems"]["two_layer"]["benchmark"].append(huge)
    clone.write_params(params)
    clone.run("dvc", "repro")
