"""The two-layer network in PyTorch, its backward pass computed by autograd.

A tensor made with `requires_grad=True` is watched: as the forward pass runs, PyTorch records a graph of what is
computed from what. Its nodes are the operations that ran; each can compute the gradient of its inputs from that of its
output. `loss.backward()` walks this graph back from the loss and leaves the gradient of each watched tensor in its
`.grad`. The derivation on paper is no longer needed. The graph is built anew in every step.
"""

import torch

from pipeline.contract import Array, Batch, Weights


class Implementation:
    def __init__(self, weights: Weights, *, learning_rate: float, device: str) -> None:
        self.w1 = torch.tensor(weights["w1"], device=device, requires_grad=True)
        self.w2 = torch.tensor(weights["w2"], device=device, requires_grad=True)
        self.learning_rate = learning_rate

    def place(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(batch["x"]).to(self.w1.device), torch.from_numpy(batch["y"]).to(self.w1.device)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # Forward pass.
        y_pred = (x @ self.w1).relu() @ self.w2
        loss = torch.nn.functional.mse_loss(y_pred, y)

        # Backward pass.
        loss.backward()

        # Update, outside the graph. `backward` adds to `.grad`, so clear it.
        with torch.no_grad():
            self.w1 -= self.learning_rate * self.w1.grad
            self.w2 -= self.learning_rate * self.w2.grad
        self.w1.grad = self.w2.grad = None
        return loss

    def predict(self, x: Array) -> Array:
        return ((torch.from_numpy(x).to(self.w1.device) @ self.w1).relu() @ self.w2).numpy(force=True)
