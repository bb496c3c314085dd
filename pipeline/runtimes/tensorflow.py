"""TensorFlow: deterministic kernels, one thread count, one precision."""

import os

# Before the import, or its notices drown the stage's own lines. What goes wrong is raised, not only logged.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from pipeline.environment import Environment
from pipeline.runtimes import peak_process_bytes

_device = "CPU:0"


def start(environment: Environment) -> str:
    global _device
    kind, _, index = environment.device.partition(":")
    _device = "CPU:0" if kind == "cpu" else f"GPU:{index}"
    tf.config.threading.set_intra_op_parallelism_threads(environment.threads)
    tf.config.threading.set_inter_op_parallelism_threads(environment.threads)
    tf.config.experimental.enable_tensor_float_32_execution(environment.precision == "tf32")
    tf.config.experimental.enable_op_determinism()
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    return _device


def synchronize() -> None:
    tf.test.experimental.sync_devices()


def peak_memory_bytes() -> int:
    if _device.startswith("GPU"):
        return tf.config.experimental.get_memory_info(_device)["peak"]
    return peak_process_bytes()
