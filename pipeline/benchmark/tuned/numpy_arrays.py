"""numpy_arrays, tuned: every array of a step is allocated once, begins at a cache line, and is written with `out=`."""

import numpy as np

from pipeline.contract import Array, Chunk, Weights
from pipeline.runtimes.numpy import aligned


class Loop:
    def __init__(self, weights: Weights, *, learning_rate: float, device: str) -> None:
        self.w1 = aligned(np.asarray(weights["w1"], device=device))
        self.w2 = aligned(np.asarray(weights["w2"], device=device))
        self.learning_rate = learning_rate

    def place(self, chunk: Chunk) -> None:
        self.x, self.y = list(chunk["x"]), list(chunk["y"])
        self.next = 0
        self.h, self.y_pred = aligned(self.x[0] @ self.w1), aligned(self.y[0])
        self.grad_h, self.grad_w1, self.grad_w2 = (aligned(array) for array in (self.h, self.w1, self.w2))

    def run(self, steps: int) -> Array:
        w1, w2, learning_rate = self.w1, self.w2, self.learning_rate
        h, y_pred, grad_h, grad_w1, grad_w2 = self.h, self.y_pred, self.grad_h, self.grad_w1, self.grad_w2
        losses = np.empty(steps, w1.dtype)
        for step in range(steps):
            x, y = self.x[self.next], self.y[self.next]
            self.next = (self.next + 1) % len(self.x)

            # Forward pass.
            np.matmul(x, w1, out=h)
            np.maximum(h, 0, out=h)
            np.matmul(h, w2, out=y_pred)
            error = np.subtract(y_pred, y, out=y_pred)
            losses[step] = np.vdot(error, error) / error.size

            # Backward pass.
            grad_y_pred = np.multiply(error, 2 / error.size, out=error)
            np.matmul(grad_y_pred, w2.T, out=grad_h)
            np.multiply(grad_h, h > 0, out=grad_h)
            np.matmul(h.T, grad_y_pred, out=grad_w2)
            np.matmul(x.T, grad_h, out=grad_w1)

            # Update.
            w1 -= np.multiply(grad_w1, learning_rate, out=grad_w1)
            w2 -= np.multiply(grad_w2, learning_rate, out=grad_w2)
        return losses

    def weights(self) -> Weights:
        return {"w1": self.w1.copy(), "w2": self.w2.copy()}
