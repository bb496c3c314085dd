"""The rule that decides whether XLA compiles TensorFlow's loop over steps. This file imports no framework."""

# Elements in all weights together, up to which XLA is used on a CPU. Measured on two cores of an AMD EPYC with AVX-512,
# interleaved, batch × inputs × hidden × outputs: with XLA a step takes 0.64 times as long at 64 × 1000 × 100 × 10, 0.85
# at 64 × 1000 × 400 × 10, 1.00 at 128 × 1024 × 512 × 64 and 1.11 at 512 × 2048 × 2048 × 256. The rule is fixed and not
# measured on each machine, because XLA rounds differently and the weights would depend on a measurement. On a GPU XLA
# is used at every size: on an H100 a step at 64 × 1000 × 100 × 10 took 87 µs with XLA and 970 µs without it
# (docs/reference/performance.md). `make bench-gpu` measures other sizes without XLA (tensorflow_graph+no_xla).
XLA_WEIGHTS = 2**19


def xla_pays(weights: int, *, on_gpu: bool) -> bool:
    """Whether XLA makes a loop over steps faster for a network with this number of weights."""
    return on_gpu or weights <= XLA_WEIGHTS
