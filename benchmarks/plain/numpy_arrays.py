"""The two-layer network in NumPy, each expression a new array."""

import numpy as np

from pipeline.contract import Array, Batches, Weights


class Implementation:
    def __init__(self, initial: Weights, *, learning_rate: float, device: str) -> None:
        self.w1 = np.asarray(initial["w1"], device=device).copy()
        self.w2 = np.asarray(initial["w2"], device=device).copy()
        self.learning_rate = learning_rate

    def load(self, batches: Batches) -> None:
        self.x, self.y = batches["x"], batches["y"]
        self.next = 0

    def train(self, steps: int) -> Array:
        losses = []
        for _ in range(steps):
            x, y = self.x[self.next], self.y[self.next]
            self.next = (self.next + 1) % len(self.x)

            # Forward pass.
            h = x.dot(self.w1)
            h_relu = np.maximum(h, 0)
            y_pred = h_relu.dot(self.w2)
            loss = np.square(y_pred - y).mean()
            losses.append(float(loss))

            # Backward pass.
            grad_y_pred = 2.0 * (y_pred - y) / y.size
            grad_w2 = h_relu.T.dot(grad_y_pred)
            grad_h_relu = grad_y_pred.dot(self.w2.T)
            grad_h = grad_h_relu.copy()
            grad_h[h < 0] = 0
            grad_w1 = x.T.dot(grad_h)

            # Update.
            self.w1 -= self.learning_rate * grad_w1
            self.w2 -= self.learning_rate * grad_w2
        return np.array(losses)

    def weights(self) -> Weights:
        return {"w1": self.w1.copy(), "w2": self.w2.copy()}
