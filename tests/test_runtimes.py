"""The runtimes make steps faster without changing them, and apply their settings."""

import ctypes
import gc
import os
import re
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import HOST, LESSONS, REPOSITORY, Lesson
from fake_cuda import GPU, Recorded
from threadpoolctl import threadpool_info

from pipeline import runtimes
from pipeline.benchmark.candidates import Candidate
from pipeline.benchmark.peers import torch_static_graph
from pipeline.benchmark.runner import Runner, draw
from pipeline.contract import Factors, load_implementation, load_problem
from pipeline.errors import UserError
from pipeline.runtimes import batches_of, load_runtime, open_implementation

TINY = SimpleNamespace(batch_size=16, inputs=20, hidden=8, outputs=3)
TORCH = [name for name in LESSONS if name.startswith("torch")]
TENSORFLOW = [name for name in LESSONS if name.startswith("tensorflow")]


def factors(batches: int) -> list[Factors]:
    weights, chunk = draw("two_layer", TINY, "float32")
    products = load_problem("two_layer").products
    return [products(weights, *batch.values()) for batch in batches_of(chunk)[:batches]]


def test_new_framework_needs_only_two_members_of_runtime(monkeypatch: pytest.MonkeyPatch):
    """NumPy in a module of another name, with the two required methods of a Runtime."""
    numpys: Any = sys.modules[load_runtime("numpy").__module__]

    class Runtime(runtimes.Runtime):
        python_loop = numpys.PythonLoop

        def multiply(self, batches: list[Factors]) -> runtimes.Cycle:
            return runtimes.Cycle([lambda: [left @ right for pairs in batches for left, right in pairs]])

    module: Any = ModuleType("pipeline.runtimes.toy")
    module.Runtime = Runtime
    monkeypatch.setitem(sys.modules, module.__name__, module)
    lesson: Any = sys.modules[load_implementation("two_layer", "numpy_arrays").__module__]
    monkeypatch.setitem(sys.modules, "pipeline.lessons.two_layer.toy_arrays", lesson)
    toy, numpy = (Lesson(name, "two_layer", "float64") for name in ("toy_arrays", "numpy_arrays"))
    np.testing.assert_array_equal(toy.run(toy.placed(), 4), numpy.run(numpy.placed(), 4))
    weights, chunk = draw("two_layer", TINY, "float32")
    for text in ("toy_arrays", "matmul/toy", "tuned/numpy_arrays"):
        runner = Runner(Candidate.parse(text), "two_layer", HOST, weights)
        runner.place(chunk)
        runner.run(3)
        assert not runner.on_gpu


@pytest.mark.parametrize("name", TENSORFLOW)
def test_eager_steps_equal_graph_steps(name: str):
    lesson = Lesson(name, LESSONS[name], "float64")
    graph = lesson.placed()
    opened = open_implementation(name, lesson.problem, HOST, eagerly=True)
    eager = opened.create(lesson.initial, 0.1)
    eager.place(lesson.chunk)
    with opened.runtime.eagerly():
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
def test_xla_compiles_only_small_graphs_without_an_inner_loop(name: str, sizes: dict[str, int], compiled: bool):
    weights, chunk = draw(LESSONS[name], SimpleNamespace(batch_size=4, **sizes), "float32")
    loop: Any = open_implementation(name, LESSONS[name], HOST).create(weights, 0.1)
    loop.place(chunk)
    assert loop.graph is None  # the cost of defining it belongs to `compile`
    loop.compile()
    graph: Any = loop.graph
    assert graph._jit_compile is (True if compiled else None)


def test_memory_mapped_chunk_is_not_copied(tmp_path: Path):
    weights, chunk = draw("two_layer", TINY, "float32")
    np.save(tmp_path / "x.npy", chunk["x"])
    mapped = np.load(tmp_path / "x.npy", mmap_mode="c")  # as pipeline/training/data.py reads it
    loop: Any = open_implementation("tensorflow_graph", "two_layer", HOST).create(weights, 0.1)
    loop.place(chunk | {"x": mapped})
    assert np.shares_memory(np.asarray(memoryview(loop.stacked[0])), mapped)


@pytest.mark.parametrize("framework", ["numpy", "torch", "tensorflow"])
def test_matrix_products_run_any_number_of_times(framework: str):
    batches = factors(4)
    products = load_runtime(framework)(HOST).multiply(batches)
    for count in (0, 1, len(batches) + 1):
        products.run(count)


def test_tensorflow_multiplies_all_batches_in_one_execution():
    batches = factors(4)
    products = load_runtime("tensorflow")(HOST).multiply(batches)
    assert products.least_steps == 4
    graph: Any = products.calls[0]
    assert [node.op for node in graph.graph.as_graph_def().node].count("MatMul") == 4 * 5
    for product, (left, right) in zip(graph(), [pair for batch in batches for pair in batch], strict=True):
        np.testing.assert_allclose(product, left @ right, rtol=1e-4, atol=1e-4)


def test_blas_threads_follow_the_environment():
    for threads in (1, HOST.threads):
        load_runtime("numpy")(replace(HOST, threads=threads))
        blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        assert set(blas) == {threads}


def test_last_applied_runtime_sets_the_process_settings():
    import torch

    strict, free = (load_runtime("torch")(replace(HOST, deterministic=value)) for value in (True, False))
    assert torch.get_deterministic_debug_mode() == 0
    strict.apply()
    assert torch.get_deterministic_debug_mode() == 2
    assert strict.device == free.device == "cpu"


def test_tensorflow_without_cuda_libraries_gives_an_error():
    with pytest.raises(UserError, match=r"TensorFlow [\d.]+ sees 0 GPUs, and so cannot use cuda:0"):
        load_runtime("tensorflow")(GPU)


# Memory.


@pytest.mark.parametrize("name", [name for name in LESSONS if name.startswith("numpy")])
def test_numpy_weights_are_aligned_to_cache_lines(name: str):
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
from pipeline.runtimes import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
a = np.ones((64, 1000), np.float32)
def work():  # four arrays of 63 pages each, as in a step
    for _ in range(100):
        b = a * 2; c = b * 2; d = c * 2; e = d * 2
        del b, c, d, e
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
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


def run_python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_keeping_freed_memory_avoids_page_faults():
    assert int(run_python(FAULTS, "default")) > 100 * 63
    assert int(run_python(FAULTS, "kept")) < 100


def test_keeping_freed_memory_does_nothing_without_mallopt(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtimes.ctypes, "CDLL", lambda _: SimpleNamespace())
    runtimes.keep_freed_memory()


def test_peak_memory_is_the_largest_simultaneous_use():
    assert 95 < float(run_python(PEAK)) < 115


# CUDA graphs with a simulated capture: the order of steps, the losses, and the objects that are kept.


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("calls", [(2, 7, 1, 1, 5), (1, 1, 3, 3, 2, 6), (16,)])
def test_batch_runs_eagerly_first_and_is_replayed_afterwards(cuda: Any, name: str, calls: tuple[int, ...]):
    lesson = Lesson(name, LESSONS[name], "float64")
    plain, captured = lesson.loop(cuda.PythonLoop), lesson.loop(cuda.CudaGraphs)
    np.testing.assert_array_equal(lesson.run(captured, *calls), lesson.run(plain, *calls))
    assert (captured.captures, captured.replays) == (3, sum(calls) - 3)
    for key, weight in plain.weights().items():
        np.testing.assert_array_equal(captured.weights()[key], weight)


def test_nothing_is_captured_before_first_steps_or_for_steps_not_taken(cuda: Any):
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
    assert (loop.captures, loop.replays) == (3, 0)


def test_single_batch_runs_twice_before_it_is_captured(cuda: Any):
    lesson = Lesson("torch_autograd", "two_layer", "float64")
    lesson.chunk = {key: array[:1] for key, array in lesson.chunk.items()}
    loop = lesson.loop(cuda.CudaGraphs)
    lesson.run(loop, 5)
    assert (loop.captures, loop.replays) == (1, 3)


@pytest.mark.parametrize("name", TORCH)
def test_new_chunk_reuses_the_graphs_of_batches_of_the_same_shapes(cuda: Any, name: str):
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
        assert (loops[1].captures, loops[1].replays) == (3, 4 * 5 - 3)  # the third stays while a chunk has two


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
    assert [reference() for reference in before] == loop.captured == [None] * 3
    assert loop.graphs.stream.cuda_stream != graphs.stream.cuda_stream
    assert loop.graphs.pool is not graphs.pool
    captures = loop.captures
    lesson.run(loop, 8)
    assert loop.captures == captures + 3


def test_graphs_stay_valid_after_another_loop_is_dropped(cuda: Any):
    lesson = Lesson("torch_autograd", "two_layer", "float64")
    one, other = lesson.loop(cuda.CudaGraphs), lesson.loop(cuda.CudaGraphs)
    for loop in (one, other):
        lesson.run(loop, 6)
    del other, loop
    gc.collect()
    assert Recorded.freed
    lesson.run(one, 3)


def test_existing_graphs_do_not_share_a_capture_stream(cuda: Any):
    kept = cuda.Graphs("cuda:0")
    for _ in range(70):
        assert cuda.Graphs("cuda:0").stream.cuda_stream != kept.stream.cuda_stream
    alive = [cuda.Graphs("cuda:0") for _ in range(31)]
    assert len({graphs.stream.cuda_stream for graphs in [kept, *alive]}) == 32
    with pytest.raises(RuntimeError, match="all 32 streams"):
        cuda.Graphs("cuda:0")


def test_recorded_step_keeps_its_batch_its_weights_and_its_loss(cuda: Any):
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


def test_matrix_products_keep_their_factors_and_results(cuda: Any, monkeypatch: pytest.MonkeyPatch):
    """A graph holds addresses: the tensors must stay as long as it can be replayed."""
    used: list[Any] = []

    def recorded(call: Any, _: Any) -> Any:
        products = next(cell.cell_contents for cell in call.func.__closure__ if isinstance(cell.cell_contents, dict))
        tensors = [*products.values(), *(tensor for pair in call.args[0] for tensor in pair)]
        used.extend(weakref.ref(tensor) for tensor in tensors)
        return SimpleNamespace(replay=lambda: None)

    monkeypatch.setattr(cuda, "_recorded", recorded)
    products = cuda.Runtime(GPU).multiply(factors(3))
    gc.collect()
    assert len(used) == 3 * (4 + 10)  # two of the five products have the same shape
    assert all(reference() is not None for reference in used)
    products.run(7)
    del products
    gc.collect()
    assert all(reference() is None for reference in used)


def test_launch_floor_has_as_many_kernels_as_a_step_has_nodes(cuda: Any, monkeypatch: pytest.MonkeyPatch):
    """The count is simulated here, because it needs a CUDA graph."""
    counted = iter((1, 2, 3))
    count = lambda _, **__: (0, None, next(counted))  # noqa: E731
    monkeypatch.setattr(sys.modules["cuda.bindings"].runtime, "cudaGraphGetNodes", count)
    launched: list[int] = []
    monkeypatch.setattr(cuda.torch.cuda, "_sleep", launched.append)
    lesson = Lesson("torch_tensors", "two_layer", "float64")
    runner = Runner(Candidate("torch_tensors", "launch_floor"), "two_layer", GPU, lesson.initial)
    runner.place({key: np.concatenate([array] * 4) for key, array in lesson.chunk.items()})  # 12 batches, it takes 3
    launched.clear()
    runner.run(4)
    assert len(launched) == 1 + 2 + 3 + 1


def test_one_graph_for_all_batches_gives_the_same_losses(cuda: Any):
    lesson = Lesson("torch_autograd", "two_layer", "float64")
    static: Any = torch_static_graph.Loop(lesson.initial, learning_rate=0.1, device="cpu", option="torch_autograd")
    static.place(lesson.chunk)
    plain = lesson.loop(cuda.PythonLoop)
    np.testing.assert_array_equal(lesson.run(static, 2, 3, 4), lesson.run(plain, 2, 3, 4))
    static.compile()
    assert (static.captures, static.replays) == (1, 7)


def test_step_that_replaces_its_weights_is_refused(cuda: Any, monkeypatch: pytest.MonkeyPatch):
    lesson = Lesson("torch_tensors", "two_layer", "float64")
    loop = lesson.loop(cuda.CudaGraphs)
    lesson.run(loop, 3)

    def moved(call: Any, *_: Any) -> Any:
        loop.implementation.w1 = loop.implementation.w1.clone()

    monkeypatch.setattr(cuda, "_recorded", moved)
    with pytest.raises(UserError, match="must change its weights in place"):
        lesson.run(loop, 1)


# The tests that need a GPU.


def gpu_tests(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "tests/test_gpu.py"]
    environment = os.environ | variables
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def test_gpu_tests_run_without_optional_packages(tmp_path: Path):
    """They run to their end with few packages, even if they only report that there is no GPU."""
    absent = ["dvc", "mlflow", "ray", "rich", "selenium", "tensorflow", "xdist", "yaml"]
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({absent}))\n")
    done = gpu_tests(PYTHONPATH=str(tmp_path), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ (skipped|passed)", done.stdout)
    assert "error" not in done.stdout.lower()


def test_gpu_tests_with_require_gpu_fail_without_a_gpu():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU, and they run")
    done = gpu_tests("-m", "gpu", REQUIRE_GPU="1")  # as `make check-gpu` sets it
    assert done.returncode != 0
    assert "no CUDA device that an installed framework can use: nothing was tested" in done.stdout
    assert "REQUIRE_GPU=1" in (REPOSITORY / "Makefile").read_text()
