"""The two-layer network in PyTorch tensors, its forward and backward pass written by hand.

A tensor is like a NumPy array that lives on a device: created with `device="cuda"`, it is in a GPU's memory, and the
GPU does the arithmetic. The mathematics is unchanged, and some names differ. The backward pass is still the one we
worked out on paper. `numpy(force=True)` brings a tensor back as an array, whatever its device.
"""

import torch

from pipeline.contract import Array, Batch, Weights


class Implementation:
    def __init__(self, weights: Weights, *, learning_rate: float, device: str) -> None:
        self.w1 = torch.tensor(weights["w1"], device=device)
        self.w2 = torch.tensor(weights["w2"], device=device)
        self.learning_rate = learning_rate

    def place(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(batch["x"]).to(self.w1.device), torch.from_numpy(batch["y"]).to(self.w1.device)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # Forward pass.
        h = x @ self.w1
        h_relu = h.relu()
        y_pred = h_relu @ self.w2
        loss = (y_pred - y).square().mean()

        # Backward pass.
        grad_y_pred = 2 * (y_pred - y) / y.numel()
        grad_w2 = h_relu.T @ grad_y_pred
        grad_h_relu = grad_y_pred @ self.w2.T
        grad_h = grad_h_relu * (h > 0)
        grad_w1 = x.T @ grad_h

        # Update.
        self.w1 -= self.learning_rate * grad_w1
        self.w2 -= self.learning_rate * grad_w2
        return loss

    def predict(self, x: Array) -> Array:
        return ((torch.from_numpy(x).to(self.w1.device) @ self.w1).relu() @ self.w2).numpy(force=True)
