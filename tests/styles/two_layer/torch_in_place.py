"""Tensors are changed in place, and gradients have names."""

import torch


class Implementation:
    def __init__(self, weights, *, learning_rate, device):
        self.w1 = torch.tensor(weights["w1"], device=device).requires_grad_()
        self.w2 = torch.tensor(weights["w2"], device=device).requires_grad_()
        self.learning_rate = learning_rate

    def place(self, batch):
        return torch.from_numpy(batch["x"]), torch.from_numpy(batch["y"])

    def step(self, x, y):
        y_pred = torch.relu_(x @ self.w1) @ self.w2
        loss = ((y_pred - y) ** 2).mean()
        grad_w1, grad_w2 = torch.autograd.grad(loss, [self.w1, self.w2])
        with torch.no_grad():
            self.w1.sub_(self.learning_rate * grad_w1)
            self.w2.add_(grad_w2, alpha=-self.learning_rate)
        return loss

    def predict(self, x):
        return torch.relu(torch.from_numpy(x) @ self.w1).matmul(self.w2).detach().numpy()
