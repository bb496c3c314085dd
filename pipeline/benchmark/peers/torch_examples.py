"""The recurrent network in PyTorch, each example unrolled for itself, as many time steps as it has."""

import numpy as np
import torch

from pipeline.contract import Array, Chunk, Weights


class Loop:
    def __init__(self, weights: Weights, *, learning_rate: float, device: str) -> None:
        self.wx = torch.tensor(weights["wx"], device=device, requires_grad=True)
        self.wh = torch.tensor(weights["wh"], device=device, requires_grad=True)
        self.wo = torch.tensor(weights["wo"], device=device, requires_grad=True)
        self.learning_rate = learning_rate

    def place(self, chunk: Chunk) -> None:
        self.x = torch.tensor(chunk["x"], device=self.wx.device)
        self.y = torch.tensor(chunk["y"], device=self.wx.device)
        self.lengths = chunk["lengths"].tolist()
        self.next = 0

    def run(self, steps: int) -> Array:
        losses = []
        for _ in range(steps):
            x, lengths, y = self.x[self.next], self.lengths[self.next], self.y[self.next]
            self.next = (self.next + 1) % len(self.x)

            # Forward pass.
            y_pred = torch.stack([self._unroll(example, length) for example, length in zip(x, lengths, strict=True)])
            loss = (y_pred - y).pow(2).mean()
            losses.append(loss.item())

            # Backward pass.
            loss.backward()

            # Update.
            with torch.no_grad():
                self.wx -= self.learning_rate * self.wx.grad
                self.wh -= self.learning_rate * self.wh.grad
                self.wo -= self.learning_rate * self.wo.grad
                self.wx.grad.zero_()
                self.wh.grad.zero_()
                self.wo.grad.zero_()
        return np.array(losses)

    def _unroll(self, x: torch.Tensor, length: int) -> torch.Tensor:
        """y_pred (outputs,) of one example x (max_length, inputs)."""
        h = x.new_zeros(len(self.wh))
        for t in range(length):
            h = (x[t] @ self.wx + h @ self.wh).clamp(min=0)
        return h @ self.wo

    def weights(self) -> Weights:
        return {key: getattr(self, key).numpy(force=True).copy() for key in ("wx", "wh", "wo")}
