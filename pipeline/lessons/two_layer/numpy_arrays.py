"""The two-layer network in NumPy, its forward and backward pass written by hand.

    y_pred = relu(x @ w1) @ w2,  loss = mean((y_pred - y)²)     x (N, inputs), w1 (inputs, hidden), w2 (hidden, outputs)

A NumPy array is an n-dimensional grid of numbers, and each line computes new ones from earlier ones, at once, on the
CPU. NumPy knows nothing of gradients or computational graphs. So the backward pass is the chain rule, worked out on
paper and typed in, from the loss back to the weights. `step` is called once for each batch of N examples.
"""

import numpy as np

from pipeline.contract import Array, Batch, Weights


class Implementation:
    def __init__(self, weights: Weights, *, learning_rate: float, device: str) -> None:
        self.w1 = np.asarray(weights["w1"], device=device).copy()
        self.w2 = np.asarray(weights["w2"], device=device).copy()
        self.learning_rate = learning_rate

    def place(self, batch: Batch) -> tuple[Array, Array]:
        return batch["x"], batch["y"]

    def step(self, x: Array, y: Array) -> Array:
        # Forward pass.
        h = x @ self.w1
        h_relu = np.maximum(h, 0)
        y_pred = h_relu @ self.w2
        loss = np.square(y_pred - y).mean()

        # Backward pass.
        grad_y_pred = 2 * (y_pred - y) / y.size
        grad_w2 = h_relu.T @ grad_y_pred
        grad_h_relu = grad_y_pred @ self.w2.T
        grad_h = grad_h_relu * (h > 0)
        grad_w1 = x.T @ grad_h

        # Update.
        self.w1 -= self.learning_rate * grad_w1
        self.w2 -= self.learning_rate * grad_w2
        return loss

    def predict(self, x: Array) -> Array:
        return np.maximum(x @ self.w1, 0) @ self.w2
