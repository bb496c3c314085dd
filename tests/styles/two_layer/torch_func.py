"""Gradients by torch.func."""

import torch
from torch.func import grad_and_value


class Implementation:
    def __init__(self, weights, *, learning_rate, device):
        self.w1 = torch.tensor(weights["w1"], device=device)
        self.w2 = torch.tensor(weights["w2"], device=device)
        self.learning_rate = learning_rate

    def place(self, batch):
        return torch.from_numpy(batch["x"]), torch.from_numpy(batch["y"])

    def step(self, x, y):
        def loss_of(params):
            w1, w2 = params
            y_pred = (x @ w1).relu() @ w2
            return torch.nn.functional.mse_loss(y_pred, y)

        (grad_w1, grad_w2), loss = grad_and_value(loss_of)((self.w1, self.w2))
        self.w1 = self.w1 - self.learning_rate * grad_w1
        self.w2 = self.w2 - self.learning_rate * grad_w2
        return loss

    def predict(self, x):
        return ((torch.from_numpy(x) @ self.w1).relu() @ self.w2).numpy()
