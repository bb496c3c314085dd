"""Benchmarks: who takes turns, what is counted, and what may be said of the figures. No test here judges a time."""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import HOST, LESSONS, REPOSITORY, TINY, Lesson

from pipeline import findings
from pipeline.benchmark import FEWEST_ROUNDS, benchmark, draw, in_turn, side_by_side
from pipeline.contract import Array, load_implementation, load_problem, load_runtime
from pipeline.findings import Case
from pipeline.params import Benchmark
from pipeline.records import read_rows
from pipeline.statistics import Estimate, ratio, spread, verdict

SIZES: Any = Benchmark.model_validate(TINY["benchmark"])


@pytest.mark.parametrize("name", LESSONS)
def test_every_lesson_beside_the_floors(name: str):
    problem = LESSONS[name]
    samples = list(benchmark(name, problem, SIZES.of(problem), seconds=0.1, dtype="float32", environment=HOST))
    graph = {"eager", "build"} if name.startswith("tensorflow") else set()
    for case in SIZES.of(problem):
        mine = [sample for each, _, sample in samples if each is case]
        assert {sample.contestant for sample in mine} == {"step", "floor_numpy", "floor_torch"} | graph
        rounds = Counter(sample.contestant for sample in mine if sample.contestant != "build")
        assert len(set(rounds.values())) == 1
        assert rounds["step"] >= FEWEST_ROUNDS
        assert all(sample.steps > 0 and sample.seconds > 0 for sample in mine)


def test_contestants_take_turns_and_half_a_turn_is_not_timed():
    calls: list[tuple[str, int]] = []
    contestants = {name: lambda steps, name=name: calls.append((name, steps)) for name in "ab"}
    samples = list(in_turn(contestants, seconds=0.01, synchronize=lambda: calls.append(("idle", 0))))
    assert [sample.contestant for sample in samples] == ["a", "b"] * (len(samples) // 2)
    turns = calls[-len(samples) * 4 - 2 * (len(samples) // 2) :]
    first = samples[0].contestant, samples[0].steps
    assert turns[:5] == [("idle", 0), first, ("idle", 0), first, ("idle", 0)]


def test_a_block_has_the_sizes_of_its_case():
    case = SIZES.recurrent[1]
    weights, batches = draw("recurrent", case, "float64")
    assert weights["wh"].shape == (6, 6)
    assert batches["x"].shape[1:] == (8, 6, 4)
    assert batches["lengths"].shape == batches["y"].shape[:2] == (len(batches["x"]), 8)
    assert {array.dtype for array in (*weights.values(), batches["x"], batches["y"])} == {np.dtype(np.float64)}


def test_the_products_of_a_two_layer_step():
    weights, batches = draw("two_layer", SIZES.two_layer[1], "float32")
    x, y = batches["x"][0], batches["y"][0]
    shapes = [(left.shape, right.shape) for left, right in load_problem("two_layer").products(weights, x, y)]
    assert shapes == [
        ((16, 20), (20, 8)),
        ((16, 8), (8, 3)),
        ((8, 16), (16, 3)),
        ((16, 3), (3, 8)),
        ((20, 16), (16, 8)),
    ]
    sizes = {"batch_size": 16, "inputs": 20, "hidden": 8, "outputs": 3}
    assert findings.operations(sizes) == sum(2 * n * k * m for (n, k), (_, m) in shapes)


def test_the_products_of_a_recurrent_step_touch_no_padding():
    weights, batches = draw("recurrent", SIZES.recurrent[1], "float32")
    x, lengths, y = (array[0] for array in batches.values())
    pairs = load_problem("recurrent").products(weights, x, lengths, y)
    multiplications = sum(left.shape[0] * left.shape[1] * right.shape[1] for left, right in pairs)
    total, later = int(lengths.sum()), int((lengths - 1).sum())
    assert multiplications == 2 * total * 4 * 6 + 3 * later * 6 * 6 + 3 * 8 * 6 * 3


@pytest.mark.parametrize("framework", ["numpy", "torch", "tensorflow"])
def test_a_floor_does_any_number_of_steps(framework: str):
    runtime = load_runtime(framework)
    runtime.start(HOST)
    weights, batches = draw("two_layer", SIZES.two_layer[0], "float32")
    products = load_problem("two_layer").products
    factors = [products(weights, *batch) for batch in zip(*batches.values(), strict=True)]
    for count in (0, 1, len(factors) + 1):
        runtime.multiply(factors)(count)


# What the runtimes do to make a step faster does not change it.


@pytest.mark.parametrize("name", [name for name in LESSONS if name.startswith("tensorflow")])
def test_a_graph_and_its_lines_run_eagerly_compute_the_same(name: str):
    lesson = Lesson(name, LESSONS[name], "float64")
    graph, eager = lesson.create(), lesson.create()
    for implementation in (graph, eager):
        implementation.load(lesson.batches)
    with load_runtime(name).eagerly():
        losses = lesson.train(eager, 3, 2)
    np.testing.assert_allclose(lesson.train(graph, 3, 2), losses, rtol=1e-12)
    for key, weight in graph.weights().items():
        np.testing.assert_allclose(weight, eager.weights()[key], rtol=1e-11, atol=1e-13)


def test_xla_is_for_graphs_that_are_small_and_have_one_loop():
    runtime = load_runtime("tensorflow")
    device = runtime.start(HOST)
    for problem, name, sizes, compiled in (
        ("two_layer", "tensorflow_graph", SimpleNamespace(inputs=20, hidden=8, outputs=3), True),
        ("two_layer", "tensorflow_graph", SimpleNamespace(inputs=1024, hidden=1024, outputs=8), False),
        ("recurrent", "tensorflow_scan", SimpleNamespace(inputs=4, hidden=6, outputs=3), False),
    ):
        weights = load_problem(problem).draw_weights(sizes, np.random.default_rng(0))
        plain = load_implementation(problem, name)(weights, learning_rate=0.1, device=device)
        before: Any = plain.graph  # pyright: ignore[reportAttributeAccessIssue]
        assert (runtime.prepare(plain).graph is not before) == compiled


def test_a_block_of_data_is_trained_on_where_it_lies(tmp_path: Path):
    weights, batches = draw("two_layer", SIZES.two_layer[0], "float32")
    np.save(tmp_path / "x.npy", batches["x"])
    mapped = np.load(tmp_path / "x.npy", mmap_mode="c")  # as pipeline/data.py reads it
    runtime, implementation = load_runtime("tensorflow"), load_implementation("two_layer", "tensorflow_graph")
    lesson: Any = runtime.prepare(implementation(weights, learning_rate=0.1, device=runtime.start(HOST)))
    lesson.load(batches | {"x": mapped})
    assert np.shares_memory(np.asarray(memoryview(lesson.x)), mapped)


def test_the_scan_is_traced_once_for_all_lengths():
    lesson = Lesson("tensorflow_scan", "recurrent", "float64")
    implementation: Any = lesson.create()
    for longest in (1, 4, 6):
        batches = dict(lesson.batches)
        batches["x"] = batches["x"][:, :, :longest]
        batches["lengths"] = np.minimum(batches["lengths"], longest)
        implementation.load(batches)
        lesson.train(implementation, 2)
    assert implementation.graph.experimental_get_tracing_count() == 1


def test_on_a_gpu_a_replayed_call_is_the_same_call():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("CUDA graphs are not tested: no CUDA device")
    runtime = load_runtime("torch")
    device = runtime.start(replace(HOST, device="cuda:0"))
    lesson = Lesson("torch_autograd", "two_layer", "float32")
    plain = load_implementation("two_layer", "torch_autograd")(lesson.initial, learning_rate=0.1, device=device)
    captured = runtime.prepare(
        load_implementation("two_layer", "torch_autograd")(lesson.initial, learning_rate=0.1, device=device)
    )
    plain.load(lesson.batches)
    captured.load(lesson.batches)
    np.testing.assert_array_equal(lesson.train(captured, *[3] * 5), lesson.train(plain, *[3] * 5))
    assert len(captured.graphs) == 1


# What is made of the samples.

SIZE = {"batch_size": 64, "inputs": 1000, "hidden": 100, "outputs": 10}


def noisy(median: float, seed: int = 0, rounds: int = 12) -> Array:
    return median * (1 + 0.02 * np.random.default_rng(seed).standard_normal(rounds))


def case(sizes: dict[str, int] | None = None, total: float = 64, **medians: float) -> Case:
    seconds = {name: noisy(median, seed) for seed, (name, median) in enumerate(medians.items())}
    return Case(sizes or SIZE, total, {"floor_numpy": noisy(1e-4, 77), **seconds})


def test_faster_is_said_only_when_the_interval_excludes_one():
    assert verdict(ratio(noisy(1.0, 1), noisy(2.0, 2))) == "faster"
    assert verdict(ratio(noisy(2.0, 1), noisy(1.0, 2))) == "slower"
    assert verdict(Estimate(0.9, 0.8, 1.1)) == "no difference"


def test_the_checker_finds_no_difference_between_the_same_thing_twice():
    found = Counter(verdict(ratio(noisy(1.0, 2 * seed), noisy(1.0, 2 * seed + 1))) for seed in range(200))
    assert found["no difference"] >= 180, found
    assert verdict(ratio(noisy(1.0), noisy(1.0))) == "no difference"


def test_a_slow_minute_that_is_slow_for_all_does_not_widen_the_ratio():
    drift = np.linspace(1, 3, 12)
    of_both = ratio(noisy(2.0, 1) * drift, noisy(1.0, 2) * drift)
    assert of_both.low > 1.8
    assert of_both.high < 2.2


def test_quartiles():
    assert spread(np.arange(5.0)) == (2.0, 1.0, 3.0)


def test_the_floor_is_the_faster_of_the_libraries():
    measured = case(step=3e-4, floor_torch=2e-4)
    assert measured.floor == "floor_numpy"
    assert measured.multiple.value == pytest.approx(3, rel=0.05)


def test_break_even():
    count = findings.break_even(case(build=0.2, eager=2e-3, step=1e-3))
    assert count.value == pytest.approx(199, rel=0.1)
    assert count.low < count.value < count.high
    assert findings.steps(findings.break_even(case(build=0.2, eager=1e-3, step=2e-3))) == "never"
    assert findings.steps(Estimate(100, 50, np.inf)) == "100 steps (50 … never)"


def sized(batch: int, **medians: float) -> Case:
    return case(SIZE | {"batch_size": batch}, **medians)


GPU = [
    sized(1, step=1e-4, numpy_arrays=5e-5, cpu=5e-5),
    sized(2, step=1e-4, numpy_arrays=2e-4, cpu=5e-5),
    sized(3, step=1e-4, numpy_arrays=7e-3, cpu=7e-3),
]


def test_crossover_is_where_it_is_faster_from_there_on():
    reached, best, highest = findings.crossover(GPU, "numpy_arrays")
    assert reached is GPU[1]
    assert best is GPU[2]
    assert highest.value == pytest.approx(70, rel=0.1)
    assert findings.crossover(GPU, "numpy_arrays", 50)[0] is GPU[2]
    assert findings.crossover(GPU, "numpy_arrays", 100)[0] is None
    assert findings.crossover([*GPU, sized(4, step=1e-4, numpy_arrays=1e-5)], "numpy_arrays")[0] is None


def test_loops_are_compared_where_one_thing_alone_differs():
    def lengths(longest: int, total: float, step: float) -> Case:
        return case(SIZE | {"min_length": 1, "max_length": longest}, total, step=step)

    by_sum = [lengths(16, 4000, 4e-3), lengths(32, 4100, 4e-3), lengths(32, 8200, 8e-3)]
    sum_said, longest_said = findings.loops(by_sum)
    assert sum_said.startswith("2 times the sum of lengths at the same longest (32) takes 2")
    assert longest_said.startswith("2 times the longest at the same sum (about 4000) takes 1")
    assert findings.loops(by_sum[:1]) == []


ROW = {"breaches": [], "gradient_relative_error": 1e-7, "loss_curve_relative_difference": 1e-6}


def claims(device: str, **benchmarks: list[Case]) -> dict[str, findings.Claim]:
    comparison = {"implementations": dict.fromkeys(benchmarks, ROW)}
    return {claim.text[:4]: claim for claim in findings.claims(benchmarks, case(), comparison, device)}


def test_the_claim_of_50_times_needs_a_gpu_to_be_answered():
    assert claims("cpu", torch_tensors=[sized(1, step=1e-4)])["GPUs"].verdict == "not answered here"
    holds = claims("cuda:0", torch_tensors=GPU)["GPUs"]
    assert holds.verdict == "holds"
    assert "beats NumPy on this host from 2 × 1000" in holds.finding
    assert "beats PyTorch on this host from 3 × 1000" in holds.finding
    assert "50 × over NumPy is reached from 3 × 1000" in holds.finding
    fails = claims("cuda:0", torch_tensors=GPU[:2])["GPUs"]
    assert fails.verdict == "does not hold"
    assert "PyTorch on this host at no size up to 2 × 1000" in fails.finding
    assert "50 × over NumPy is not reached up to 2 × 1000" in fails.finding


@pytest.mark.parametrize(
    ("eager", "expected"),
    [((2e-3, 2e-3), "holds"), ((2e-3, 1e-4), "partly"), ((1e-4, 1e-4), "does not hold")],
)
def test_the_claim_of_the_static_graph(eager: tuple[float, float], expected: str):
    measured = [sized(batch, build=0.1, eager=seconds, step=1e-3) for batch, seconds in enumerate(eager, 1)]
    claim = claims("cpu", tensorflow_graph=measured)["A st"]
    assert claim.verdict == expected
    assert ("never" in claim.finding) == (expected != "holds")


def test_a_breach_of_parity_is_no_claim_that_holds():
    comparison = {"implementations": {"torch_loop": ROW, "tensorflow_scan": ROW | {"breaches": ["gradient"]}}}
    one = [case(SIZE | {"min_length": 1, "max_length": 4}, step=1e-3)]
    (claim,) = findings.claims({"torch_loop": one, "tensorflow_scan": one}, case(), comparison, "cpu")
    assert claim.verdict == "does not hold"


def test_implementations_are_compared_where_they_took_turns():
    together = case(torch_tensors=2e-4, torch_autograd=4e-4)
    comparison = {"implementations": dict.fromkeys(together.seconds, ROW)}
    alone = {name: [sized(1, step=1e-3)] for name in together.seconds}
    _, claim = findings.claims(alone, together, comparison, "cpu")
    assert re.search(r"a step takes (1\.9|2|2\.0)\d* × \(", claim.finding)


def test_implementations_side_by_side():
    names = ["numpy_arrays", "torch_tensors", "torch_function"]
    size = SIZES.two_layer[1]
    samples = list(side_by_side(names, "two_layer", size, seconds=0.1, dtype="float32", environment=HOST))
    assert all(each is size for each, _, _ in samples)
    rounds = Counter(sample.contestant for _, _, sample in samples)
    assert rounds.keys() == {*names, "floor_numpy", "floor_torch"}
    assert len(set(rounds.values())) == 1
    assert [sample.contestant for _, _, sample in samples][2:5] == names


# The script for a GPU.


def test_the_gpu_benchmark_needs_torch_and_numpy_and_nothing_else(tmp_path: Path):
    absent = ("dvc", "mlflow", "pydantic", "pynvml", "rich", "safetensors", "tensorflow", "threadpoolctl", "yaml")
    options = ["--device", "cpu", "--seconds", "0.05", "--sizes", "2", "--output", str(tmp_path)]
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({absent})); sys.argv[1:] = {options};"
        "runpy.run_module('benchmarks.gpu', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("torch_tensors", "torch_autograd", "torch_function"):
        assert f"{name}: 16 × 256 × 32 × 10: " in done.stdout
        assert f"{name}: the tutorial's size: " in done.stdout
    for variant in ("nondeterministic", "tf32"):
        assert f"torch_autograd, {variant}: 64 × 1000 × 100 × 10: " in done.stdout
    (folder,) = tmp_path.iterdir()
    samples = findings.cases(read_rows(folder / "torch_autograd-tf32.csv"))
    assert [each.label for each in samples] == ["16 × 256 × 32 × 10", "64 × 1000 × 100 × 10"]
    facts = json.loads((folder / "machine.json").read_text())
    assert {"device_name", "cpu_name", "threads", "versions", "measured_at", "measured_on", "commit"} <= facts.keys()


def test_the_gpu_benchmark_without_a_gpu_is_a_sentence(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cuda:7", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("ERROR: no NVIDIA GPU answers as cuda:7")
    assert "--device cpu" in done.stderr
    assert not list(tmp_path.iterdir())
