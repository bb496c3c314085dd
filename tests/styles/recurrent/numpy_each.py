"""Example by example, in the form of the equations."""

import numpy as np


class Implementation:
    def __init__(self, weights, *, learning_rate, **_):
        self.wx, self.wh, self.wo = (weights[k].copy() for k in ("wx", "wh", "wo"))
        self.learning_rate = learning_rate

    def place(self, batch):
        return [row[:n] for row, n in zip(batch["x"], batch["lengths"], strict=True)], batch["y"]

    def forward(self, rows):
        h = [np.zeros((1, len(self.wh)))]
        for row in rows:
            h.append(np.maximum(row[None] @ self.wx + h[-1] @ self.wh, 0))
        return h

    def step(self, x, y):
        grad_wx, grad_wh, grad_wo = np.zeros_like(self.wx), np.zeros_like(self.wh), np.zeros_like(self.wo)
        loss = 0
        for rows, target in zip(x, y, strict=True):
            h = self.forward(rows)
            y_pred = h[-1] @ self.wo
            loss += np.mean((y_pred - target) ** 2) / len(y)
            grad_y_pred = 2 * (y_pred - target) / y.size
            grad_wo += h[-1].T @ grad_y_pred
            grad_h = grad_y_pred @ self.wo.T
            for t in range(len(rows), 0, -1):
                grad_z = grad_h * (h[t] > 0)
                grad_wx += rows[t - 1][:, None] @ grad_z
                grad_wh += h[t - 1].T @ grad_z
                grad_h = grad_z @ self.wh.T
        self.wx -= self.learning_rate * grad_wx
        self.wh -= self.learning_rate * grad_wh
        self.wo -= self.learning_rate * grad_wo
        return loss

    def predict(self, x, lengths):
        return np.concatenate([self.forward(row[:n])[-1] @ self.wo for row, n in zip(x, lengths, strict=True)])
