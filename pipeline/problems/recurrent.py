"""A recurrent network that takes as many steps as the example is long, and squared error.

From one example, x[t] (1, inputs) at the times t = 1 … length and y (1, outputs), the forward pass computes

    h[0]           = zeros(1, hidden)                                            (1, hidden)
    z[t]           = x[t] @ wx                                                   (1, hidden)      for t = 1 … length
    h[t]           = relu(z[t] + h[t - 1] @ wh)                                  (1, hidden)      for t = 1 … length
    y_pred         = h[length] @ wo                                              (1, outputs)
    loss           = mean((y_pred - y) ** 2)                                     ()

The loss of a batch is the mean over its N examples, so over all N * outputs elements, and its gradient is the sum over
them. Of one example, back through the time steps:

    grad_y_pred    = 2 * (y_pred - y) / (N * outputs)                            (1, outputs)
    grad_wo        = h[length].T @ grad_y_pred                                   (hidden, outputs)
    grad_h[length] = grad_y_pred @ wo.T                                          (1, hidden)
    grad_z[t]      = grad_h[t] * (h[t] > 0)                                      (1, hidden)      for t = length … 1
    grad_h[t - 1]  = grad_z[t] @ wh.T                                            (1, hidden)      for t = length … 1
    grad_wx        = sum(x[t].T @ grad_z[t] for t in range(1, length + 1))       (inputs, hidden)
    grad_wh        = sum(h[t - 1].T @ grad_z[t] for t in range(1, length + 1))   (hidden, hidden)

One step of gradient descent:

    wx             = wx - learning_rate * grad_wx                                (inputs, hidden)
    wh             = wh - learning_rate * grad_wh                                (hidden, hidden)
    wo             = wo - learning_rate * grad_wo                                (hidden, outputs)

Examples of a batch differ in length, min_length … max_length. They are stored as x (N, max_length, inputs) and lengths
(N,). Values of x beyond an example's length are padding, and no result depends on them, even if they are NaN. relu's
derivative at 0 is 0.

Initial weights are normal with variance 1 / number of rows. relu halves the second moment, so E[h²] = ½ (1 + E[h²])
stays at 1 for every length: states neither vanish nor explode.
"""

from typing import Any, Self

import numpy as np
from pydantic import model_validator

from pipeline.contract import Array, Batch, Factors, Weights
from pipeline.errors import UserError
from pipeline.problems import Section, Size, mean_squared_error, mean_target, noisy

loss, best_constant = mean_squared_error, mean_target


class Sizes(Section):
    inputs: Size
    hidden: Size
    outputs: Size
    min_length: Size
    max_length: Size

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if self.min_length > self.max_length:
            raise UserError(
                f"params.yaml: min_length is {self.min_length}, more than max_length, which is {self.max_length}. "
                "Lower min_length or raise max_length."
            )
        return self


def weight_shapes(sizes: Sizes) -> dict[str, tuple[int, int]]:
    return {
        "wx": (sizes.inputs, sizes.hidden),
        "wh": (sizes.hidden, sizes.hidden),
        "wo": (sizes.hidden, sizes.outputs),
    }


def example_numbers(sizes: Sizes) -> tuple[int, int]:
    """How many numbers an example's input holds, padding included, and how many its states."""
    return sizes.inputs * sizes.max_length, sizes.hidden * (sizes.max_length + 1)


def operations(sizes: Any) -> float:
    """Floating-point operations in the products of a step, without padding, at the mean length."""
    total = sequence_total(sizes)
    states = 2 * total * sizes.inputs + 3 * (total - sizes.batch_size) * sizes.hidden  # h[0] is 0: no product with it
    return 2 * sizes.hidden * (states + 3 * sizes.batch_size * sizes.outputs)


def sequence_total(sizes: Any) -> float:
    """The expected sum of the lengths in a batch."""
    return sizes.batch_size * (sizes.min_length + sizes.max_length) / 2


def padded(arrays: Batch) -> Batch:
    """The same inputs with every length at its maximum, so that padding is computed too. Leading axes are allowed."""
    return {**arrays, "lengths": np.full_like(arrays["lengths"], arrays["x"].shape[-2])}


def draw_weights(sizes: Sizes, generator: np.random.Generator) -> dict[str, Array]:
    """Random weights {wx, wh, wo}, float32: for the start of a training, and for the teacher of the targets."""
    return {
        key: (generator.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        for key, shape in weight_shapes(sizes).items()
    }


def draw_inputs(sizes: Sizes, count: int, generator: np.random.Generator) -> dict[str, Array]:
    """Standard normal inputs {x, lengths}: x (count, max_length, inputs), float32, 0 in padding; lengths (count,)."""
    lengths = generator.integers(sizes.min_length, sizes.max_length, size=count, endpoint=True)
    x = generator.standard_normal((count, sizes.max_length, sizes.inputs), dtype=np.float32)
    x[np.arange(sizes.max_length) >= lengths[:, None]] = 0
    return {"x": x, "lengths": lengths}


def draw_targets(
    sizes: Sizes, inputs: Batch, teacher: Weights | None, noise: float, generator: np.random.Generator
) -> Array:
    """y (N, outputs), float32: the predictions of a network with the teacher's weights plus noise, or noise alone."""
    answers = None if teacher is None else predict(teacher, *inputs.values())
    return noisy(answers, (len(inputs["x"]), sizes.outputs), noise, generator)


def predict(weights: Weights, x: Array, lengths: Array) -> Array:
    """y_pred (N, outputs), float64."""
    wx, wh, wo = (weights[key].astype(np.float64) for key in ("wx", "wh", "wo"))
    h = np.zeros((len(x), wh.shape[0]))
    for t in range(x.shape[1]):
        active = lengths > t
        h[active] = np.maximum(x[active, t].astype(np.float64) @ wx + h[active] @ wh, 0)
    return h @ wo


def loss_and_gradients(weights: Weights, x: Array, lengths: Array, y: Array) -> tuple[float, dict[str, Array]]:
    """The loss of one batch and its gradients {wx, wh, wo}, by the equations above in float64."""
    longest_first = np.argsort(-lengths, kind="stable")  # so the running examples come first
    lengths = lengths[longest_first]
    arrays = (x[longest_first], y[longest_first], weights["wx"], weights["wh"], weights["wo"])
    x, y, wx, wh, wo = (array.astype(np.float64) for array in arrays)
    running = [int(np.count_nonzero(lengths >= t)) for t in range(1, int(lengths[0]) + 1)]

    h = np.zeros((len(running) + 1, len(x), wh.shape[0]))  # h_0 … h_longest
    for t, count in enumerate(running, 1):
        h[t, :count] = np.maximum(x[:count, t - 1] @ wx + h[t - 1, :count] @ wh, 0)
    final = h[lengths, np.arange(len(x))]
    error = final @ wo - y

    grad_y_pred = 2 * error / error.size
    grad_h = grad_y_pred @ wo.T  # the same for an example that is not yet running as at its last step
    grad_wx, grad_wh = np.zeros(wx.shape), np.zeros(wh.shape)
    for t, count in reversed(list(enumerate(running, 1))):
        grad_z = np.where(h[t, :count] > 0, grad_h[:count], 0)
        grad_wx += x[:count, t - 1].T @ grad_z
        grad_wh += h[t - 1, :count].T @ grad_z
        grad_h[:count] = grad_z @ wh.T
    return float(np.mean(error**2)), {"wx": grad_wx, "wh": grad_wh, "wo": final.T @ grad_y_pred}


def products(weights: Weights, x: Array, lengths: Array, y: Array) -> Factors:
    """The factors of the matrix products of one step, in the dtype of the arrays: the products that every
    implementation needs. Padding is not multiplied, and products that do not depend on the state are computed for all
    time steps at once.
    """
    wx, wh, wo = weights["wx"], weights["wh"], weights["wo"]
    longest_first = np.argsort(-lengths, kind="stable")
    by_time = x[longest_first].swapaxes(0, 1)
    active = np.arange(x.shape[1])[:, None] < lengths[longest_first]
    running = active.sum(1)[: lengths.max()]  # at each time step: the first ones, sorted by length
    packed = by_time[active]
    # As in two_layer, one array replaces others of the same shape: h replaces every state and its gradient.
    h = np.maximum(packed @ wx, 0)
    steps = [(h[:count], wh) for count in running[1:]]
    back = [(h[:count], wh.T) for count in running[:0:-1]]
    first, later = h[: len(y)], h[len(y) :]
    sums = [(later.T, later), (packed.T, h)] if len(later) else [(packed.T, h)]
    return [(packed, wx), *steps, (first, wo), (first.T, y), (y, wo.T), *back, *sums]
