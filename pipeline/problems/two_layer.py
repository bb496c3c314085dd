"""A network of two layers without biases, and squared error.

From a batch of N examples, x (N, inputs) and y (N, outputs), the forward pass computes

    h           = x @ w1                                     (N, hidden)
    h_relu      = relu(h)                                    (N, hidden)
    y_pred      = h_relu @ w2                                (N, outputs)
    loss        = mean((y_pred - y) ** 2)                    ()

The mean is over all N * outputs elements, as torch.nn.MSELoss has it, so that a learning rate means the same at every
batch size. The gradient, by the chain rule from the loss down:

    grad_y_pred = 2 * (y_pred - y) / (N * outputs)           (N, outputs)
    grad_w2     = h_relu.T @ grad_y_pred                     (hidden, outputs)
    grad_h_relu = grad_y_pred @ w2.T                         (N, hidden)
    grad_h      = grad_h_relu * (h > 0)                      (N, hidden)
    grad_w1     = x.T @ grad_h                               (inputs, hidden)

One step of gradient descent:

    w1          = w1 - learning_rate * grad_w1               (inputs, hidden)
    w2          = w2 - learning_rate * grad_w2               (hidden, outputs)

relu has no derivative at 0. The frameworks' functions give different ones there. In PyTorch, clamp gives 1, maximum ½
and relu 0. In TensorFlow, maximum gives 1 and relu 0. These equations take 0.

Initial weights are normal with variance 2/inputs for w1 (He et al., 2015, arXiv:1502.01852: relu halves the second
moment, 2 restores it) and 1/hidden for w2, so that h_relu and y_pred start with second moment 1.
"""

from typing import Any

import numpy as np

from pipeline.contract import Array, Batch, Factors, Weights
from pipeline.problems import Section, Size, mean_squared_error, mean_target, noisy

loss, best_constant = mean_squared_error, mean_target


class Sizes(Section):
    inputs: Size
    hidden: Size
    outputs: Size


def weight_shapes(sizes: Sizes) -> dict[str, tuple[int, int]]:
    return {"w1": (sizes.inputs, sizes.hidden), "w2": (sizes.hidden, sizes.outputs)}


def example_numbers(sizes: Sizes) -> tuple[int, int]:
    """How many numbers an example's input holds, and how many its hidden layer."""
    return sizes.inputs, sizes.hidden


def operations(sizes: Any) -> float:
    """Floating-point operations in the five products of a step."""
    return 2 * sizes.batch_size * sizes.hidden * (2 * sizes.inputs + 3 * sizes.outputs)


def draw_weights(sizes: Sizes, generator: np.random.Generator) -> dict[str, Array]:
    """Random weights {w1, w2}, float32: for the start of a training, and for the teacher of the targets."""
    gains = {"w1": 2, "w2": 1}
    return {key: _normal(generator, shape, gains[key] / shape[0]) for key, shape in weight_shapes(sizes).items()}


def draw_inputs(sizes: Sizes, count: int, generator: np.random.Generator) -> dict[str, Array]:
    """Standard normal inputs {x}: x (count, inputs), float32."""
    return {"x": generator.standard_normal((count, sizes.inputs), dtype=np.float32)}


def draw_targets(
    sizes: Sizes, inputs: Batch, teacher: Weights | None, noise: float, generator: np.random.Generator
) -> Array:
    """y (N, outputs), float32: the predictions of a network with the teacher's weights plus noise, or noise alone."""
    answers = None if teacher is None else predict(teacher, *inputs.values())
    return noisy(answers, (len(inputs["x"]), sizes.outputs), noise, generator)


def predict(weights: Weights, x: Array) -> Array:
    """y_pred (N, outputs), float64."""
    w1, w2 = (weights[key].astype(np.float64) for key in ("w1", "w2"))
    return np.maximum(x.astype(np.float64) @ w1, 0) @ w2


def loss_and_gradients(weights: Weights, x: Array, y: Array) -> tuple[float, dict[str, Array]]:
    """The loss of one batch and its gradients {w1, w2}, by the equations above in float64."""
    x, y, w1, w2 = (array.astype(np.float64) for array in (x, y, weights["w1"], weights["w2"]))
    h = np.maximum(x @ w1, 0)
    error = h @ w2 - y
    grad_y_pred = 2 * error / error.size
    grad_h = np.where(h > 0, grad_y_pred @ w2.T, 0)
    return float(np.mean(error**2)), {"w1": x.T @ grad_h, "w2": h.T @ grad_y_pred}


def products(weights: Weights, x: Array, y: Array) -> Factors:
    """The factors of a step's matrix products, in the dtype of the arrays: the products that every implementation
    needs."""
    w1, w2 = weights["w1"], weights["w2"]
    h = np.maximum(x @ w1, 0)
    # A gradient has the shape of its quantity, and products of the same shapes take the same time. So y replaces
    # grad_y_pred, and h replaces grad_h.
    return [(x, w1), (h, w2), (h.T, y), (y, w2.T), (x.T, h)]


def _normal(generator: np.random.Generator, shape: tuple[int, int], variance: float) -> Array:
    return (generator.standard_normal(shape) * np.sqrt(variance)).astype(np.float32)
