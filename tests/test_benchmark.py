"""The one harness: what is interleaved, in which order, what is counted. Real times are judged by `make test-benchmark`
(test_honesty.py)."""

import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import HOST, LESSONS, REPOSITORY, TINY, Lesson

from benchmarks import bench
from pipeline import files
from pipeline.contract import load_problem
from pipeline.environment import framework_of
from pipeline.errors import UserError
from pipeline.measuring import samples
from pipeline.measuring.benchmark import Effort, Size, benchmark
from pipeline.measuring.candidates import Candidate, Slowed, draw
from pipeline.measuring.plan import default_plan
from pipeline.measuring.samples import HEADER, Sample
from pipeline.params import Benchmark, load_params

SIZES: Any = Benchmark.model_validate(TINY["benchmark"])
EFFORT = Effort(processes=2, rounds=3, turn_seconds=0.002)


def sizes(problem: str) -> list[dict[str, int]]:
    return [case.model_dump() for case in SIZES.of(problem)]


@pytest.fixture(scope="module")
def measured() -> tuple[list[Sample], float]:
    """All seven at small sizes, with two candidates of each kind."""
    plan = []
    for problem in ("two_layer", "recurrent"):
        names = [name for name in LESSONS if LESSONS[name] == problem]
        beside = ["lower_bound/numpy", "lower_bound/torch", *(f"tuned/{name}" for name in names)]
        plan += [Size(problem, each, [*names, *beside]) for each in sizes(problem)]
    return benchmark(plan, effort=EFFORT, dtype="float32", environment=HOST, seed=3)


def turns(found: list[Sample]) -> list[Sample]:
    return [sample for sample in found if not sample.candidate.startswith("build/")]


def test_every_candidate_takes_a_turn_in_every_round(measured: tuple[list[Sample], float]):
    counts = Counter((*sample[:8], sample.candidate, sample.process) for sample in turns(measured[0]))
    assert set(counts.values()) == {EFFORT.rounds}
    candidates = {sample.candidate for sample in measured[0]}
    assert candidates >= {*LESSONS, *(f"tuned/{name}" for name in LESSONS), "lower_bound/numpy", "lower_bound/torch"}
    graphs = {name for name in LESSONS if name.startswith("tensorflow")}
    assert {name for name in candidates if name.startswith("eager/")} == {f"eager/{name}" for name in graphs}
    assert all(sample.steps > 0 and sample.seconds > 0 for sample in measured[0])
    assert {sample.replays for sample in measured[0]} == {0}  # nothing is replayed on a CPU


def test_the_order_is_another_in_every_round_and_is_recorded(measured: tuple[list[Sample], float]):
    orders = defaultdict(list)
    for sample in turns(measured[0]):
        if sample.problem == "two_layer":
            orders[sample[:8], sample.process, sample.round].append((sample.position, sample.candidate))
    for order in orders.values():
        assert [position for position, _ in order] == list(range(len(order)))
    assert len({tuple(order) for order in orders.values()}) == len(orders)


def test_sizes_that_differ_in_lengths_alone_are_interleaved_with_each_other(measured: tuple[list[Sample], float]):
    in_a_round = [
        sample.max_length
        for sample in turns(measured[0])
        if sample.problem == "recurrent" and (sample.process, sample.round) == (0, 0)
    ]
    assert in_a_round != sorted(in_a_round)
    assert in_a_round != sorted(in_a_round, reverse=True)


def test_a_graph_is_built_once_for_each_size_and_process(measured: tuple[list[Sample], float]):
    builds = Counter(
        (sample.candidate, *sample[1:7], sample.process) for sample in measured[0] if "build/" in sample[8]
    )
    assert set(builds.values()) == {1}
    assert len(builds) == EFFORT.processes * sum(
        len(sizes(LESSONS[name])) for name in LESSONS if name.startswith("tensorflow")
    )


def test_the_same_seed_gives_the_same_order():
    plan = [Size("two_layer", sizes("two_layer")[0], ["numpy_arrays", "self/numpy_arrays", "lower_bound/numpy"])]

    def order(seed: int) -> list[str]:
        found, _ = benchmark(plan, effort=EFFORT, dtype="float32", environment=HOST, seed=seed)
        return [sample.candidate for sample in found]

    assert order(1) == order(1) != order(2)


def test_a_candidate_that_fails_is_a_sentence():
    plan = [Size("two_layer", sizes("two_layer")[0], ["numpy_nowhere"])]
    with pytest.raises(UserError, match="The benchmark failed in its process 1"):
        benchmark(plan, effort=EFFORT, dtype="float32", environment=HOST)


def test_the_table_comes_back_as_it_was_written(measured: tuple[list[Sample], float], tmp_path: Any):
    files.write_rows(tmp_path / "samples.csv", HEADER, measured[0])
    provenance = {"cpus_of_other_processes": 0.0, "cpus": 2, "device": "cpu"}
    found = samples.read(files.read_rows(tmp_path / "samples.csv"), provenance)
    assert [case.problem for case in found.cases] == ["two_layer"] * 2 + ["recurrent"] * 4
    case = found.cases[0]
    assert {len(processes) for processes in case.seconds.values()} == {EFFORT.processes}
    ratio = case.ratio("numpy_arrays", "tuned/numpy_arrays")
    assert ratio
    assert ratio.low <= ratio.value <= ratio.high
    by_hand = []
    for process in range(EFFORT.processes):
        above, below = (of(measured[0], case, name, process) for name in ("numpy_arrays", "tuned/numpy_arrays"))
        pairs = zip(above, below, strict=True)
        by_hand.append(np.median([np.log(one.seconds / one.steps * two.steps / two.seconds) for one, two in pairs]))
    assert ratio.value == pytest.approx(np.exp(np.mean(by_hand)))


def of(found: list[Sample], case: samples.Case, candidate: str, process: int) -> list[Sample]:
    wanted = tuple(case.sizes.values())
    mine = [each for each in found if (each.candidate, each.process) == (candidate, process) and each[1:7] == wanted]
    return sorted(mine, key=lambda sample: sample.round)


# What the candidates are.


def test_a_chunk_has_the_sizes_of_its_case():
    weights, chunk = draw("recurrent", SIZES.recurrent[1], "float64")
    assert weights["wh"].shape == (6, 6)
    assert chunk["x"].shape[1:] == (8, 6, 4)
    assert chunk["lengths"].shape == chunk["y"].shape[:2] == (len(chunk["x"]), 8)
    assert {array.dtype for array in (*weights.values(), chunk["x"], chunk["y"])} == {np.dtype(np.float64)}


def test_the_products_of_a_two_layer_step():
    weights, chunk = draw("two_layer", SIZES.two_layer[1], "float32")
    x, y = chunk["x"][0], chunk["y"][0]
    shapes = [(left.shape, right.shape) for left, right in load_problem("two_layer").products(weights, x, y)]
    assert shapes == [
        ((16, 20), (20, 8)),
        ((16, 8), (8, 3)),
        ((8, 16), (16, 3)),
        ((16, 3), (3, 8)),
        ((20, 16), (16, 8)),
    ]
    case = samples.Case("two_layer", {"batch_size": 16, "inputs": 20, "hidden": 8, "outputs": 3}, 16, {}, True, False)
    assert case.operations == sum(2 * n * k * m for (n, k), (_, m) in shapes)


def test_the_products_of_a_recurrent_step_touch_no_padding():
    weights, chunk = draw("recurrent", SIZES.recurrent[1], "float32")
    x, lengths, y = (array[0] for array in chunk.values())
    pairs = load_problem("recurrent").products(weights, x, lengths, y)
    multiplications = sum(left.shape[0] * left.shape[1] * right.shape[1] for left, right in pairs)
    total, later = int(lengths.sum()), int((lengths - 1).sum())
    assert multiplications == 2 * total * 4 * 6 + 3 * later * 6 * 6 + 3 * 8 * 6 * 3


@pytest.mark.parametrize("kind", ["tuned", "peers"])
def test_what_lessons_are_set_beside_takes_their_steps(kind: str):
    """Parity of every tuned variant, and of everything that a user might write instead, with the lesson beside it."""
    candidates = [f"tuned/{name}" for name in LESSONS if (REPOSITORY / f"benchmarks/tuned/{name}.py").is_file()]
    if kind == "peers":
        candidates = [
            peer for size in bench.plan(["small", "recurrent"]) for peer in size.candidates if "peers" in peer
        ]
    assert candidates
    for candidate in candidates:
        problem = "recurrent" if any(word in candidate for word in ("loop", "scan", "examples")) else "two_layer"
        lesson = Lesson({"recurrent": "torch_loop", "two_layer": "torch_tensors"}[problem], problem, "float64")
        beside: Any = Candidate(candidate, problem, HOST, lesson.initial)
        beside.place(lesson.chunk)
        beside.run(3)
        weights = lesson.initial
        for step in range(3):
            _, gradients = lesson.reference(weights, step)
            weights = {key: weights[key] - 1e-3 * gradients[key] for key in weights}
        loop = getattr(beside.loop, "loop", beside.loop)
        for key, weight in loop.weights().items():
            np.testing.assert_allclose(weight, weights[key], rtol=1e-6, atol=1e-9, err_msg=candidate)


def test_a_slowdown_is_planted_evenly():
    taken: list[int] = []
    loop: Any = SimpleNamespace(run=taken.append, place=None, compile=None)
    slowed = Slowed(loop)
    for _ in range(40):
        slowed.run(3)
    assert sum(taken) == 126


def test_a_variant_is_set_for_itself_alone():
    import torch

    lesson = Lesson("torch_tensors", "two_layer", "float32")
    free = Candidate("torch_tensors+nondeterministic", "two_layer", HOST, lesson.initial)
    free.place(lesson.chunk)
    seen = []
    free.loop.run = lambda _: seen.append(torch.get_deterministic_debug_mode())
    with free.settings():
        free.run(1)
    assert (seen, torch.get_deterministic_debug_mode()) == ([0], 2)


def test_the_default_plan(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)
    params = load_params()
    plan = default_plan(params, HOST)
    assert [size.sizes for size in plan] == [
        case.model_dump() for each in ("two_layer", "recurrent") for case in params.benchmark.of(each)
    ]
    beside = [size for size in plan if any(name.startswith("tuned/") for name in size.candidates)]
    assert [size.sizes for size in beside] == [params.sizes("two_layer"), params.sizes("recurrent")]
    on_gpu = default_plan(params, replace(HOST, device="cuda:0"))
    assert {"cpu/torch_tensors", "lower_bound/torch", "numpy_arrays"} <= set(on_gpu[0].candidates)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_each_interpreter_has_a_lower_bound_for_its_candidates(monkeypatch: pytest.MonkeyPatch, device: str):
    from pipeline.measuring.candidates import python_of

    monkeypatch.setenv("TORCH_PYTHON", "/torch")
    monkeypatch.setenv("TENSORFLOW_PYTHON", "/tensorflow")
    monkeypatch.chdir(REPOSITORY)
    for size in default_plan(load_params(), replace(HOST, device=device)):
        bounds = {python_of(name) for name in size.candidates if name.startswith("lower_bound/")}
        assert {python_of(name) for name in size.candidates} == bounds == {"/torch", "/tensorflow"}
        if device != "cpu":
            frameworks = {framework_of(name) for name in size.candidates if name in LESSONS}
            assert {f"lower_bound/{framework}" for framework in frameworks} <= set(size.candidates)


def test_provenance_says_what_a_benchmark_was_taken_on():
    from pipeline.provenance import provenance

    found = json.loads(json.dumps(provenance(HOST, "cpu", "the CPU")))
    assert {
        "device_name",
        "cpu_name",
        "threads",
        "versions",
        "variables",
        "measured_at",
        "measured_on",
        "commit",
    } <= set(found)


# The benchmark for a GPU.


@pytest.mark.faults  # for its minutes
def test_the_gpu_benchmark_needs_torch_and_numpy_and_nothing_else(tmp_path: Path):
    """The packages that may be missing are hidden from it and from the processes that it starts."""
    absent = ["dvc", "mlflow", "pydantic", "pynvml", "rich", "safetensors", "tensorflow", "threadpoolctl", "yaml"]
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        f"absent = {absent}\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name in absent else find(name, *rest)\n"
    )
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--processes", "2", "--sizes", "2"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("torch_tensors", "torch_autograd", "torch_function"):
        assert f"{name}: 0% of the timed steps were replays" in done.stdout
        assert re.search(rf"{name}: \d+\.\d µs a step at the tutorial's size; aim ≤ 25 µs", done.stdout)
        if "cannot tell" not in done.stdout:  # other tests run beside this one
            assert re.search(rf"{name}: \d+% of the matrix products' speed at 64 × 1000 × 100 × 10", done.stdout)
    assert "“GPUs often provide speedups of 50x or greater.” not answered here" in done.stdout
    parity = done.stdout.partition("Parity")[2].splitlines()
    for name in ("torch_tensors", "torch_autograd+tf32", "numpy_arrays"):
        (row,) = (line for line in parity if line.startswith(f"{name} "))
        assert all(float(error) < 1e-3 for error in row.split()[1:])
    (folder,) = (tmp_path / "out").iterdir()
    found = samples.read(files.read_rows(folder / "samples.csv"), files.read_json(folder / "machine.json"))
    assert [case.label for case in found.cases] == ["16 × 256 × 32 × 10", "64 × 1000 × 100 × 10"]


def test_the_gpu_benchmark_without_a_gpu_is_a_sentence(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cuda:77", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("ERROR: no NVIDIA GPU answers as cuda:77")
    assert "--device cpu" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.faults  # for its minutes
def test_make_bench_sets_the_lessons_beside_everything(tmp_path: Path):
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("pipeline", "stages", "benchmarks", "params.yaml", ".git"):
        (clone / name).symlink_to(REPOSITORY / name)
    command = [sys.executable, "-m", "benchmarks.bench", "--at", "small", "--processes", "2", "--effort", "0.1"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], cwd=clone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for goal in bench.GOALS:
        if goal.size == "small" and goal.beside not in (bench.BEST_MODULE, bench.JAX):
            assert re.search(rf"^{goal.lesson} +{re.escape(goal.beside)} +(\d|cannot tell)", done.stdout, re.MULTILINE)
    assert bench.WITHOUT in done.stdout
    assert (clone / "results/bench.csv").read_bytes() == (tmp_path / "out/samples.csv").read_bytes()
    assert json.loads((tmp_path / "out/machine.json").read_text())["threads"] >= 1
