"""The states are in a list, and x keeps its padding until the step."""

import numpy as np


class Implementation:
    def __init__(self, weights, *, learning_rate, **_):
        self.wx, self.wh, self.wo = (weights[k].copy() for k in ("wx", "wh", "wo"))
        self.learning_rate = learning_rate

    def place(self, batch):
        return batch["x"], batch["lengths"], batch["y"]

    def step(self, x, lengths, y):
        count, longest, _ = x.shape
        x = np.where(np.arange(longest)[None, :, None] < lengths[:, None, None], x, 0)
        h = [np.zeros((count, self.wh.shape[0]))]
        for t in range(longest):
            z = x[:, t] @ self.wx
            new = np.maximum(z + h[-1] @ self.wh, 0)
            h.append(np.where((t < lengths)[:, None], new, h[-1]))
        y_pred = h[-1] @ self.wo
        loss = ((y_pred - y) ** 2).mean()
        grad_y_pred = 2 * (y_pred - y) / y.size
        grad_wo = h[-1].T @ grad_y_pred
        grad_h = grad_y_pred @ self.wo.T
        grad_wx, grad_wh = np.zeros_like(self.wx), np.zeros_like(self.wh)
        for t in reversed(range(longest)):
            running = (t < lengths)[:, None]
            grad_z = grad_h * (h[t + 1] > 0) * running
            grad_wx += x[:, t].T @ grad_z
            grad_wh += h[t].T @ grad_z
            grad_h = np.where(running, grad_z @ self.wh.T, grad_h)
        self.wx -= self.learning_rate * grad_wx
        self.wh -= self.learning_rate * grad_wh
        self.wo -= self.learning_rate * grad_wo
        return loss

    def predict(self, x, lengths):
        h = np.zeros((len(x), len(self.wh)))
        for t in range(x.shape[1]):
            a = t < lengths
            h[a] = np.maximum(x[a, t] @ self.wx + h[a] @ self.wh, 0)
        return h @ self.wo
