"""The lessons on an NVIDIA GPU. `make check-gpu`, or `python3 -m pytest tests/test_gpu.py` on any machine with Python
3.11 or newer, torch, NumPy, safetensors and pytest; with TensorFlow, its lessons too. Skipped where there is no GPU."""

import gc
import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import HOST, LESSONS, Lesson

from pipeline.array_files import read_arrays, write_arrays
from pipeline.environment import Environment, available_cpus, framework_of
from pipeline.measuring.candidates import Candidate, draw
from pipeline.runtimes import load_runtime, open_implementation

ON_GPU = [name for name in LESSONS if framework_of(name) != "numpy" and find_spec(framework_of(name))]
TORCH = [name for name in ON_GPU if framework_of(name) == "torch"]


def devices() -> int:
    """How many CUDA devices torch, or else TensorFlow, can use."""
    if find_spec("torch"):
        import torch

        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    if find_spec("tensorflow"):
        import tensorflow as tf

        return len(tf.config.list_physical_devices("GPU"))
    return 0


COUNT = devices()
NONE = "no CUDA device that an installed framework can use"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(COUNT == 0, reason=NONE)]
GPU = replace(HOST, device="cuda:0", device_name="the GPU", threads=available_cpus())


@pytest.fixture(autouse=True)
def the_cpu_afterwards() -> Iterator[None]:
    """Runtimes are modules, and know one device; other tests in the process want the CPU."""
    yield
    for framework in {framework_of(name) for name in TORCH}:
        load_runtime(framework).start(HOST)


def on_gpu(name: str, dtype: str = "float32", environment: Environment = GPU) -> Lesson:
    return Lesson(name, LESSONS[name], dtype, environment)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ON_GPU)
def test_parity_with_the_reference(name: str, dtype: str):
    lesson = on_gpu(name, dtype)
    loop = lesson.placed()
    losses = lesson.run(loop, 1, 3, 9)
    weights = lesson.initial
    tolerance = {"float32": 1e-4, "float64": 1e-11}[dtype]
    for step, loss in enumerate(losses):
        reference, gradients = lesson.reference(weights, step % 3)
        assert loss == pytest.approx(reference, rel=tolerance)
        weights = {key: weights[key].astype(np.float64) - 0.1 * gradients[key] for key in weights}
    for key, weight in loop.weights().items():
        np.testing.assert_allclose(weight, weights[key], rtol=tolerance, atol=tolerance)
    reference_predictions = lesson.predict_reference(loop.weights())
    np.testing.assert_allclose(loop.predict(*lesson.inputs()), reference_predictions, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("calls", [(2, 1, 1, 1), (1, 1, 7, 5), (3, 50, 1, 20)])
def test_every_step_after_the_first_ones_is_a_replay(name: str, calls: tuple[int, ...]):
    lesson = on_gpu(name, "float64")
    loop = lesson.placed()
    lesson.run(loop, *calls)
    assert loop.captures <= 3
    assert loop.replays == sum(calls) - loop.first_steps
    captures = loop.captures
    lesson.run(loop, 4, 1)  # another order
    loop.next = 2
    lesson.run(loop, 2)
    assert loop.captures == max(captures, 3)
    assert loop.replays == sum(calls) + 7 - loop.first_steps


@pytest.mark.parametrize("name", TORCH)
def test_replays_across_the_border_of_a_chunk(name: str):
    lesson = on_gpu(name, "float64")
    other = {key: array[::-1].copy() for key, array in lesson.chunk.items()}
    loop = lesson.placed()
    losses = [lesson.run(loop, 5)]
    loop.place(other)
    loop.compile()
    losses.append(lesson.run(loop, 4))
    assert loop.replays == 9 - loop.first_steps
    weights, batches = lesson.initial, [0, 1, 2, 0, 1, 2, 1, 0, 2]
    for loss, batch in zip(np.concatenate(losses), batches, strict=True):
        reference, gradients = lesson.reference(weights, batch)
        assert loss == pytest.approx(reference, rel=1e-11)
        weights = {key: weights[key] - 0.1 * gradients[key] for key in weights}


@pytest.mark.parametrize("name", ON_GPU)
def test_weights_are_bitwise_reproducible(name: str):
    runs = []
    for _ in range(2):
        lesson = on_gpu(name)
        loop = lesson.placed()
        runs.append((lesson.run(loop, 50), loop.weights()))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    for key in runs[0][1]:
        np.testing.assert_array_equal(runs[0][1][key], runs[1][1][key])


@pytest.mark.skipif(COUNT < 2, reason="there is one CUDA device")
@pytest.mark.parametrize("name", TORCH)
def test_the_second_device(name: str):
    lesson = on_gpu(name, "float64", replace(GPU, device="cuda:1"))
    loop: Any = lesson.placed()
    losses = lesson.run(loop, 6)
    assert {str(getattr(loop.implementation, key).device) for key in loop.names} == {"cuda:1"}
    np.testing.assert_allclose(losses, on_gpu(name, "float64").run(on_gpu(name, "float64").placed(), 6), rtol=1e-12)


def test_tf32_changes_the_products():
    torch = pytest.importorskip("torch")
    errors = {}
    for precision in ("highest", "tf32"):
        load_runtime("torch").start(replace(GPU, precision=precision))
        generator = torch.Generator("cuda").manual_seed(0)
        left, right = (torch.randn(512, 512, device="cuda", generator=generator) for _ in range(2))
        exact = left.double() @ right.double()
        errors[precision] = float(((left @ right).double() - exact).norm() / exact.norm())
    if torch.cuda.get_device_capability() >= (8, 0):
        assert errors["highest"] < 1e-6
        assert errors["tf32"] > 1e-5
    else:
        assert errors["tf32"] == errors["highest"], "TF32 needs compute capability 8.0"


def test_memory_is_given_back_after_a_run():
    torch = pytest.importorskip("torch")

    def once() -> int:
        lesson = on_gpu("torch_autograd")
        loop = lesson.placed()
        lesson.run(loop, 20)
        torch.cuda.synchronize()
        del loop
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()

    first = once()
    assert once() <= first


def test_numpy_beside_the_gpu_has_the_threads_of_the_environment():
    pytest.importorskip("torch")
    sizes = SimpleNamespace(batch_size=512, inputs=1024, hidden=1024, outputs=64)
    weights, chunk = draw("two_layer", sizes, "float32")
    candidate = Candidate("numpy_arrays", "two_layer", replace(GPU, threads=1), weights)
    candidate.place(chunk)
    candidate.run(1)
    before, start = os.times(), os.times().elapsed
    candidate.run(5)
    after = os.times()
    assert after.user - before.user < 1.3 * (after.elapsed - start) + 0.1, "more than one thread was busy"


def test_weights_go_to_disk_and_come_back(tmp_path: Any):
    pytest.importorskip("torch")
    lesson = on_gpu("torch_tensors")
    loop = lesson.placed()
    lesson.run(loop, 4)
    write_arrays(tmp_path / "weights.safetensors", loop.weights())
    weights = read_arrays(tmp_path / "weights.safetensors")
    again = open_implementation("torch_tensors", "two_layer", GPU).create(weights, 0.1)
    np.testing.assert_array_equal(again.predict(*lesson.inputs()), loop.predict(*lesson.inputs()))
