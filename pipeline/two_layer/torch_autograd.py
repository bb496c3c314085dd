"""The two-layer network in PyTorch, its backward pass by autograd.

A tensor with `requires_grad` remembers how it was computed: the forward pass builds a graph, anew in every step, whose
nodes are tensors and whose edges are the functions between them. Walking it backwards from the loss gives the gradient
with respect to each weight. We write the forward pass and the update; the derivation on paper is no longer needed.
"""

import torch

from pipeline.contract import Array, Batches, Weights


class Implementation:
    def __init__(self, initial: Weights, *, learning_rate: float, device: str) -> None:
        self.w1 = torch.tensor(initial["w1"], device=device, requires_grad=True)
        self.w2 = torch.tensor(initial["w2"], device=device, requires_grad=True)
        self.learning_rate = learning_rate

    def load(self, batches: Batches) -> None:
        self.x = torch.from_numpy(batches["x"]).to(self.w1.device).unbind()
        self.y = torch.from_numpy(batches["y"]).to(self.w1.device).unbind()
        self.next = 0

    def train(self, steps: int) -> torch.Tensor:
        w1, w2, learning_rate = self.w1, self.w2, self.learning_rate
        losses = torch.empty(steps, dtype=w1.dtype, device=w1.device)
        for step in range(steps):
            x, y = self.x[self.next], self.y[self.next]
            self.next = (self.next + 1) % len(self.x)

            # Forward pass.
            y_pred = x.mm(w1).relu().mm(w2)
            loss = torch.nn.functional.mse_loss(y_pred, y)
            losses[step] = loss.detach()

            # Backward pass.
            grad_w1, grad_w2 = torch.autograd.grad(loss, (w1, w2))

            # Update.
            with torch.no_grad():
                w1.sub_(grad_w1, alpha=learning_rate)
                w2.sub_(grad_w2, alpha=learning_rate)
        return losses

    def predict(self, x: Array) -> Array:
        with torch.no_grad():
            return torch.tensor(x, device=self.w1.device).mm(self.w1).relu().mm(self.w2).cpu().numpy()

    def weights(self) -> Weights:
        return {"w1": self.w1.numpy(force=True).copy(), "w2": self.w2.numpy(force=True).copy()}
