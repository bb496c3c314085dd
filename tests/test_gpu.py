"""The lessons on an NVIDIA GPU. `make check-gpu`, or `python3 -m pytest tests/test_gpu.py` on any machine with Python
3.11 or newer, torch, NumPy, safetensors, threadpoolctl, psutil, nvidia-ml-py and pytest; with TensorFlow, its lessons
too. Where there is no GPU they are skipped, and `make check-gpu`, which sets REQUIRE_GPU, fails."""

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
from pipeline.benchmark.benchmark import benchmark
from pipeline.benchmark.candidates import Candidate
from pipeline.benchmark.plan import BenchmarkConfig, Size, launch_floors
from pipeline.benchmark.runner import Runner, draw
from pipeline.contract import implementation_file
from pipeline.environment import Environment, framework_of
from pipeline.errors import UserError
from pipeline.parity.explain import explain
from pipeline.running.machine import available_cpus
from pipeline.runtimes import load_runtime, open_implementation

ON_GPU = [name for name in LESSONS if framework_of(name) != "numpy" and find_spec(framework_of(name))]
TORCH = [name for name in ON_GPU if framework_of(name) == "torch"]


def devices() -> int:
    """How many CUDA devices torch, or else TensorFlow, can use."""
    if find_spec("torch"):
        import torch

        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    if find_spec("tensorflow"):
        from pipeline.runtimes.tensorflow import gpu_count

        return gpu_count()
    return 0


COUNT = devices()
NONE = "no CUDA device that an installed framework can use"
if COUNT == 0 and os.environ.get("REQUIRE_GPU"):
    pytest.exit(f"{NONE}: nothing was tested. In a container: docker compose run --rm gpu make check-gpu", 1)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(COUNT == 0, reason=NONE)]
GPU = replace(HOST, device="cuda:0", device_name="the GPU", threads=available_cpus())


@pytest.fixture(autouse=True)
def the_cpu_afterwards() -> Iterator[None]:
    """The settings of a runtime apply to the process, in which other tests need the CPU."""
    yield
    if TORCH:
        load_runtime("torch")(HOST)


def on_gpu(name: str, dtype: str = "float32", environment: Environment = GPU) -> Lesson:
    return Lesson(name, LESSONS[name], dtype, environment)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ON_GPU)
def test_losses_weights_and_predictions_equal_the_reference(name: str, dtype: str):
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
def test_batch_runs_eagerly_first_and_is_replayed_afterwards(name: str, calls: tuple[int, ...]):
    lesson = on_gpu(name, "float64")
    loop = lesson.placed()
    lesson.run(loop, *calls)
    assert loop.captures == min(3, sum(calls) - 3)
    assert loop.replays == sum(calls) - 3
    lesson.run(loop, 4, 1)  # another order
    loop.next = 2
    lesson.run(loop, 2)
    assert loop.captures == 3
    assert loop.replays == sum(calls) + 7 - 3


def both_ways(name: str, dtype: str, sizes: dict[str, int]) -> tuple[Lesson, Any, Any]:
    """A lesson at other sizes than the tests' small ones: in a loop that runs eagerly, and in one that captures."""
    lesson = on_gpu(name, dtype)
    lesson.initial, lesson.chunk = draw(lesson.problem, SimpleNamespace(**sizes), dtype)
    loops = []
    for eagerly in (True, False):
        opened = open_implementation(name, lesson.problem, GPU, eagerly=eagerly)
        loops.append(opened.create(lesson.initial, 0.01))
        loops[-1].place(lesson.chunk)
    return lesson, *loops


def same_bits(one: Any, other: Any) -> None:
    for key, weight in one.weights().items():
        np.testing.assert_array_equal(other.weights()[key], weight)


TUTORIAL = {"batch_size": 64, "inputs": 1000, "hidden": 100, "outputs": 10}
LONG = {"batch_size": 256, "inputs": 64, "hidden": 128, "outputs": 10, "min_length": 32, "max_length": 32}


@pytest.mark.parametrize("name", TORCH)
def test_replayed_steps_equal_eager_steps_bit_for_bit(name: str):
    sizes = TUTORIAL if LESSONS[name] == "two_layer" else LONG | {"min_length": 1}
    lesson, eager, replayed = both_ways(name, "float32", sizes)
    steps = 3 * len(lesson.chunk["y"])
    np.testing.assert_array_equal(lesson.run(replayed, steps), lesson.run(eager, steps))
    assert replayed.replays == 2 * len(lesson.chunk["y"])
    assert eager.replays == 0
    same_bits(eager, replayed)


@pytest.mark.parametrize("name", [name for name in TORCH if LESSONS[name] == "recurrent"])
def test_long_recurrent_float64_steps_equal_eager_steps_bit_for_bit(name: str):
    lesson, eager, replayed = both_ways(name, "float64", LONG)
    steps = 2 * len(lesson.chunk["y"]) + 1
    np.testing.assert_array_equal(lesson.run(replayed, steps), lesson.run(eager, steps))
    assert replayed.replays > 0
    same_bits(eager, replayed)


@pytest.mark.parametrize("name", TORCH)
def test_training_continued_from_its_weights_ends_with_the_same_bits(name: str):
    lesson = on_gpu(name)
    whole, part = lesson.placed(), lesson.placed()
    losses = lesson.run(whole, 40)
    before = lesson.run(part, 17)
    rest = lesson.create(part.weights())
    rest.place(lesson.chunk)
    rest.next = part.next
    np.testing.assert_array_equal(np.concatenate([before, lesson.run(rest, 23)]), losses)
    same_bits(whole, rest)


@pytest.mark.parametrize("name", TORCH)
def test_streamed_chunks_of_different_sizes_equal_eager_steps(name: str):
    """Data larger than memory are streamed. The last chunk is shorter, and keeps no graph for the next epoch."""
    lesson = on_gpu(name, "float64")
    more = np.random.default_rng(7)
    chunks = []
    for count in (3, 3, 2):
        chunk = {key: array[:count].copy() for key, array in lesson.chunk.items()}
        chunks.append(chunk | {"y": more.standard_normal(chunk["y"].shape)})
    eager = open_implementation(name, lesson.problem, GPU, eagerly=True).create(lesson.initial, 0.1)
    streamed, losses = lesson.create(), []
    for loop in (eager, streamed):
        for chunk in chunks * 3:
            loop.place({key: array.copy() for key, array in chunk.items()})
            loop.compile_for(len(chunk["y"]))
            losses.append(lesson.run(loop, len(chunk["y"])))
    for one, other in zip(losses[:9], losses[9:], strict=True):
        np.testing.assert_array_equal(one, other)
    same_bits(eager, streamed)
    assert (streamed.captures, streamed.replays) == (3, 24 - 3)


@pytest.mark.parametrize("name", [name for name in TORCH if LESSONS[name] == "recurrent"])
def test_batches_of_other_lengths_drop_all_graphs(name: str):
    lesson = on_gpu(name, "float64")
    eager = open_implementation(name, lesson.problem, GPU, eagerly=True).create(lesson.initial, 0.1)
    loop, losses = lesson.create(), []
    shorter = lesson.chunk | {"lengths": np.maximum(1, lesson.chunk["lengths"] - 1)}
    for one in (eager, loop):
        for chunk in (lesson.chunk, shorter, lesson.chunk):
            one.place(chunk)
            losses.append(lesson.run(one, 8))
    np.testing.assert_array_equal(np.concatenate(losses[:3]), np.concatenate(losses[3:]))
    same_bits(eager, loop)
    assert loop.captures == 9


@pytest.mark.skipif(not TORCH, reason="there is no torch")
@pytest.mark.parametrize("name", ["torch_autograd", "torch_function"])
def test_graphs_with_cublas_workspace_stay_valid_after_another_loop_is_dropped(name: str):
    import torch

    lesson, eager, kept = both_ways(name, "float32", TUTORIAL)
    _, _, dropped = both_ways(name, "float32", TUTORIAL)
    batches = len(lesson.chunk["y"])
    for loop in (eager, kept, dropped):
        lesson.run(loop, 2 * batches)
    del loop, dropped
    gc.collect()
    torch.cuda.empty_cache()
    foreign = torch.full((2**26,), 7.0, device="cuda")  # takes the freed memory
    np.testing.assert_array_equal(lesson.run(kept, batches), lesson.run(eager, batches))
    same_bits(eager, kept)
    assert bool((foreign == 7).all())


@pytest.mark.skipif(not TORCH, reason="there is no torch")
def test_matrix_products_keep_their_memory():
    import torch

    runtime = load_runtime("torch")(GPU)
    large = np.ones((4096, 4096), "float32")  # 64 MiB, the most that cuBLAS takes for itself meanwhile
    factors = [[(large, large)], [(large, large)]]
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    repeated = runtime.multiply(factors)
    gc.collect()
    assert torch.cuda.memory_allocated() - before >= 4 * large.nbytes
    foreign = torch.full((2**26,), 7.0, device="cuda")
    repeated.run(64)
    torch.cuda.synchronize()
    assert bool((foreign == 7).all())


@pytest.mark.skipif(not TORCH, reason="there is no torch")
def test_step_that_replaces_its_weights_is_refused():
    lesson = on_gpu("torch_tensors")
    loop: Any = lesson.placed()
    step = loop.implementation.step

    def moving(*placed: Any) -> Any:
        loss = step(*placed)
        loop.implementation.w1 = loop.implementation.w1.clone()
        return loss

    loop.implementation.step = moving
    with pytest.raises(UserError, match="must change its weights in place"):
        lesson.run(loop, 5)


@pytest.mark.skipif(not TORCH, reason="there is no torch")
def test_launch_floor_counts_the_graph_nodes_of_the_step():
    pytest.importorskip("cuda.bindings")
    lesson = on_gpu("torch_autograd")
    opened = open_implementation(lesson.name, lesson.problem, GPU, eagerly=True)
    runtime: Any = opened.runtime
    loop = opened.create(lesson.initial, 0.1)
    loop.place(lesson.chunk)
    counts = runtime.nodes(loop)
    assert len(counts) == 3
    assert all(10 <= count <= 40 for count in counts), counts  # five products, a loss, their gradients and two updates
    runtime.launch(counts).run(7)
    runtime.synchronize()


@pytest.mark.skipif(not TORCH, reason="there is no torch")
def test_benchmark_measures_replays_and_their_baselines():
    sizes = {"batch_size": 16, "inputs": 256, "hidden": 32, "outputs": 10}
    texts = ["torch_tensors", "torch_autograd", "numpy_arrays", "matmul/torch", "cpu/torch_tensors"]
    candidates = [*map(Candidate.parse, texts), *launch_floors(GPU, ["torch_autograd"])]
    recurrent = {"batch_size": 16, "inputs": 8, "hidden": 16, "outputs": 4, "min_length": 1, "max_length": 6}
    plan = [
        Size("two_layer", sizes, candidates),
        Size("two_layer", TUTORIAL, candidates),
        Size("recurrent", recurrent, [Candidate("torch_loop"), Candidate("torch", "matmul")]),
    ]
    taken, meanwhile = benchmark(plan, config=BenchmarkConfig(2, 2, 0.01, 0), dtype="float32", environment=GPU)
    for sample in taken:
        replays = sample.candidate.is_implementation and sample.candidate.framework == "torch"
        assert sample.replays == (sample.steps if replays else 0), sample
    names = [Candidate(name, kind) for name in ("torch_autograd", "torch_loop") for kind in ("eager", "capture")]
    assert {*names} <= {sample.candidate for sample in taken}
    assert all(process.gpu is None or "throttled_by" in process.gpu for process in meanwhile["processes"])


@pytest.mark.parametrize("name", ON_GPU)
def test_every_quantity_agrees_with_the_equations_in_float64(name: str):
    """The comparison of `make explain NAME=… DEVICE=cuda`."""
    problem = LESSONS[name]
    file = implementation_file(problem, name)
    explanation = explain(problem, file.read_text(encoding="utf-8"), file, load_runtime(name)(GPU))
    assert explanation.is_right, explanation.sentence
    assert max(row.error or 0 for row in explanation.rows) <= 1e-11


@pytest.mark.parametrize("name", ON_GPU)
def test_training_lowers_the_loss_and_its_gradient_equals_the_reference(name: str):
    """`train` and `outputs`, called as in the stage `train`."""
    pytest.importorskip("pydantic")
    from pipeline.clock import Stopwatch
    from pipeline.training.outputs import outputs
    from pipeline.training.train import train

    lesson = on_gpu(name)
    opened = open_implementation(name, lesson.problem, GPU)
    test = [np.concatenate(list(array)) for key, array in lesson.chunk.items() if key != "y"]
    data: Any = SimpleNamespace(
        initial=lesson.initial,
        chunks=lambda _: [slice(0, 24)],
        read=lambda chunk, _: {key: array[: (chunk.stop - chunk.start) // 8] for key, array in lesson.chunk.items()},
        test_inputs=lambda: test,
    )
    stopwatch = Stopwatch(opened.runtime.synchronize)
    training = train(
        name,
        opened.create,
        data,
        learning_rate=0.1,
        steps=30,
        batch_size=8,
        stopwatch=stopwatch,
        on_progress=lambda *_: None,
    )
    reference, gradients = lesson.reference()
    assert training.losses[0] == pytest.approx(reference, rel=1e-4)
    assert training.losses[-1] < training.losses[0]
    trained = outputs(opened.create, training.loop, data, 8)
    for key, gradient in gradients.items():
        np.testing.assert_allclose(trained[f"gradient.{key}"], gradient, rtol=1e-3, atol=1e-5)
    if name in TORCH:
        assert (training.loop.captures, training.loop.replays) == (3, 27)
        assert stopwatch.seconds["compile"] > 0


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
def test_training_on_the_second_device_equals_the_first(name: str):
    lesson = on_gpu(name, "float64", replace(GPU, device="cuda:1"))
    loop: Any = lesson.placed()
    losses = lesson.run(loop, 6)
    assert {str(getattr(loop.implementation, key).device) for key in loop.names} == {"cuda:1"}
    np.testing.assert_allclose(losses, on_gpu(name, "float64").run(on_gpu(name, "float64").placed(), 6), rtol=1e-12)


def test_tf32_lowers_the_precision_of_products():
    torch = pytest.importorskip("torch")
    errors = {}
    for precision in ("highest", "tf32"):
        load_runtime("torch")(replace(GPU, precision=precision))
        generator = torch.Generator("cuda").manual_seed(0)
        left, right = (torch.randn(512, 512, device="cuda", generator=generator) for _ in range(2))
        exact = left.double() @ right.double()
        errors[precision] = float(((left @ right).double() - exact).norm() / exact.norm())
    if torch.cuda.get_device_capability() >= (8, 0):
        assert errors["highest"] < 1e-6
        assert errors["tf32"] > 1e-5
    else:
        assert errors["tf32"] == errors["highest"], "TF32 needs compute capability 8.0"


def test_gpu_memory_is_released_after_a_run():
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


def test_numpy_in_a_gpu_benchmark_uses_the_threads_of_the_environment():
    pytest.importorskip("torch")
    sizes = SimpleNamespace(batch_size=512, inputs=1024, hidden=1024, outputs=64)
    weights, chunk = draw("two_layer", sizes, "float32")
    runner = Runner(Candidate("numpy_arrays"), "two_layer", replace(GPU, threads=1), weights)
    runner.place(chunk)
    runner.run(1)
    before, start = os.times(), os.times().elapsed
    runner.run(5)
    after = os.times()
    assert after.user - before.user < 1.3 * (after.elapsed - start) + 0.1, "more than one thread was busy"


def test_saved_weights_give_the_same_predictions(tmp_path: Any):
    pytest.importorskip("torch")
    lesson = on_gpu("torch_tensors")
    loop = lesson.placed()
    lesson.run(loop, 4)
    write_arrays(tmp_path / "weights.safetensors", loop.weights())
    weights = read_arrays(tmp_path / "weights.safetensors")
    again = open_implementation("torch_tensors", "two_layer", GPU).create(weights, 0.1)
    np.testing.assert_array_equal(again.predict(*lesson.inputs()), loop.predict(*lesson.inputs()))
