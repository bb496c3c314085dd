"""The states are in one array, with a place for the start."""

import numpy as np


class Implementation:
    def __init__(self, weights, *, learning_rate, **_):
        self.wx, self.wh, self.wo = (weights[k].copy() for k in ("wx", "wh", "wo"))
        self.learning_rate = learning_rate

    def place(self, batch):
        return tuple(batch.values())

    def step(self, x, lengths, y):
        count, longest, _ = x.shape
        h = np.zeros((longest + 1, count, len(self.wh)))
        for t in range(1, longest + 1):
            a = lengths >= t
            h[t, a] = np.maximum(x[a, t - 1] @ self.wx + h[t - 1, a] @ self.wh, 0)
        last = h[lengths, np.arange(count)]
        y_pred = last @ self.wo
        loss = np.square(y_pred - y).mean()
        grad_y_pred = 2 * (y_pred - y) / y.size
        grad_wo = last.T @ grad_y_pred
        grad_last = grad_y_pred @ self.wo.T
        grad_h = np.zeros_like(h)
        grad_h[lengths, np.arange(count)] = grad_last
        grad_z = np.zeros((longest + 1, count, len(self.wh)))
        grad_wx = np.zeros_like(self.wx)
        grad_wh = np.zeros_like(self.wh)
        for t in range(longest, 0, -1):
            a = lengths >= t
            grad_z[t, a] = grad_h[t, a] * (h[t, a] > 0)
            grad_h[t - 1, a] += grad_z[t, a] @ self.wh.T
            grad_wx += x[a, t - 1].T @ grad_z[t, a]
            grad_wh += h[t - 1].T @ grad_z[t]
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
