"""The two-layer network in PyTorch, with an operator of our own that keeps its input and copies its gradient."""

from typing import Any

import numpy as np
import torch

from pipeline.contract import Array, Batches, Weights


class ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(z)
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad_h: torch.Tensor) -> torch.Tensor:
        (z,) = ctx.saved_tensors
        grad_z = grad_h.clone()
        grad_z[z < 0] = 0
        return grad_z


class Implementation:
    def __init__(self, initial: Weights, *, learning_rate: float, device: str) -> None:
        self.w1 = torch.tensor(initial["w1"], device=device, requires_grad=True)
        self.w2 = torch.tensor(initial["w2"], device=device, requires_grad=True)
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
            y_pred = ReLU.apply(x.mm(self.w1)).mm(self.w2)
            loss = (y_pred - y).pow(2).mean()
            losses.append(loss.item())

            # Backward pass.
            loss.backward()

            # Update.
            with torch.no_grad():
                self.w1 -= self.learning_rate * self.w1.grad
                self.w2 -= self.learning_rate * self.w2.grad
                self.w1.grad.zero_()
                self.w2.grad.zero_()
        return np.array(losses)

    def weights(self) -> Weights:
        return {"w1": self.w1.numpy(force=True).copy(), "w2": self.w2.numpy(force=True).copy()}
