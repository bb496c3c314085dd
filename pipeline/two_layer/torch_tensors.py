"""The two-layer network in PyTorch tensors, forward and backward pass by hand.

A tensor is what a NumPy array is, and one thing more: it lives on a device. Created with `device="cuda"`, the same
lines run on a GPU. Nothing here knows of gradients either; they are the ones we derived on paper.

`addmm_` multiplies two matrices and adds the product to a third in one pass: the update costs no array of its own. The
sign of h, which is never negative, is relu's derivative. No step needs the losses, so they are computed at the end.
"""

import torch

from pipeline.contract import Array, Batches, Weights


class Implementation:
    def __init__(self, initial: Weights, *, learning_rate: float, device: str) -> None:
        self.w1 = torch.tensor(initial["w1"], device=device)
        self.w2 = torch.tensor(initial["w2"], device=device)
        self.learning_rate = learning_rate

    def load(self, batches: Batches) -> None:
        self.x = torch.from_numpy(batches["x"]).to(self.w1.device).unbind()
        self.y = torch.from_numpy(batches["y"]).to(self.w1.device).unbind()
        self.next = 0

    def train(self, steps: int) -> torch.Tensor:
        w1, w2, learning_rate = self.w1, self.w2, self.learning_rate
        errors = self.y[0].new_empty(steps, *self.y[0].shape)
        for step in range(steps):
            x, y = self.x[self.next], self.y[self.next]
            self.next = (self.next + 1) % len(self.x)

            # Forward pass.
            h = x.mm(w1).relu_()
            y_pred = h.mm(w2)
            error = torch.sub(y_pred, y, out=errors[step])

            # Backward pass and update.
            grad_y_pred = error * (2 / error.numel())
            grad_h = grad_y_pred.mm(w2.T).mul_(h.sign())
            w1.addmm_(x.T, grad_h, alpha=-learning_rate)
            w2.addmm_(h.T, grad_y_pred, alpha=-learning_rate)
        return errors.square_().mean((1, 2))

    def predict(self, x: Array) -> Array:
        return torch.tensor(x, device=self.w1.device).mm(self.w1).relu_().mm(self.w2).cpu().numpy()

    def weights(self) -> Weights:
        return {"w1": self.w1.numpy(force=True).copy(), "w2": self.w2.numpy(force=True).copy()}
