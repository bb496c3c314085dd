"""Where TensorFlow's graph of a loop over steps is compiled by XLA. It imports no framework."""

# Elements in all weights together, up to which XLA is used on a CPU. Measured on two cores of an AMD EPYC with AVX-512,
# interleaved, batch × inputs × hidden × outputs: with XLA a step takes 0.64 times as long at 64 × 1000 × 100 × 10,
# 0.85 at 64 × 1000 × 400 × 10, 1.00 at 128 × 1024 × 512 × 64 and 1.11 at 512 × 2048 × 2048 × 256. It is a rule, and
# not decided where it runs, because XLA rounds otherwise: the weights would depend on a measurement. On a GPU XLA is
# used at every size, which is not yet measured: where kernels must be deterministic, XLA takes the first that fits, and
# not the fastest. `make bench-gpu` has a step without XLA beside it (tensorflow_graph+no_xla).
XLA_WEIGHTS = 2**19


def xla_pays(weights: int, *, on_gpu: bool) -> bool:
    """Whether XLA makes a loop over steps faster, whose network has so many weights."""
    return on_gpu or weights <= XLA_WEIGHTS
