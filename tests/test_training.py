"""The training loop, the clock and the judgement of parity."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LESSONS, REPOSITORY, TINY

from pipeline import data, timing, training
from pipeline.contract import Weights, load_implementation, load_runtime
from pipeline.errors import UserError
from pipeline.evaluation import certificate, evaluate, reference_run, table
from pipeline.params import Data, Params, load_params
from pipeline.two_layer.numpy_arrays import Implementation


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> data.DataSet:
    monkeypatch.chdir(tmp_path)
    data.generate("two_layer", Data.model_validate(TINY["data"]), seed=0, dtype="float64")
    return data.DataSet("two_layer")


def create(weights: Weights, learning_rate: float) -> Implementation:
    return Implementation(weights, learning_rate=learning_rate, device="cpu")


def train(
    dataset: data.DataSet, create: Callable = create, steps: int = 30, rate: float = 0.05, stopwatch: Any = None
) -> training.Training:
    return training.train(
        "numpy_arrays",
        create,
        dataset,
        learning_rate=rate,
        steps=steps,
        batch_size=16,
        runtime=load_runtime("numpy_arrays"),
        stopwatch=stopwatch or timing.Stopwatch(lambda: None),
        on_progress=lambda *_: None,
    )


def test_streaming_in_blocks_is_the_same_training(dataset: data.DataSet, monkeypatch: pytest.MonkeyPatch):
    whole = train(dataset)
    monkeypatch.setattr(data, "BLOCK_BYTES", 4 * 16 * 23 * 8)
    assert len(dataset.blocks(16)) == 2
    streamed = train(dataset)
    np.testing.assert_array_equal(streamed.losses, whole.losses)
    for key, weight in whole.weights.items():
        np.testing.assert_array_equal(streamed.weights[key], weight)


@pytest.mark.parametrize("steps", [1, 7, 45])
def test_any_number_of_steps(dataset: data.DataSet, steps: int):
    stopwatch = timing.Stopwatch(lambda: None)
    done = train(dataset, steps=steps, stopwatch=stopwatch)
    assert len(done.losses) == steps
    assert sum(count for count, _ in stopwatch.calls) == steps
    reference = reference_run("two_layer", dataset, steps=steps, batch_size=16, learning_rate=0.05)
    np.testing.assert_allclose(done.losses, reference["train_loss"], rtol=1e-11)


def test_a_loss_that_is_not_finite_is_refused_by_name_step_and_rate(dataset: data.DataSet):
    with pytest.raises(UserError, match=r"numpy_arrays: the loss is (inf|nan) at step \d+ with learning rate 1e\+50"):
        train(dataset, rate=1e50)


def test_the_ledger_adds_up_to_the_wall_clock(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing, "process_seconds", lambda: 1.0 + now[0])
    stopwatch = timing.Stopwatch(lambda: None)
    for name, steps, seconds in [
        ("setup", 0, 3),
        ("first_step", 1, 14),
        ("train", 2, 4),
        ("train", 2, 6),
        ("train", 1, 2),
    ]:
        with stopwatch.measure(name, steps=steps):
            now[0] += seconds
        now[0] += 0.5
    summary = stopwatch.summary(batch_size=10)
    ledger = {name: summary[f"{name}_seconds"] for name in timing.LEDGER}
    assert {name: seconds for name, seconds in ledger.items() if seconds} == {
        "imports": 1.0,
        "setup": 3,
        "first_step": 14,
        "train": 12,
        "residual": 2.5,
    }
    assert sum(ledger.values()) == summary["wall_seconds"]
    assert summary["step_seconds_median"] == 2
    assert summary["examples_per_second"] == 5
    assert 2 < summary["step_seconds_p95"] <= 3


def test_the_process_is_as_old_as_its_start(tmp_path: Path):
    code = "import time; time.sleep(0.3); from pipeline.timing import process_seconds; print(process_seconds())"
    with timing.timed(lambda: None) as seconds:
        age = float(subprocess.check_output([sys.executable, "-c", code], cwd=REPOSITORY))
    assert 0.3 < age < seconds[0] + 0.02  # the kernel counts in hundredths


def test_the_clock_is_read_when_the_device_is_idle():
    events = []
    stopwatch = timing.Stopwatch(lambda: events.append("idle"))
    with stopwatch.measure("train", steps=1):
        events.append("work")
    assert events == ["idle", "work", "idle"]


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(Path(__file__).parent.parent)
    return load_params().model_copy(update={"dtype": "float64", "implementations": {"numpy_arrays": "two_layer"}})


def measured(dataset: data.DataSet, create: Callable) -> dict[str, float]:
    done = train(dataset, create)
    reference = reference_run("two_layer", dataset, steps=30, batch_size=16, learning_rate=0.05)
    return evaluate(create, dataset, weights=done.weights, losses=done.losses, reference=reference, batch_size=16)


def test_the_lesson_as_it_is_passes(params: Params, dataset: data.DataSet):
    comparison = certificate(params, {"numpy_arrays": measured(dataset, create)})
    assert comparison["passed"], table(comparison)
    assert comparison["implementations"]["numpy_arrays"]["test_loss"] < 1


@pytest.mark.parametrize(
    ("name", "line", "broken"),
    [
        ("numpy_arrays", "np.multiply(grad_h, h > 0, out=grad_h)", "pass"),
        ("numpy_arrays", "2 / error.size", "1 / error.size"),
        ("torch_tensors", ".mul_(h.sign())", ""),
        ("torch_function", "grad_h * h.sign()", "grad_h"),
    ],
)
def test_a_broken_backward_pass_breaches(
    params: Params, dataset: data.DataSet, tmp_path: Path, name: str, line: str, broken: str
):
    """In each lesson with a backward pass written by hand: the gradient is caught, though the loss still goes down."""
    source = Path(str(load_implementation(LESSONS[name], name).__init__.__code__.co_filename)).read_text()
    assert line in source
    namespace: dict = {"__name__": "broken"}
    exec(compile(source.replace(line, broken), name, "exec"), namespace)  # noqa: S102

    def create_broken(weights: Weights, learning_rate: float):
        return namespace["Implementation"](weights, learning_rate=learning_rate, device="cpu")

    measures = measured(dataset, create_broken)
    comparison = certificate(params, {"numpy_arrays": measures})
    assert not comparison["passed"]
    assert "gradient_relative_error" in comparison["implementations"]["numpy_arrays"]["breaches"]
    assert "✗ BREACH" in table(comparison)
    assert measures["test_loss"] < measures["initial_test_loss"]
    single = params.model_copy(update={"dtype": "float32"})
    assert not certificate(single, {"numpy_arrays": measures})["passed"], "the wide tolerance lets it through"


def test_a_measure_that_is_not_a_number_breaches(params: Params, dataset: data.DataSet):
    measures = measured(dataset, create) | {"loss_curve_relative_difference": float("nan")}
    assert not certificate(params, {"numpy_arrays": measures})["passed"]
