"""torch.nn.RNN."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


class Implementation:
    def __init__(self, weights, *, learning_rate, **_):
        inputs, hidden = weights["wx"].shape
        self.rnn = nn.RNN(inputs, hidden, nonlinearity="relu", bias=False, batch_first=True, dtype=torch.float64)
        with torch.no_grad():
            getattr(self.rnn, "weight_ih_l0").copy_(torch.tensor(weights["wx"].T))  # noqa: B009
            getattr(self.rnn, "weight_hh_l0").copy_(torch.tensor(weights["wh"].T))  # noqa: B009
        self.wo = torch.tensor(weights["wo"], requires_grad=True)
        self.optimizer = torch.optim.SGD([*self.rnn.parameters(), self.wo], lr=learning_rate)

    @property
    def wx(self):
        return self.rnn.weight_ih_l0.T

    @property
    def wh(self):
        return self.rnn.weight_hh_l0.T

    def place(self, batch):
        return torch.from_numpy(batch["x"]), torch.from_numpy(batch["lengths"]), torch.from_numpy(batch["y"])

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        _, h = self.rnn(packed)
        return h[0] @ self.wo

    def step(self, x, lengths, y):
        loss = nn.functional.mse_loss(self.forward(x, lengths), y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss

    def predict(self, x, lengths):
        return self.forward(torch.from_numpy(x), torch.from_numpy(lengths)).detach().numpy()
