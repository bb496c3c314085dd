"""Explanations of some lessons beside their equations, with small numbers. Tests compare the numbers with those that
the lessons compute.

Text as in a docstring: paragraphs, and lines indented by four spaces.
"""

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.contract import Array, load_problem

SEEDS = 100  # the first seed is used that gives a gradient without zeros
LENGTHS, BATCH_SIZES, ENDS = [2, 4, 1], [3, 2, 1, 1], [[1, 0], [3, 1], [0, 2]]

NOTES: dict[str, dict[str, str]] = {
    "torch_loop": {
        "What batch_sizes holds": f"""
`pack_padded_sequence` turns the lengths of a batch into `batch_sizes`, which says for each time step how many examples
are still running. Three examples of 2, 4 and 1 time steps:

    lengths       {LENGTHS}
    sorted        {sorted(LENGTHS, reverse=True)}      longest first
    batch_sizes   {BATCH_SIZES}   at t = 1 three examples run, at t = 2 two, then one

Both add up to {sum(LENGTHS)}: `x` has one row for each time step of each example, and no padding. At t = 2, `running`
is {BATCH_SIZES[1]}. `h[:running]` are the states of the two longest examples, which go on, and `h[running:]` is the
state of the example that has ended.
"""
    },
    "tensorflow_scan": {
        "What ends holds": f"""
`states` has a state for each time step and each example, padding included. `ends` says which of them counts for an
example: its time step, counted from 0, and its place in the batch. Three examples of 2, 4 and 1 time steps:

    lengths   {LENGTHS}
    ends      {ENDS}

`tf.gather_nd(states, ends)` is the rows {", ".join(f"`states[{t}, {i}]`" for t, i in ENDS)}. It computes nothing, it
only picks them out.
""",
        "What the loop in the backward pass does": """
It is the loop over time again, from the last time step to the first. In the iteration for time step t, `element` is the
gradient that comes from `y_pred` directly, which is 0 unless an example ends at t. `state` is the gradient that comes
from time step t + 1. Their sum is `grad_h[t]`. "gradient of relu" makes it `grad_z[t]`, for which it needs the `h` that
the forward loop has kept. `matmul(·, ·ᵀ)` makes `grad_h[t - 1]`, which the dashed arrow passes to the next iteration.
The other product is what this time step adds to `grad_wh`.
""",
    },
}
OF_ONE_EXAMPLE = """
The equations with t are those of one example. A batch has N of them, and its loss is the mean over the examples. The
gradients of the weights are sums, over the examples and over the time steps, because each of them uses the same
weights and so adds its part. They need no further division: the factor 1 / (N · outputs), which makes the loss a mean,
is already in the gradient of `y_pred`.
"""


def gradient_twice(problem: str) -> tuple[str, Array, Array]:
    """The name of a problem's last weight, its gradient for two small examples, and the sum when it is computed twice.

    The data are the first random ones that switch no unit of relu off for both examples.
    """
    module: Any = load_problem(problem)
    sizes = SimpleNamespace(**{name: 3 if name == "inputs" else 2 for name in inspect.get_annotations(module.Sizes)})
    name, gradient = "", np.zeros(0)
    for seed in range(SEEDS):
        generator = np.random.default_rng(seed)
        weights, inputs = module.draw_weights(sizes, generator), module.draw_inputs(sizes, 2, generator)
        y = module.draw_targets(sizes, inputs, None, 1.0, generator)
        name, gradient = list(module.loss_and_gradients(weights, *inputs.values(), y)[1].items())[-1]
        if gradient.all():
            break
    return name, gradient, gradient + gradient
