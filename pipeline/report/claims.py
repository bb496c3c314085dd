"""The claims of the text, and the rule by which each is judged: a table. What the rules say is findings.py's."""

from typing import NamedTuple


class Claim(NamedTuple):
    """`subject` and `other` are implementations; a claim is judged where both were run."""

    text: str
    rule: str  # a function of findings.py
    subject: str
    other: str = ""
    of_other: str = ""  # what a step of the other is called in the finding


CLAIMS = (
    Claim("GPUs often provide speedups of 50x or greater.", "times_as_fast_as_numpy", "torch_tensors"),
    Claim(
        "A PyTorch Tensor is conceptually identical to a NumPy array.",
        "computes_the_same",
        "torch_tensors",
        "numpy_arrays",
        "a step in arrays",
    ),
    Claim(
        "Automatic differentiation computes the backward pass that was written by hand.",
        "computes_the_same",
        "torch_autograd",
        "torch_tensors",
        "one by hand",
    ),
    Claim(
        "We can define our own autograd operator by its forward and its backward function.",
        "computes_the_same",
        "torch_function",
        "torch_autograd",
        "one with PyTorch's own relu",
    ),
    Claim(
        "A static graph's up-front cost is amortised as the same graph is run over and over.",
        "pays_for_itself",
        "tensorflow_graph",
    ),
    Claim(
        "A loop over time can be part of the graph, or be the host language's own.",
        "follows_the_lengths",
        "tensorflow_scan",
        "torch_loop",
        "one of the loop in Python",
    ),
)
