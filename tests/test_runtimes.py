"""What the runtimes do to make a step faster does not change it, and what they set holds."""

import ctypes
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import HOST, LESSONS, REPOSITORY, Lesson
from threadpoolctl import threadpool_info, threadpool_limits

from pipeline import runtimes
from pipeline.contract import load_problem
from pipeline.measuring.candidates import draw
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
    mapped = np.load(tmp_path / "x.npy", mmap_mode="c")  # as pipeline/experiment/data.py reads it
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


# The allocator.

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


# A loop of CUDA graphs, with the capture replaced by what a replay would compute: in which order, and which losses.


class Recorded:
    """A capture without CUDA: replaying takes the step, and leaves the loss in the same place each time."""

    def __init__(self, take_step: Any) -> None:
        import torch

        self.take_step, self.loss = take_step, torch.full((), float("nan"), dtype=torch.float64)

    def replay(self) -> None:
        self.loss.copy_(self.take_step())


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Any:
    runtime: Any = load_runtime("torch")
    runtime.start(HOST)
    monkeypatch.setattr(runtime, "_capture_stream", lambda: None)
    monkeypatch.setattr(runtime.torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(runtime, "_beside", nullcontext)

    def capture(self: Any, index: int) -> Any:
        recorded = Recorded(lambda: runtime.PythonLoop.take_step(self, index))
        return recorded, recorded.loss

    monkeypatch.setattr(runtime.CudaGraphs, "_capture", capture)
    return runtime.CudaGraphs


@pytest.mark.parametrize("name", [name for name in LESSONS if name.startswith("torch")])
@pytest.mark.parametrize("calls", [(2, 7, 1, 1, 5), (1, 1, 3, 3, 2, 6), (16,)])
def test_any_sequence_of_steps_replays(graphs: Any, name: str, calls: tuple[int, ...]):
    lesson = Lesson(name, LESSONS[name], "float64")
    plain = lesson.placed()
    captured = graphs(lesson.create().implementation, lesson.initial)
    captured.place(lesson.chunk)
    captured.compile()
    np.testing.assert_array_equal(lesson.run(captured, *calls), lesson.run(plain, *calls))
    assert captured.captures == 3
    assert captured.replays == sum(calls) - captured.first_steps


@pytest.mark.parametrize("name", [name for name in LESSONS if name.startswith("torch")])
def test_a_new_chunk_takes_over_the_graphs_of_batches_like_its_own(graphs: Any, name: str):
    lesson = Lesson(name, LESSONS[name], "float64")
    plain = lesson.placed()
    captured = graphs(lesson.create().implementation, lesson.initial)
    other = {key: array[::-1].copy() for key, array in lesson.chunk.items()}
    if "lengths" in other:
        other["lengths"] = np.roll(other["lengths"], 1, axis=1)  # the same lengths, of other examples
        lengths = np.sort(lesson.chunk["lengths"], axis=1)
        same = (np.sort(other["lengths"], axis=1) == lengths).all(axis=1)
    else:
        same = np.ones(3, bool)
    losses = []
    for loop in (plain, captured):
        for chunk in (lesson.chunk, other, {key: array[:2] for key, array in lesson.chunk.items()}, other):
            loop.place({key: array.copy() for key, array in chunk.items()})  # its memory will be taken over
            loop.compile()
            losses.append(lesson.run(loop, 5))
    np.testing.assert_array_equal(losses[4:], losses[:4])
    assert captured.replays == 4 * 5 - captured.first_steps
    if same.all():
        assert captured.captures == 4  # three batches, and the third again after a chunk of two


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
