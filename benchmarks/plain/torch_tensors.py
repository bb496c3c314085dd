"""The two-layer network in PyTorch tensors, each expression a new tensor."""

import numpy as np
import torch

from pipeline.contract import Array, Batches, Weights


class Implementation:
    def __init__(self, initial: Weights, *, learning_rate: float, device: str) -> None:
        self.w1 = torch.tensor(initial["w1"], device=device)
        self.w2 = torch.tensor(initial["w2"], device=device)
        self.learning_rate = learning_rate

    def load(self, batches: Batches) -> None:
        self.x = torch.tensor(batches["x"], device=self.w1.device)
        self.y = torch.tensor(batches["y"], device=self.w1.device)
        self.next = 0

    def train(self, steps: int) -> Array:
        losses = []
        for _ in range(steps):
            x, y = self.x[self.next], self.y[self.next]
            self.next = (self.next + 1) % len(self.x)

            # Forward pass.
            h = x.mm(self.w1)
            h_relu = h.clamp(min=0)
            y_pred = h_relu.mm(self.w2)
            loss = (y_pred - y).pow(2).mean()
            losses.append(loss.item())

            # Backward pass.
            grad_y_pred = 2.0 * (y_pred - y) / y.numel()
            grad_w2 = h_relu.t().mm(grad_y_pred)
            grad_h_relu = grad_y_pred.mm(self.w2.t())
            grad_h = grad_h_relu.clone()
            grad_h[h < 0] = 0
            grad_w1 = x.t().mm(grad_h)

            # Update.
            self.w1 -= self.learning_rate * grad_w1
            self.w2 -= self.learning_rate * grad_w2
        return np.array(losses)

    def weights(self) -> Weights:
        return {"w1": self.w1.numpy(force=True).copy(), "w2": self.w2.numpy(force=True).copy()}
