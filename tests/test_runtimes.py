"""What the runtimes do to make a step faster does not change it, and what they set holds."""

import ctypes
import gc
import os
import re
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import HOST, LESSONS, REPOSITORY, Lesson
from fake_cuda import Recorded
from threadpoolctl import threadpool_info, threadpool_limits

from pipeline import runtimes
from pipeline.benchmark.candidates import Candidate, draw
from pipeline.benchmark.peers import torch_static_graph
from pipeline.contract import load_problem
from pipeline.errors import UserError
from pipeline.runtimes import load_runtime, open_implementation

TINY = SimpleNamespace(batch_size=16, inputs=20, hidden=8, outputs=3)


@pytest.mark.parametrize("name", [name for name in LESSONS if name.startswith("tensorflow")])
def test_a_graph_and_its_lines_run_eagerly_compute_the_same(name: str):
    lesson = Lesson(name, LESSONS[name], "float64")
    graph = lesson.placed()
    eager = open_implementation(name, lesson.problem, HOST, eagerly=True).create(lesson.initial, 0.1)
    eager.place(lesson.chunk)
    with load_runtime(name).eagerly():
        losses = lesson.run(eager, 3, 2)
    np.testing.assert_allclose(lesson.run(graph, 3, 2), losses, rtol=1e-12)
    for key, weight in graph.weights().items():
        np.testing.assert_allclose(weight, eager.weights()[key], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "sizes", "compiled"),
    [
        ("tensorflow_graph", {"inputs": 20, "hidden": 8, "outputs": 3}, True),
        ("tensorflow_graph", {"inputs": 1024, "hidden": 1024, "outputs": 8}, False),
        ("tensorflow_scan", {"inputs": 4, "hidden": 6, "outputs": 3, "min_length": 1, "max_length": 3}, False),
    ],
)
def test_xla_is_for_graphs_that_are_small_and_have_one_loop(name: str, sizes: dict[str, int], compiled: bool):
    weights, chunk = draw(LESSONS[name], SimpleNamespace(batch_size=4, **sizes), "float32")
    loop: Any = open_implementation(name, LESSONS[name], HOST).create(weights, 0.1)
    loop.place(chunk)
    assert loop.graph is None  # what defining it costs belongs to `compile`
    loop.compile()
    graph: Any = loop.graph
    assert graph._jit_compile is (True if compiled else None)


def test_a_chunk_of_data_is_trained_on_where_it_lies(tmp_path: Path):
    weights, chunk = draw("two_layer", TINY, "float32")
    np.save(tmp_path / "x.npy", chunk["x"])
    mapped = np.load(tmp_path / "x.npy", mmap_mode="c")  # as pipeline/training/data.py reads it
    loop: Any = open_implementation("tensorflow_graph", "two_layer", HOST).create(weights, 0.1)
    loop.place(chunk | {"x": mapped})
    assert np.shares_memory(np.asarray(memoryview(loop.stacked[0])), mapped)


@pytest.mark.parametrize("framework", ["numpy", "torch", "tensorflow"])
def test_the_lower_bound_takes_any_number_of_steps(framework: str):
    runtime = load_runtime(framework)
    runtime.start(HOST)
    weights, chunk = draw("two_layer", TINY, "float32")
    products = load_problem("two_layer").products
    factors = [products(weights, *batch.values()) for batch in runtimes.batches_of(chunk)]
    for count in (0, 1, len(factors) + 1):
        runtime.multiply(factors)(count)


def test_threads_are_set_whatever_the_affinity_is():
    runtime = load_runtime("numpy")
    for threads in (1, HOST.threads):
        runtime.start(replace(HOST, threads=threads))
        blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        assert blas
        assert set(blas) == {threads}


def test_threads_are_set_without_threadpoolctl(monkeypatch: pytest.MonkeyPatch):
    runtime: Any = load_runtime("numpy")
    monkeypatch.setattr(runtime, "find_spec", lambda _: None)
    numpys = "libscipy_openblas"
    with threadpool_limits(HOST.threads):
        runtime.set_blas_threads(1)
        assert {pool["num_threads"] for pool in threadpool_info() if numpys in pool["filepath"]} == {1}


def torch_sees_a_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


# Memory.


@pytest.mark.parametrize("name", [name for name in LESSONS if name.startswith("numpy")])
def test_the_weights_of_numpy_begin_at_a_cache_line(name: str):
    lesson = Lesson(name, LESSONS[name], "float32")
    for gap in range(16, 96, 16):
        kept = np.empty(100_000 + gap, np.uint8)
        loop = lesson.placed()
        assert all(getattr(loop.implementation, key).ctypes.data % 64 == 0 for key in loop.names)
        for key, weight in loop.weights().items():
            np.testing.assert_array_equal(weight, lesson.initial[key])
        del kept


FAULTS = """
import resource, sys, numpy as np
from pipeline.runtimes import keep_freed_memory, peak_process_bytes
if sys.argv[1] == "kept":
    keep_freed_memory()
a = np.ones((64, 1000), np.float32)
def work():
    for _ in range(300):
        b = a * 2
        del b
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run_python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_kept_memory_costs_no_page_faults():
    assert int(run_python(FAULTS, "kept")) < 300  # less than one for each of the arrays, of 63 pages each


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtimes.ctypes, "CDLL", lambda _: SimpleNamespace())
    runtimes.keep_freed_memory()


PEAK = """
import numpy as np
from pipeline.runtimes import keep_freed_memory, peak_process_bytes
keep_freed_memory()
before = peak_process_bytes()
for size in (50, 100, 20):
    block = np.ones(size * 2**20, np.uint8)
    del block
print((peak_process_bytes() - before) / 2**20)
"""


def test_the_peak_of_memory_is_what_was_in_use_at_once():
    assert 95 < float(run_python(PEAK)) < 115


# CUDA graphs, with the capture replaced by what a replay would compute: in which order, which losses, and what is kept.


TORCH = [name for name in LESSONS if name.startswith("torch")]


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("calls", [(2, 7, 1, 1, 5), (1, 1, 3, 3, 2, 6), (16,)])
def test_a_batch_runs_eagerly_first_and_is_replayed_when_it_comes_again(cuda: Any, name: str, calls: tuple[int, ...]):
    lesson = Lesson(name, LESSONS[name], "float64")
    plain, captured = lesson.loop(cuda.PythonLoop), lesson.loop(cuda.CudaGraphs)
    np.testing.assert_array_equal(lesson.run(captured, *calls), lesson.run(plain, *calls))
    assert captured.captures == 3
    assert captured.replays == sum(calls) - 3
    for key, weight in plain.weights().items():
        np.testing.assert_array_equal(captured.weights()[key], weight)


def test_nothing_is_captured_before_the_first_steps_or_for_steps_that_do_not_come(cuda: Any):
    lesson = Lesson("torch_tensors", "two_layer", "float64")
    loop = lesson.loop(cuda.CudaGraphs)
    loop.compile()
    loop.compile_for(10)
    assert loop.captures == 0
    lesson.run(loop, 2)
    loop.compile_for(1)  # the third batch, which was not taken yet
    assert loop.captures == 0
    loop.compile_for(2)  # and the first again
    assert loop.captures == 1
    loop.compile()
    assert loop.captures == 3
    assert loop.replays == 0


def test_a_single_batch_is_taken_twice_before_it_is_captured(cuda: Any):
    lesson = Lesson("torch_autograd", "two_layer", "float64")
    lesson.chunk = {key: array[:1] for key, array in lesson.chunk.items()}
    loop = lesson.loop(cuda.CudaGraphs)
    lesson.run(loop, 5)
    assert (loop.captures, loop.replays) == (1, 3)


@pytest.mark.parametrize("name", TORCH)
def test_a_new_chunk_takes_over_the_graphs_of_batches_like_its_own(cuda: Any, name: str):
    lesson = Lesson(name, LESSONS[name], "float64")
    other = {key: array[::-1].copy() for key, array in lesson.chunk.items()}
    if "lengths" in other:
        other["lengths"] = np.roll(other["lengths"], 1, axis=1)  # the same lengths, of other examples
    loops, losses = [lesson.loop(kind) for kind in (cuda.PythonLoop, cuda.CudaGraphs)], []
    for loop in loops:
        for chunk in (lesson.chunk, other, {key: array[:2] for key, array in lesson.chunk.items()}, other):
            loop.place({key: array.copy() for key, array in chunk.items()})  # its memory will be taken over
            loop.compile_for(5)
            losses.append(lesson.run(loop, 5))
    np.testing.assert_array_equal(losses[4:], losses[:4])
    if "lengths" not in other:
        assert loops[1].captures == 3  # the third stays for the chunk after the one of two
        assert loops[1].replays == 4 * 5 - 3


def test_graphs_of_a_loop_are_dropped_together(cuda: Any):
    lesson = Lesson("torch_loop", "recurrent", "float64")
    loop = lesson.loop(cuda.CudaGraphs)
    lesson.run(loop, 6)
    before = [weakref.ref(recorded.graph) for recorded, _ in loop.captured]
    graphs = loop.graphs
    shorter = {key: array.copy() for key, array in lesson.chunk.items()}
    shorter["lengths"][2] = 1  # another shape, for which the graph of the third batch is no use
    loop.place(shorter)
    gc.collect()
    assert [reference() for reference in before] == [None] * 3
    assert loop.captured == [None] * 3
    assert loop.graphs.stream.cuda_stream != graphs.stream.cuda_stream
    assert loop.graphs.pool is not graphs.pool
    captures = loop.captures
    lesson.run(loop, 8)
    assert loop.captures == captures + 3


def test_a_loop_survives_another_one(cuda: Any):
    lesson = Lesson("torch_autograd", "two_layer", "float64")
    one, other = lesson.loop(cuda.CudaGraphs), lesson.loop(cuda.CudaGraphs)
    for loop in (one, other):
        lesson.run(loop, 6)
    del other, loop
    gc.collect()
    assert Recorded.freed
    lesson.run(one, 3)


def test_no_two_that_are_alive_share_a_capture_stream(cuda: Any):
    kept = cuda.Graphs()
    for _ in range(70):
        assert cuda.Graphs().stream.cuda_stream != kept.stream.cuda_stream
    alive = [cuda.Graphs() for _ in range(31)]
    assert len({each.stream.cuda_stream for each in [kept, *alive]}) == 32
    with pytest.raises(RuntimeError, match="all 32 streams"):
        cuda.Graphs()


def test_a_recorded_step_keeps_its_batch_its_weights_and_its_loss(cuda: Any):
    lesson = Lesson("torch_tensors", "two_layer", "float64")
    loop = lesson.loop(cuda.CudaGraphs)
    lesson.run(loop, 4)
    recorded, loss = loop.captured[0]
    used = [weakref.ref(tensor) for tensor in (*loop.slots[0], loop.implementation.w1, loop.implementation.w2, loss)]
    recorded.graph.call = None  # which a real graph does not hold
    del loop, loss
    gc.collect()
    assert all(reference() is not None for reference in used)
    del recorded
    gc.collect()
    assert all(reference() is None for reference in used)


def test_the_lower_bound_keeps_its_factors_and_products(cuda: Any, monkeypatch: pytest.MonkeyPatch):
    """A graph holds addresses: the tensors must live as long as it can be replayed."""
    used: list[Any] = []

    def recorded(call: Any, _: Any) -> Any:
        products = next(cell.cell_contents for cell in call.func.__closure__ if isinstance(cell.cell_contents, dict))
        tensors = [*products.values(), *(tensor for pair in call.args[0] for tensor in pair)]
        used.extend(weakref.ref(tensor) for tensor in tensors)
        return SimpleNamespace(replay=lambda: None)

    monkeypatch.setattr(cuda, "_recorded", recorded)
    weights, chunk = draw("two_layer", TINY, "float32")
    products = load_problem("two_layer").products
    run = cuda.multiply([products(weights, *batch.values()) for batch in runtimes.batches_of(chunk)[:3]])
    gc.collect()
    assert len(used) == 3 * (4 + 10)  # two of the five products have the same shape
    assert all(reference() is not None for reference in used)
    run(7)
    del run
    gc.collect()
    assert all(reference() is None for reference in used)


def test_the_launch_floor_has_as_many_kernels_as_a_step_has_nodes(cuda: Any, monkeypatch: pytest.MonkeyPatch):
    """The count is made up here: it takes a CUDA graph."""
    counted = iter((1, 2, 3))

    def count(_: Any, numNodes: int) -> tuple[int, None, int]:  # noqa: N803 (CUDA's name)
        return 0, None, next(counted)

    monkeypatch.setattr(sys.modules["cuda.bindings"].runtime, "cudaGraphGetNodes", count)
    launched: list[int] = []
    monkeypatch.setattr(cuda.torch.cuda, "_sleep", launched.append)
    lesson = Lesson("torch_tensors", "two_layer", "float64")
    candidate = Candidate("launch_floor/torch_tensors", "two_layer", replace(HOST, device="cuda:0"), lesson.initial)
    four = {key: np.concatenate([array, array[:1]]) for key, array in lesson.chunk.items()}
    candidate.place(
        {key: np.concatenate([array] * 3) for key, array in four.items()}
    )  # 12 batches, of which it takes 3
    launched.clear()
    candidate.run(4)
    assert len(launched) == 1 + 2 + 3 + 1


def test_one_graph_for_all_batches_takes_the_same_steps(cuda: Any):
    lesson = Lesson("torch_autograd", "two_layer", "float64")
    static: Any = torch_static_graph.Loop(lesson.initial, learning_rate=0.1, device="cpu", option="torch_autograd")
    static.place(lesson.chunk)
    plain = lesson.loop(cuda.PythonLoop)
    np.testing.assert_array_equal(lesson.run(static, 2, 3, 4), lesson.run(plain, 2, 3, 4))
    assert (static.captures, static.replays) == (1, 7)
    static.compile()
    assert static.captures == 1


def test_a_step_that_does_not_change_its_weights_in_place_is_refused(cuda: Any, monkeypatch: pytest.MonkeyPatch):
    lesson = Lesson("torch_tensors", "two_layer", "float64")
    loop = lesson.loop(cuda.CudaGraphs)
    lesson.run(loop, 3)

    def moved(call: Any, *_: Any) -> Any:
        loop.implementation.w1 = loop.implementation.w1.clone()

    monkeypatch.setattr(cuda, "_recorded", moved)
    with pytest.raises(UserError, match="must change its weights in place"):
        lesson.run(loop, 1)


def test_tensorflow_multiplies_all_batches_in_one_execution():
    runtime: Any = load_runtime("tensorflow")
    runtime.start(HOST)
    weights, chunk = draw("two_layer", TINY, "float32")
    products = load_problem("two_layer").products
    factors = [products(weights, *batch.values()) for batch in runtimes.batches_of(chunk)[:4]]
    run = runtime.multiply(factors)
    assert run.least_steps == 4
    (graph,) = run.calls
    nodes = [node.op for node in graph.graph.as_graph_def().node]
    assert nodes.count("MatMul") == 4 * 5
    for found, (left, right) in zip(graph(), [pair for batch in factors for pair in batch], strict=True):
        np.testing.assert_allclose(found, left @ right, rtol=1e-4, atol=1e-4)


def test_tensorflow_without_its_cuda_libraries_is_a_sentence():
    runtime: Any = load_runtime("tensorflow")
    with pytest.raises(UserError, match=r"TensorFlow [\d.]+ sees 0 GPUs, and so cannot use cuda:0"):
        runtime.start(replace(HOST, device="cuda:0"))


def test_the_checks_on_a_gpu_need_torch_numpy_safetensors_and_pytest_alone(tmp_path: Path):
    """They run to their end without anything else, even if only to say that there is no GPU."""
    absent = ["dvc", "mlflow", "pydantic", "pynvml", "rich", "selenium", "tensorflow", "threadpoolctl", "xdist", "yaml"]
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({absent}))\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_gpu.py"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ (skipped|passed)", done.stdout)
    assert "error" not in done.stdout.lower()


@pytest.mark.skipif(torch_sees_a_gpu(), reason="there is a GPU, and they run")
def test_the_checks_on_a_gpu_fail_where_they_run_nothing():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/test_gpu.py"]
    environment = os.environ | {"REQUIRE_GPU": "1"}  # as `make check-gpu` sets it
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no CUDA device that an installed framework can use: nothing was tested" in done.stdout
    assert "REQUIRE_GPU=1" in (REPOSITORY / "Makefile").read_text()
