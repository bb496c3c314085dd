"""The one harness: what is interleaved, in which order, what is counted. Real times are judged by `make test-benchmark`
(test_honesty.py)."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import HOST, LESSONS, REPOSITORY, TINY, Lesson
from fake_cuda import GPU

from benchmarks import bench, gpu
from pipeline import clock, files
from pipeline.benchmark import candidates, samples
from pipeline.benchmark.benchmark import GPU_WARM_SECONDS, Effort, Size, _calibrated, benchmark, measure
from pipeline.benchmark.candidates import Candidate, Slowed, draw
from pipeline.benchmark.monitor import Monitor
from pipeline.benchmark.plan import default_plan
from pipeline.benchmark.samples import HEADER, Sample, parts_of
from pipeline.contract import load_problem
from pipeline.environment import framework_of
from pipeline.errors import UserError, out_of_memory
from pipeline.params import Benchmark, load_params

SIZES: Any = Benchmark.model_validate(TINY["benchmark"])
EFFORT = Effort(processes=2, rounds=3, turn_seconds=0.002)


def sizes(problem: str) -> list[dict[str, int]]:
    return [case.model_dump() for case in SIZES.of(problem)]


@pytest.fixture(scope="module")
def measured() -> tuple[list[Sample], dict[str, Any]]:
    """All seven at small sizes, with two candidates of each kind."""
    plan = []
    for problem in ("two_layer", "recurrent"):
        names = [name for name in LESSONS if LESSONS[name] == problem]
        beside = ["lower_bound/numpy", "lower_bound/torch", *(f"tuned/{name}" for name in names)]
        plan += [Size(problem, each, [*names, *beside]) for each in sizes(problem)]
    return benchmark(plan, effort=EFFORT, dtype="float32", environment=HOST, seed=3)


def turns(found: list[Sample]) -> list[Sample]:
    return [sample for sample in found if not sample.candidate.startswith("build/")]


def test_every_candidate_takes_a_turn_in_every_round(measured: tuple[list[Sample], dict[str, Any]]):
    counts = Counter((*sample[:8], sample.candidate, sample.process) for sample in turns(measured[0]))
    assert set(counts.values()) == {EFFORT.rounds}
    candidates = {sample.candidate for sample in measured[0]}
    assert candidates >= {*LESSONS, *(f"tuned/{name}" for name in LESSONS), "lower_bound/numpy", "lower_bound/torch"}
    graphs = {name for name in LESSONS if name.startswith("tensorflow")}
    assert {name for name in candidates if name.startswith("eager/")} == {f"eager/{name}" for name in graphs}
    assert all(sample.steps > 0 and sample.seconds > 0 for sample in measured[0])
    assert {sample.replays for sample in measured[0]} == {0}  # nothing is replayed on a CPU


def test_the_order_is_another_in_every_round_and_is_recorded(measured: tuple[list[Sample], dict[str, Any]]):
    orders = defaultdict(list)
    for sample in turns(measured[0]):
        if sample.problem == "two_layer":
            orders[sample[:8], sample.process, sample.round].append((sample.position, sample.candidate))
    for order in orders.values():
        assert [position for position, _ in order] == list(range(len(order)))
    assert len({tuple(order) for order in orders.values()}) == len(orders)


def test_sizes_that_differ_in_lengths_alone_are_interleaved_with_each_other(
    measured: tuple[list[Sample], dict[str, Any]],
):
    in_a_round = [
        sample.max_length
        for sample in turns(measured[0])
        if sample.problem == "recurrent" and (sample.process, sample.round) == (0, 0)
    ]
    assert in_a_round != sorted(in_a_round)
    assert in_a_round != sorted(in_a_round, reverse=True)


def test_a_graph_is_built_once_for_each_size_and_process(measured: tuple[list[Sample], dict[str, Any]]):
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


class Paced:
    """A candidate whose steps take `pace` seconds and whose calls take 50 µs, the calls in `disturbed` 90 ms more."""

    def __init__(self, pace: float, disturbed: set[int], least_steps: int = 1, *, on_gpu: bool = False) -> None:
        self.pace, self.disturbed, self.least_steps, self.on_gpu = pace, disturbed, least_steps, on_gpu
        self.now, self.calls = 0.0, 0

    def run(self, steps: int) -> None:
        self.now += 5e-5 + steps * self.pace + 0.09 * (self.calls in self.disturbed)
        self.calls += 1

    def settings(self) -> Any:
        return nullcontext()


def calibrated(monkeypatch: pytest.MonkeyPatch, candidate: Any, seconds: float = 0.008) -> tuple[int, int]:
    monkeypatch.setattr(clock.time, "perf_counter", lambda: candidate.now)
    return _calibrated(candidate, seconds, lambda: None)


@pytest.mark.parametrize("pace", [1e-6, 3e-5, 3e-4, 2e-3])
@pytest.mark.parametrize("disturbed", [{0}, {0, 1}, {1, 2}, {2, 3}, {3, 5}, set(range(1, 40, 2))])
def test_a_disturbed_call_does_not_decide_how_many_steps_fill_a_turn(
    monkeypatch: pytest.MonkeyPatch, pace: float, disturbed: set[int]
):
    warm_up, steps = calibrated(monkeypatch, Paced(pace, disturbed))
    assert steps * pace == pytest.approx(0.008, rel=0.15)
    assert warm_up == steps


def test_a_step_that_fills_a_turn_is_warmed_up_too(monkeypatch: pytest.MonkeyPatch):
    assert calibrated(monkeypatch, Paced(0.06, set())) == (1, 1)
    assert calibrated(monkeypatch, Paced(2.0, set())) == (0, 1)  # it warms itself up
    assert calibrated(monkeypatch, Paced(1e-3, set(), least_steps=64)) == (64, 64)


def test_a_gpu_is_warm_before_its_turn(monkeypatch: pytest.MonkeyPatch):
    warm_up, steps = calibrated(monkeypatch, Paced(4e-5, set(), on_gpu=True))
    assert steps * 4e-5 == pytest.approx(0.008, rel=0.1)
    assert warm_up * 4e-5 == pytest.approx(GPU_WARM_SECONDS, rel=0.1)


def test_every_turn_is_warm_and_full(measured: tuple[list[Sample], dict[str, Any]]):
    """Of the many candidates none is left with a single short step, as a disturbed call once left it."""
    short = [each for each in turns(measured[0]) if each.steps == 1 and each.seconds < EFFORT.turn_seconds / 10]
    assert not short


def test_steal_time_is_no_other_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    stat = tmp_path / "stat"
    monkeypatch.setattr(clock, "STAT", stat)
    ticks = os.sysconf("SC_CLK_TCK")
    stat.write_text("cpu 0 0 0 0 0 0 0 0 0 0\n")
    times = iter((0.0, 10.0))
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(clock.os, "times", lambda: os.times_result((0, 0, 0, 0, 0)))
    with clock.other_processes() as others:
        stat.write_text(f"cpu {5 * ticks} 0 0 99 99 0 0 {30 * ticks} 0 0\n")
    assert others == [0.5, 3.0]


def test_out_of_memory_on_a_gpu_is_a_sentence():
    import torch

    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 256.00 MiB. GPU 0 has a total capacity of …")
    assert out_of_memory(error) == (
        "there is not enough memory on the GPU: 256.00 MiB did not fit. Lower batch_size or the other sizes in "
        "params.yaml, or free the GPU: nvidia-smi shows what else uses it."
    )
    with pytest.raises(RuntimeError) as on_the_host:
        torch.empty(2**50)
    assert out_of_memory(on_the_host.value).startswith(
        "there is not enough memory: 4503599627370496 bytes did not fit."
    )


def test_a_size_that_does_not_fit_is_a_sentence():
    huge = {"batch_size": 2, "inputs": 2**40, "hidden": 1, "outputs": 1}
    with pytest.raises(UserError) as error:
        benchmark([Size("two_layer", huge, ["numpy_arrays"])], effort=EFFORT, dtype="float32", environment=HOST)
    assert "there is not enough memory: 8.00 TiB did not fit. Lower batch_size" in str(error.value)
    assert "Traceback" not in str(error.value)


def test_no_message_is_taken_for_out_of_memory_that_is_another():
    assert out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) == ""
    assert out_of_memory(UserError("no")) == ""


def test_tensorflow_out_of_memory_is_a_sentence():
    import tensorflow as tf

    text = (
        "OOM when allocating tensor with shape[4096,8192] and type float on "
        "/job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc [Op:MatMul]"
    )
    found = out_of_memory(tf.errors.ResourceExhaustedError(None, None, text))
    assert found.startswith("there is not enough memory on the GPU: a tensor of the shape [4096,8192] did not fit.")
    assert "nvidia-smi" in found


def test_a_benchmark_of_no_process_has_no_samples():
    """As in a sweep whose experiments share a node: `benchmark.processes` is 0 there."""
    plan = [Size("two_layer", sizes("two_layer")[0], ["numpy_arrays"])]
    none = EFFORT._replace(processes=0)
    taken, meanwhile = benchmark(plan, effort=none, dtype="float32", environment=HOST)
    assert (taken, meanwhile["cpus_of_other_processes"], meanwhile["gpu"]) == ([], 0.0, None)


def test_a_candidate_that_fails_is_a_sentence():
    plan = [Size("two_layer", sizes("two_layer")[0], ["numpy_nowhere"])]
    with pytest.raises(UserError, match="The benchmark failed in its process 1"):
        benchmark(plan, effort=EFFORT, dtype="float32", environment=HOST)


def test_the_table_comes_back_as_it_was_written(measured: tuple[list[Sample], dict[str, Any]], tmp_path: Any):
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
    candidates = [f"tuned/{name}" for name in LESSONS if (REPOSITORY / f"pipeline/benchmark/tuned/{name}.py").is_file()]
    if kind == "peers":
        candidates = [
            peer for size in bench.plan(["small", "recurrent"], HOST) for peer in size.candidates if "peers" in peer
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


def test_the_default_plan_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)
    found = importlib.util.find_spec
    monkeypatch.setattr(candidates, "find_spec", lambda name: name == "cuda" or found(name))
    plan = default_plan(load_params(), replace(HOST, device="cuda:0"))
    names = {name for size in plan for name in size.candidates}
    assert {name for name in names if name.startswith("lower_bound/")} == {
        "lower_bound/numpy",
        "lower_bound/torch",
        "lower_bound/tensorflow",
    }
    torchs = {name for name in LESSONS if framework_of(name) == "torch"}
    assert {name for name in names if name.startswith("launch_floor/")} == {f"launch_floor/{name}" for name in torchs}
    assert {name for name in names if name.startswith("cpu/")} == {"cpu/torch_tensors"}
    tuned = {framework_of(parts_of(name)[1]) for name in names if name.startswith("tuned/")}
    assert tuned == {"numpy", "tensorflow"}  # torch's would run eagerly beside lessons that are captured


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_each_interpreter_has_a_lower_bound_for_its_candidates(monkeypatch: pytest.MonkeyPatch, device: str):
    from pipeline.benchmark.candidates import python_of

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


def test_a_commit_may_be_named_where_no_repository_travels(monkeypatch: pytest.MonkeyPatch):
    from pipeline.provenance import provenance

    monkeypatch.setenv("PIPELINE_COMMIT", "abc1234")
    assert provenance(HOST, "cpu", "the CPU")["commit"] == "abc1234"


# The benchmark for a GPU.


def measured_on(monkeypatch: pytest.MonkeyPatch, plan: list[Size], effort: Effort) -> list[Sample]:
    """The samples of one process with the GPU of tests/fake_cuda.py."""
    task = {"plan": plan, "effort": effort, "dtype": "float32", "environment": asdict(GPU), "seed": 5, "process": 0}
    return list(measure(task, Monitor("cpu")))


def test_a_gpus_steps_are_replays_beside_eager_ones_and_two_baselines(cuda: Any, monkeypatch: pytest.MonkeyPatch):
    names = [name for name in gpu._candidates(GPU) if framework_of(parts_of(name)[1]) != "tensorflow"]
    floors = {f"launch_floor/{name}" for name in gpu.NAMES}
    assert {"lower_bound/torch", "lower_bound/torch+tf32", "cpu/torch_tensors", "numpy_arrays", *floors} < set(names)
    plan = [Size("two_layer", sizes("two_layer")[1], names)]
    plan += [Size("recurrent", each, ["torch_loop", "launch_floor/torch_loop"]) for each in sizes("recurrent")]
    found = measured_on(monkeypatch, plan, Effort(1, 2, 0.002))
    captured = {*gpu.NAMES, *gpu.VARIANTS, gpu.STATIC, "torch_loop"}
    for sample in found:
        assert sample.replays == (sample.steps if sample.candidate in captured else 0), sample
    assert {f"{kind}/{name}" for kind in ("eager", "capture") for name in (*gpu.NAMES, "torch_loop")} < {
        sample.candidate for sample in found
    }
    assert not any("build/" in sample.candidate for sample in found)
    rows = [{key: str(value) for key, value in each._asdict().items()} for each in found]
    where = {"device": "cuda:0", "cpus_of_other_processes": 0.0, "cpus": 2, "gpu": None}
    (case, *_) = samples.read(rows, where).cases
    assert case.in_python("torch_autograd") == "eager/torch_autograd"
    assert case.in_python("numpy_arrays") == "numpy_arrays"
    assert case.launch_floor("torch_autograd") == "launch_floor/torch_autograd"
    assert case.lower_bound("torch_autograd+tf32") == "lower_bound/torch+tf32"


def test_no_graph_of_a_size_stays_for_the_next_one(cuda: Any, monkeypatch: pytest.MonkeyPatch):
    alive: list[int] = []
    create = cuda.Graphs.__init__

    def counted(self: Any) -> None:
        create(self)
        alive.append(len(cuda.Graphs._alive))

    monkeypatch.setattr(cuda.Graphs, "__init__", counted)
    plan = [Size("two_layer", each, ["torch_tensors", "lower_bound/torch"]) for each in sizes("two_layer") * 3]
    plan = [size._replace(sizes=size.sizes | {"hidden": 3 + at}) for at, size in enumerate(plan)]
    measured_on(monkeypatch, plan, Effort(1, 1, 0.001))
    assert alive == [1, 2] * 6


def test_precision_is_a_variants_own_while_its_parity_is_measured(monkeypatch: pytest.MonkeyPatch):
    import torch

    seen = {}
    run = Candidate.run

    def spied(self: Any, steps: int) -> None:
        seen[self.name] = (torch.get_float32_matmul_precision(), torch.get_deterministic_debug_mode())
        run(self, steps)

    monkeypatch.setattr(Candidate, "run", spied)
    names = ["torch_autograd", "torch_autograd+tf32", "torch_autograd+nondeterministic"]
    plan = [Size("two_layer", dict(zip(gpu.KEYS, gpu.SIZES[0], strict=True)), names)]
    rows = list(gpu._parity(plan, HOST))
    assert seen == {names[0]: ("highest", 2), names[1]: ("high", 2), names[2]: ("highest", 0)}
    for row in rows[3:]:
        assert 1e-8 < float(row.split()[-1]) < 1e-4  # what float32 rounds, and nothing of the weights' own rounding


def test_a_busy_machine_is_no_crossover_that_was_not_found():
    """On a machine that other processes use the report says that it cannot tell, and not that the GPU is slow."""
    head = ("two_layer", *gpu.TUTORIAL, 0, 0, 64.0)
    names = [*gpu.NAMES, "numpy_arrays", "cpu/torch_tensors", "lower_bound/torch"]
    taken = [Sample(*head, name, process, 0, 0, 1, 1e-4, 0) for name in names for process in range(3)]
    rows = [{key: str(value) for key, value in each._asdict().items()} for each in taken]
    where = {"device": "cuda:0", "precision": "highest", "threads": 2, "deterministic": True, "gpu": None}
    busy = samples.read(rows, where | {"cpus_of_other_processes": 1.4, "cpus": 2})
    text = "\n".join(gpu._report(busy, taken))
    assert "faster than" not in text
    assert "beats" not in text
    assert "torch_tensors: cannot tell: other processes took 1.4 of 2 CPUs" in text
    quiet = samples.read(rows, where | {"cpus_of_other_processes": 0.0, "cpus": 2})
    assert "faster than numpy_arrays" in "\n".join(gpu._report(quiet, taken))


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
    command += ["--rounds", "2", "--compile"]
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
        assert re.search(rf"{name}: \d+\.\d µs a step at the tutorial's size", done.stdout)
        if "cannot tell" not in done.stdout:  # other tests run beside this one
            share = rf"{name}: \d+% \(\d+% … \d+%\) of the matrix products' speed at 64 × 1000 × 100 × 10"
            assert re.search(share, done.stdout)
    assert "“GPUs often provide speedups of 50x or greater.” not answered here" in done.stdout
    parity = done.stdout.partition("Parity")[2].splitlines()
    for name in ("torch_tensors", "torch_autograd+tf32", "numpy_arrays"):
        (row,) = (line for line in parity if line.startswith(f"{name} "))
        assert all(float(error) < 1e-4 for error in row.split()[1:])
    assert re.search(r"^peers/torch_compile +\d|^torch.compile is left out: .", done.stdout, re.MULTILINE)
    (folder,) = (tmp_path / "out").iterdir()
    found = samples.read(files.read_rows(folder / "samples.csv"), files.read_json(folder / "machine.json"))
    assert [case.label for case in found.cases] == ["16 × 256 × 32 × 10", "64 × 1000 × 100 × 10"]
    assert {len(paces) for processes in found.cases[0].seconds.values() for paces in processes.values()} == {2}


def test_one_of_the_gpu_benchmarks_sizes_alone(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--only", "1", "--processes", "1"]
    command += ["--rounds", "1", "--no-parity", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "16 × 256 × 32 × 10" in done.stdout
    assert "64 × 1000" not in done.stdout
    assert "Parity" not in done.stdout
    (machine,) = tmp_path.glob("*/machine.json")
    where = json.loads(machine.read_text())
    assert where["versions"].keys() >= {"numpy", "torch", "tensorflow"}
    assert where["gpu"] is None


def test_the_gpu_benchmark_without_a_gpu_is_a_sentence(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cuda:77", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("ERROR: there is no cuda:77; found: ")
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
