"""TensorFlow: deterministic kernels, one thread count, one precision; XLA where it was measured to be faster."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from tempfile import TemporaryFile
from typing import Any

from pipeline.contract import Array, Factors, Implementation
from pipeline.environment import Environment
from pipeline.runtimes import peak_process_bytes

# Before the import, or its notices drown the stage's own lines. What goes wrong is raised, not only logged.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
NOTICES = (b"oneDNN custom operations are on", b"before absl::InitializeLog()")  # which heed no setting


@contextmanager
def _without(notices: tuple[bytes, ...]) -> Iterator[None]:
    """What libraries write to stderr meanwhile comes afterwards, without the lines that hold a notice."""
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


with _without(NOTICES):
    import tensorflow as tf

# Measured on two cores with batch × inputs × hidden × outputs. At 64 × 1000 × 100 × 10 a step took 248 µs, with XLA
# 125; at 128 × 1024 × 512 × 64 both took 1.26 ms; at 256 × 1024 × 1024 × 64 it took 3.6 ms, with XLA 4.1.
XLA_WEIGHTS = 2**19  # elements in all weights together, up to which XLA is used on a CPU

tf.get_logger().setLevel("ERROR")  # it warns of graphs made anew, which is how a benchmark learns what making one costs
_device = ""


def start(environment: Environment) -> str:
    global _device
    kind, _, index = environment.device.partition(":")
    _device = "CPU:0" if kind == "cpu" else f"GPU:{index}"
    tf.config.threading.set_intra_op_parallelism_threads(environment.threads)
    tf.config.threading.set_inter_op_parallelism_threads(environment.threads)
    tf.config.experimental.enable_tensor_float_32_execution(environment.precision == "tf32")
    if environment.deterministic:
        tf.config.experimental.enable_op_determinism()
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    with tf.device(_device):
        tf.zeros(1)  # makes the device's context
    return _device


def prepare(implementation: Any) -> Implementation:
    """With XLA, the graph in a graph that is compiled as one; it has to be a graph that XLA can compile.

    Blocks of data, which do not change, are handed over where they lie: `tf.constant` copies an array, but no tensor.
    """
    load = implementation.load
    implementation.load = lambda batches: load({key: _placed(array) for key, array in batches.items()})
    small = sum(weight.size for weight in implementation.weights().values()) <= XLA_WEIGHTS
    if (small or _device != "CPU:0") and _loops(implementation.graph) == 1:
        implementation.graph = tf.function(implementation.graph, jit_compile=True)
    return implementation


def _placed(array: Array) -> tf.Tensor:
    with tf.device(_device):
        return tf.raw_ops.Identity(input=array)  # on the CPU the array's own memory, if it lies as TensorFlow needs it


def _loops(graph: Any) -> int:
    """How many loops a graph holds. XLA must know how often a loop inside the loop over the steps goes round."""
    definition = graph.get_concrete_function().graph.as_graph_def()
    functions = [function.node_def for function in definition.library.function]
    return sum(node.op in ("While", "StatelessWhile") for nodes in [definition.node, *functions] for node in nodes)


@contextmanager
def eagerly() -> Iterator[None]:
    """Functions run as the Python that they were traced from, one operation after the other: no graph."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def to_host(array: Any) -> Array:
    return array.numpy()


def multiply(batches: list[Factors]) -> Callable[[int], None]:
    with tf.device(_device):
        on_device = [[(tf.constant(left), tf.constant(right)) for left, right in factors] for factors in batches]

    def steps(count: int) -> None:
        for factors in islice(cycle(on_device), count):
            for left, right in factors:
                tf.linalg.matmul(left, right)

    return steps


def synchronize() -> None:
    if _device:  # asking would start TensorFlow, whose threads can then no longer be set
        tf.test.experimental.sync_devices()


def peak_memory_bytes() -> int:
    if _device.startswith("GPU"):
        return tf.config.experimental.get_memory_info(_device)["peak"]
    return peak_process_bytes()
