"""The headlines: the comparisons at the top of the report. The benchmark goes on until their intervals are narrow."""

from typing import NamedTuple

from pipeline.benchmark.candidates import Candidate


class Headline(NamedTuple):
    """A comparison at the top of the report: what one idea costs or saves. The two candidates differ in nothing else,
    except in the last headline, which says so. The ratio should be known to ± `within`, which is wider for TensorFlow,
    whose times vary more."""

    idea: str
    above: Candidate
    below: Candidate
    within: float
    on_gpu: bool = False  # only there


def _headline(idea: str, above: str, below: str, within: float, *, on_gpu: bool = False) -> Headline:
    return Headline(idea, Candidate.parse(above), Candidate.parse(below), within, on_gpu)


HEADLINES = (
    _headline("Autograd", "torch_autograd", "torch_tensors", 0.05),
    _headline("An operator of our own", "torch_function", "torch_autograd", 0.05),
    _headline("The static graph", "tensorflow_graph", "eager/tensorflow_graph", 0.1),
    _headline("Fusing operations up front", "tensorflow_graph", "tensorflow_graph+no_xla", 0.1),
    _headline("The loop in the graph", "tensorflow_scan", "eager/tensorflow_scan", 0.1),
    _headline("A graph as long as each example", "torch_loop", "padded/torch_loop", 0.05),
    _headline("The GPU", "torch_tensors", "cpu/torch_tensors", 0.1, on_gpu=True),
    _headline("The GPU, over NumPy", "torch_tensors", "numpy_arrays", 0.1, on_gpu=True),
    _headline("Two ways to loop, as they are", "tensorflow_scan", "torch_loop", 0.1),
)
