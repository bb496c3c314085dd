"""The training loop, the clock and the parity check."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HOST, LESSONS, REPOSITORY, dataset
from fake_cuda import GPU

from pipeline import clock
from pipeline.contract import Weights, load_implementation
from pipeline.environment import Environment
from pipeline.errors import UserError
from pipeline.lessons.two_layer.numpy_arrays import Implementation
from pipeline.params import Params, load_params
from pipeline.parity.evaluation import POINTS, chosen_points, evaluate
from pipeline.parity.report import judge, table
from pipeline.results import Evaluation
from pipeline.runtimes import Loop, load_runtime, open_implementation
from pipeline.training import data, history, progress
from pipeline.training import train as training
from pipeline.training.outputs import outputs
from pipeline.training.reference import reference_run

NUMPY = "numpy_arrays"


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> data.DataSet:
    monkeypatch.chdir(tmp_path)
    return dataset("two_layer", dtype="float64")


def create(weights: Weights, learning_rate: float) -> Loop:
    implementation: Any = Implementation(weights, learning_rate=learning_rate, device="cpu")
    return load_runtime("numpy")(HOST).loop(implementation, weights)


def train(
    drawn: data.DataSet,
    create: Callable = create,
    steps: int = 30,
    rate: float = 0.05,
    stopwatch: Any = None,
    name: str = NUMPY,
) -> training.Training:
    return training.train(
        name,
        create,
        drawn,
        learning_rate=rate,
        steps=steps,
        batch_size=16,
        stopwatch=stopwatch or clock.Stopwatch(lambda: None),
        on_progress=lambda *_: None,
    )


def test_streaming_in_chunks_gives_the_same_training(drawn: data.DataSet, monkeypatch: pytest.MonkeyPatch):
    whole = train(drawn)
    monkeypatch.setattr(data, "CHUNK_BYTES", 4 * 16 * 23 * 8)
    assert len(drawn.chunks(16)) == 2
    streamed = train(drawn)
    np.testing.assert_array_equal(streamed.losses, whole.losses)
    for key, weight in whole.weights.items():
        np.testing.assert_array_equal(streamed.weights[key], weight)


@pytest.mark.parametrize("steps", [1, 7, 45])
def test_training_takes_any_number_of_steps(drawn: data.DataSet, steps: int):
    stopwatch = clock.Stopwatch(lambda: None)
    done = train(drawn, steps=steps, stopwatch=stopwatch)
    assert len(done.losses) == steps
    assert stopwatch.steps == steps
    reference = reference_run("two_layer", drawn, steps=steps, batch_size=16, learning_rate=0.05)
    np.testing.assert_allclose(done.losses, reference["train_loss"], rtol=1e-11)


class Slow:
    """A stopwatch for which the first call takes a second, and every other call a microsecond a step."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    @contextmanager
    def measure(self, _: str, *, steps: int = 0) -> Iterator[list[float]]:
        seconds: list[float] = []
        yield seconds
        if steps:
            seconds.append(1e-6 * steps if self.calls else 1.0)
            self.calls.append(steps)


def test_slow_first_call_does_not_shorten_later_calls(drawn: data.DataSet):
    """On a GPU it has the one-time costs: starting libraries, loading kernels, creating a thread."""
    stopwatch = Slow()
    train(drawn, steps=1000, stopwatch=stopwatch)
    assert stopwatch.calls[:3] == [1, 5, 50]
    assert set(stopwatch.calls[3:-1]) == {50}


class Noting(clock.Stopwatch):
    """A stopwatch that records what is timed."""

    line = ""

    @contextmanager
    def measure(self, name: str, *, steps: int = 0) -> Iterator[list[float]]:
        self.line = name
        with super().measure(name, steps=steps) as seconds:
            yield seconds


@pytest.mark.parametrize("streamed", [False, True])
def test_training_with_cuda_graphs_is_the_same_and_times_captures_as_compile(
    cuda: Any, drawn: data.DataSet, monkeypatch: pytest.MonkeyPatch, streamed: bool
):
    """With the captures of tests/fake_cuda.py: the same training, and the time of captures is separate from that of
    steps."""
    name = "torch_autograd"

    def opened(environment: Environment) -> Callable[[Weights, float], Loop]:
        return open_implementation(name, "two_layer", environment).create

    plain = train(drawn, opened(HOST), steps=45, name=name)
    if streamed:  # chunks of four batches and of two
        monkeypatch.setattr(data, "CHUNK_BYTES", 4 * 16 * 23 * 8)
        read = drawn.read
        monkeypatch.setattr(drawn, "read", lambda *where: {key: array.copy() for key, array in read(*where).items()})
    stopwatch, recorded, captured_in = Noting(lambda: None), cuda._recorded, []

    def noted(*what: Any) -> Any:
        captured_in.append(stopwatch.line)
        return recorded(*what)

    monkeypatch.setattr(cuda, "_recorded", noted)
    done = train(drawn, opened(GPU), steps=45, name=name, stopwatch=stopwatch)
    np.testing.assert_array_equal(done.losses, plain.losses)
    for key, weight in plain.weights.items():
        np.testing.assert_array_equal(done.weights[key], weight)
    batches = 4 if streamed else 6
    assert (done.loop.captures, done.loop.replays) == (batches, 45 - batches)
    assert captured_in == ["compile"] * batches


def test_training_of_one_epoch_captures_nothing(cuda: Any, drawn: data.DataSet):
    create = open_implementation("torch_tensors", "two_layer", GPU).create
    done = train(drawn, create, steps=6, name="torch_tensors")
    assert (done.loop.captures, done.loop.replays) == (0, 0)


def test_long_training_keeps_every_nth_loss(drawn: data.DataSet, monkeypatch: pytest.MonkeyPatch):
    every = train(drawn, steps=45)
    monkeypatch.setattr(history, "KEPT_LOSSES", 10)
    kept = history.kept_steps(45)
    assert list(kept) == [0, 5, 10, 15, 20, 25, 30, 35, 40]
    np.testing.assert_array_equal(train(drawn, steps=45).losses, every.losses[kept])
    reference = reference_run("two_layer", drawn, steps=45, batch_size=16, learning_rate=0.05)
    np.testing.assert_allclose(every.losses[kept], reference["train_loss"], rtol=1e-11)
    assert len(history.kept_steps(10**8)) <= 10


def test_stopwatch_keeps_a_bounded_number_of_calls():
    stopwatch = clock.Stopwatch(lambda: None)
    for _ in range(10 * clock.KEPT_CALLS):
        with stopwatch.measure("train", steps=3):
            pass
    assert clock.KEPT_CALLS <= len(stopwatch.step_seconds) < 2 * clock.KEPT_CALLS
    assert stopwatch.steps == 30 * clock.KEPT_CALLS


def test_progress_is_reported_in_calls_of_bounded_size(drawn: data.DataSet):
    steps = []
    training.train(
        "numpy_arrays",
        create,
        drawn,
        learning_rate=1e-4,
        steps=20 * training.CALL_STEPS + 20,
        batch_size=16,
        stopwatch=clock.Stopwatch(lambda: None),
        on_progress=lambda step, _: steps.append(step),
    )
    assert max(np.diff(steps)) == training.CALL_STEPS


def test_progress_in_a_log_has_fewer_lines_as_time_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    seconds = [0.0]
    monkeypatch.setattr(progress, "now", lambda: seconds[0])
    with progress.Progress(NUMPY, 100_000) as shown:
        for step in range(0, 100_001, 100):  # 100 steps a second
            seconds[0] = step / 100
            shown.show(step, 0.5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "numpy_arrays: step 500 of 100,000, loss 0.5, 100 steps/s, 17 min left"
    assert lines[-1] == "numpy_arrays: step 100,000 of 100,000, loss 0.5, 100 steps/s"
    assert lines[1].startswith("numpy_arrays: step 1,000 of")
    assert 20 < len(lines) < 45


def test_changed_weights_are_refused_by_the_evaluation(drawn: data.DataSet):
    done = train(drawn)
    trained = outputs(create, done.loop, drawn, 16) | {"train_loss": done.losses}
    reference = reference_run("two_layer", drawn, steps=30, batch_size=16, learning_rate=0.05)
    weights = {key: array.copy() for key, array in done.weights.items()}
    weights["w2"][0, 0] += 1
    with pytest.raises(UserError, match="do not give the predictions of the training"):
        evaluate("two_layer", drawn, weights=weights, outputs=trained, reference=reference)


def test_non_finite_loss_is_refused_with_name_step_and_rate(drawn: data.DataSet):
    with pytest.raises(UserError, match=r"numpy_arrays: the loss is (inf|nan) at step \d+ with learning rate 1e\+50"):
        train(drawn, rate=1e50)


def test_time_breakdown_adds_up_to_the_wall_clock(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(clock, "process_seconds", lambda: 1.0 + now[0])
    stopwatch = clock.Stopwatch(lambda: None)
    for name, steps, seconds in [
        ("setup", 0, 3),
        ("first_steps", 1, 14),
        ("train", 2, 4),
        ("train", 2, 6),
        ("train", 1, 2),
    ]:
        with stopwatch.measure(name, steps=steps):
            now[0] += seconds
        now[0] += 0.5
    summary = stopwatch.summary(batch_size=10)
    breakdown = summary["breakdown_seconds"]
    assert {name: seconds for name, seconds in breakdown.items() if seconds} == {
        "imports": 1.0,
        "setup": 3,
        "first_steps": 14,
        "train": 12,
        "residual": 2.5,
    }
    assert sum(breakdown.values()) == summary["wall_seconds"]
    assert summary["step_seconds_median"] == 2
    assert summary["examples_per_second"] == 5
    assert 2 < summary["step_seconds_p95"] <= 3


def test_process_seconds_counts_from_the_start_of_the_process(tmp_path: Path):
    code = "import time; time.sleep(0.3); from pipeline.clock import process_seconds; print(process_seconds())"
    with clock.timed(lambda: None) as seconds:
        age = float(subprocess.check_output([sys.executable, "-c", code], cwd=REPOSITORY))
    assert 0.3 < age < seconds[0] + 0.02  # the kernel counts in hundredths


def test_clock_is_read_when_the_device_is_idle():
    events = []
    stopwatch = clock.Stopwatch(lambda: events.append("idle"))
    with stopwatch.measure("train", steps=1):
        events.append("work")
    assert events == ["idle", "work", "idle"]


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(Path(__file__).parent.parent)
    return load_params().model_copy(update={"dtype": "float64", "implementations": {"numpy_arrays": "two_layer"}})


def measured(drawn: data.DataSet, create: Callable, name: str = NUMPY) -> Evaluation:
    done = train(drawn, create, name=name)
    return evaluate(
        "two_layer",
        drawn,
        weights=done.weights,
        outputs=outputs(create, done.loop, drawn, 16) | {"train_loss": done.losses},
        reference=reference_run("two_layer", drawn, steps=30, batch_size=16, learning_rate=0.05),
    )


def test_unchanged_lesson_passes_the_parity_check(params: Params, drawn: data.DataSet):
    report = judge(params, {NUMPY: measured(drawn, create)})
    assert report.passed, table(report)
    row = report.implementations[NUMPY]
    assert row.test_loss < 1
    y, predictions = drawn.test["y"], train(drawn).loop.predict(*drawn.test_inputs())
    assert row.test_r2 == pytest.approx(1 - np.sum((predictions - y) ** 2) / np.sum((y - np.mean(y, 0)) ** 2))


def broken_lesson(name: str, line: str, broken: str) -> Callable[[Weights, float], Any]:
    """A function that constructs a lesson in which `line` is `broken`."""
    source = Path(str(load_implementation(LESSONS[name], name).__init__.__code__.co_filename)).read_text()
    assert line in source
    namespace: dict = {"__name__": "broken"}
    exec(compile(source.replace(line, broken), name, "exec"), namespace)  # noqa: S102

    def create_broken(weights: Weights, learning_rate: float) -> Any:
        implementation = namespace["Implementation"](weights, learning_rate=learning_rate, device="cpu")
        return load_runtime(name)(HOST).loop(implementation, weights)

    return create_broken


@pytest.mark.parametrize(
    ("name", "line", "broken"),
    [
        ("numpy_arrays", "grad_h_relu * (h > 0)", "grad_h_relu"),
        ("numpy_arrays", "2 * (y_pred - y)", "(y_pred - y)"),
        ("torch_tensors", "grad_h_relu * (h > 0)", "grad_h_relu"),
        ("torch_function", "grad_h_relu * (h > 0)", "grad_h_relu"),
    ],
)
def test_broken_backward_pass_fails_the_parity_check(
    params: Params, drawn: data.DataSet, name: str, line: str, broken: str
):
    """In each lesson with a backward pass by hand: the check finds the wrong gradient, although the loss still
    falls."""
    evaluation = measured(drawn, broken_lesson(name, line, broken), name)
    report = judge(params, {NUMPY: evaluation})
    assert not report.passed
    assert "gradient" in report.implementations[NUMPY].failed
    assert "✗ FAILED" in table(report)
    assert evaluation.test_loss < evaluation.initial_test_loss
    single = params.model_copy(update={"dtype": "float32"})
    assert not judge(single, {NUMPY: evaluation}).passed, "the wide tolerance lets it through"


@pytest.mark.parametrize(
    ("line", "broken", "failed"),
    [
        ("(x @ self.w1).relu()", "(x @ self.w1).tanh()", "gradient"),
        (".relu()", ".tanh()", "gradient"),
        (".to(self.w1.device) @ self.w1).relu()", ".to(self.w1.device) @ self.w1)", "predictions"),
    ],
    ids=["step", "step and predict", "predict"],
)
def test_wrong_forward_pass_fails_the_parity_check(
    params: Params, drawn: data.DataSet, line: str, broken: str, failed: str
):
    evaluation = measured(drawn, broken_lesson("torch_autograd", line, broken), "torch_autograd")
    assert failed in judge(params, {NUMPY: evaluation}).implementations[NUMPY].failed


def test_initial_weights_are_refused_by_the_evaluation(drawn: data.DataSet):
    done = train(drawn, create)
    results = outputs(create, done.loop, drawn, 16) | {"train_loss": done.losses}
    reference = reference_run("two_layer", drawn, steps=30, batch_size=16, learning_rate=0.05)
    with pytest.raises(UserError, match="The weights on disk do not give the predictions"):
        evaluate("two_layer", drawn, weights=drawn.initial, outputs=results, reference=reference)


def test_chosen_points_cover_all_outputs_and_the_whole_test_set():
    y = np.arange(50_000.0).reshape(5000, 10)
    points = chosen_points(y, -y)
    targets = {target for target, _ in points}
    assert len(points) == len(targets) == POINTS
    assert all(prediction == -target for target, prediction in points)
    assert {target % 10 for target in targets} == set(range(10))
    assert {min(targets), max(targets)} == {0, 49_999}
    assert chosen_points(y[:2], -y[:2]) == [(number, -number) for number in range(20)]


def test_nan_measure_exceeds_its_tolerance(params: Params, drawn: data.DataSet):
    evaluation = measured(drawn, create)
    parity = evaluation.parity.model_copy(update={"loss_curve": float("nan")})
    assert parity.over(params.tolerances) == ["loss_curve"]
