"""TensorFlow: deterministic kernels, one thread count, one precision; the loop over steps in the graph, and XLA."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from pipeline import runtimes
from pipeline.contract import Array, Chunk, Factors, Weights
from pipeline.errors import UserError
from pipeline.runtimes import Cycle, Loop
from pipeline.runtimes.xla import xla_pays

# Set before the import; otherwise TensorFlow's notices hide the stage's own lines. Errors are raised, not only logged.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
NOTICES = (b"oneDNN custom operations are on", b"before absl::InitializeLog()")  # no setting turns these off


@contextmanager
def _without(notices: tuple[bytes, ...]) -> Iterator[None]:
    """Hold back what libraries write to stderr, then print it without the lines that contain a notice."""
    stderr = os.dup(2)
    with TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            lines = (line for line in written if not any(notice in line for notice in notices))
            os.write(2, b"".join(lines))


# TensorFlow would also import Keras, which takes 1.6 s and is not used here. `tf.keras` still imports it on demand.
keras: Any = sys.modules.setdefault("keras", None)  # pyright: ignore[reportArgumentType]
with _without(NOTICES):
    import tensorflow as tf
if keras is None:
    del sys.modules["keras"]

PRODUCTS = 100  # in a function that multiplies
CALL = 256  # steps of one execution of the loop, at most: each loss has a place in an array

tf.get_logger().setLevel("ERROR")  # a benchmark traces repeatedly, to measure the cost


class PythonLoop(Loop):
    """Each step is a call from Python: of the graph of a step, or with `eagerly` of the lesson's lines."""

    def place(self, chunk: Chunk) -> None:
        with tf.device(self.device):
            placed: Any = {key: _in_place(array) for key, array in chunk.items()}
            super().place(placed)

    def gather(self, losses: list[Any]) -> tf.Tensor:
        return tf.stack(losses) if losses else tf.zeros(0)

    def to_host(self, losses: Any) -> Array:
        return losses.numpy()

    def predict(self, *inputs: Array) -> Array:
        with tf.device(self.device):
            return super().predict(*inputs)

    def weights(self) -> Weights:
        return {name: getattr(self.implementation, name).numpy() for name in self.names}


class GraphLoop(PythonLoop):
    """The loop over the steps is part of the graph: executing it does not come back to Python between steps."""

    graph: Any = None  # once it is defined
    xla: bool | None = None  # None: where `xla_pays`
    compiled_for: Any = None  # the stacked chunk

    def place(self, chunk: Chunk) -> None:
        """Place the batches also as one tensor for each part of a batch, with the batches as first dimension, for the
        graph."""
        super().place(chunk)
        with tf.device(self.device):
            self.stacked = [self._stack(parts, chunk) for parts in zip(*self.placed, strict=True)]

    def _stack(self, parts: tuple[Any, ...], chunk: Chunk) -> Any:
        """The parts as one tensor. If `place` left them in the memory of the chunk, that memory is used as it is."""
        if self.device == "CPU:0":
            for array in chunk.values():
                if parts[0].shape == array.shape[1:] and np.shares_memory(np.asarray(memoryview(parts[0])), array[0]):
                    return _in_place(array)
        return tf.stack(parts)

    def _defined(self) -> Any:
        """The signature of a lesson's step, if it has one, says which sizes may differ from chunk to chunk."""
        if self.graph is None:
            specs = getattr(self.implementation.step, "input_signature", None) or self.placed[0]
            signature = [tf.TensorSpec([None, *spec.shape], spec.dtype) for spec in specs]
            count = tf.TensorSpec([], tf.int32)
            self.graph = tf.function(self._steps, input_signature=[signature, count, count])
            if self.xla is None:
                # XLA must know the number of iterations of a loop inside the loop over the steps.
                self.xla = _loops(self.graph) == 1 and xla_pays(self._size(), on_gpu=self.device != "CPU:0")
            if self.xla:
                self.graph = tf.function(self.graph, jit_compile=True)
        return self.graph

    def _size(self) -> int:
        return sum(int(tf.size(getattr(self.implementation, name))) for name in self.names)

    def _steps(self, stacked: list[tf.Tensor], first: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
        losses = tf.TensorArray(getattr(self.implementation, self.names[0]).dtype, CALL, element_shape=[])
        taken, batch, batches = tf.constant(0), first, tf.shape(stacked[0])[0]
        while taken < steps:
            losses = losses.write(taken, self.implementation.step(*[part[batch] for part in stacked]))
            taken, batch = taken + 1, tf.math.floormod(batch + 1, batches)
        return losses.stack()

    def compile(self) -> None:
        """Define the graph, if this is its first chunk, and execute no step of it."""
        graph = self._defined()
        if self.compiled_for is not self.stacked:
            with tf.device(self.device):
                graph(self.stacked, tf.constant(self.next), tf.constant(0))
            self.compiled_for = self.stacked

    def run(self, steps: int) -> tf.Tensor:
        graph, parts = self._defined(), []
        with tf.device(self.device):
            for start in range(0, steps, CALL):
                count = min(CALL, steps - start)
                parts.append(graph(self.stacked, tf.constant(self.next), tf.constant(count))[:count])
                self.next = (self.next + count) % len(self.placed)
            return tf.concat(parts, 0) if parts else self.gather([])


def _in_place(array: Array) -> Any:
    """A tensor sharing the array's memory on a CPU, if aligned; `tf.constant` of it copies nothing."""
    return tf.raw_ops.Identity(input=array)


def gpu_count() -> int:
    """The number of GPUs that TensorFlow can use. Version 2.21 looks for CUDA's libraries in the wheels beside it, but
    not for cuSOLVER, and without cuSOLVER it uses no GPU. It finds a library that the process has already opened."""
    for library in Path(str(tf.__file__)).parent.parent.glob("nvidia/cusolver/lib/libcusolver.so.*"):
        with suppress(OSError):  # then TensorFlow sees no GPU
            ctypes.CDLL(str(library))
    return len(tf.config.list_physical_devices("GPU"))


def _loops(graph: Any) -> int:
    definition = graph.get_concrete_function().graph.as_graph_def()
    functions = [function.node_def for function in definition.library.function]
    return sum(node.op in ("While", "StatelessWhile") for nodes in [definition.node, *functions] for node in nodes)


class Runtime(runtimes.Runtime):
    graphs = ("cpu", "cuda")
    python_loop = PythonLoop
    graph_loop = GraphLoop

    def apply(self) -> None:
        environment = self.environment
        kind, _, index = environment.device.partition(":")
        if kind == "cuda" and int(index) >= (seen := gpu_count()):
            raise UserError(
                f"TensorFlow {tf.__version__} sees {seen} GPUs, and so cannot use {environment.device}. To learn which "
                "library of CUDA it does not find, run the command again with TF_CPP_MIN_LOG_LEVEL=0 "
                "TF_CPP_VMODULE=dso_loader=1 before it. Set device to cpu in params.yaml, "
                "or run `docker compose run --rm gpu`, whose image has the libraries."
            )
        super().apply()
        self.device = "CPU:0" if kind == "cpu" else f"GPU:{index}"
        tf.config.threading.set_intra_op_parallelism_threads(environment.threads)
        tf.config.threading.set_inter_op_parallelism_threads(environment.threads)
        tf.config.experimental.enable_tensor_float_32_execution(environment.precision == "tf32")
        if environment.deterministic:
            tf.config.experimental.enable_op_determinism()
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
        with tf.device(self.device):
            tf.zeros(1)  # makes the device's context

    @contextmanager
    def eagerly(self) -> Iterator[None]:
        """Functions run as the Python that they were traced from, one operation after the other: no graph."""
        tf.config.run_functions_eagerly(True)
        try:
            yield
        finally:
            tf.config.run_functions_eagerly(False)

    def multiply(self, batches: list[Factors]) -> Cycle:
        """The products of several batches in one function, compiled on a GPU, which multiplies faster than Python can
        call. It takes all batches, or as many as have PRODUCTS products, because tracing takes longer than
        multiplying."""
        batches = batches[: max(1, PRODUCTS // len(batches[0]))]
        with tf.device(self.device):
            pairs = [(tf.constant(left), tf.constant(right)) for factors in batches for left, right in factors]

            def products() -> Any:
                return [left @ right for left, right in pairs]  # a result that is not returned is not computed

            graph: Any = tf.function(products, jit_compile=True if self.on_gpu else None)
            return Cycle([graph.get_concrete_function()], least_steps=len(batches))

    def synchronize(self) -> None:
        tf.test.experimental.sync_devices()

    def peak_memory_bytes(self) -> int:
        if self.on_gpu:
            return tf.config.experimental.get_memory_info(self.device)["peak"]
        return super().peak_memory_bytes()
