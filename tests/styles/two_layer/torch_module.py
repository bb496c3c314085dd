"""A torch.nn.Module, an optimizer, and weights that are properties."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.first = nn.Linear(*weights["w1"].shape, bias=False, dtype=torch.float64)
        self.second = nn.Linear(*weights["w2"].shape, bias=False, dtype=torch.float64)
        self.first.weight = nn.Parameter(torch.tensor(weights["w1"].T))
        self.second.weight = nn.Parameter(torch.tensor(weights["w2"].T))

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


class Implementation:
    def __init__(self, weights, *, learning_rate, device):
        self.net = Net(weights).to(device)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=learning_rate)
        self.loss = nn.MSELoss()

    @property
    def w1(self):
        return self.net.first.weight.T

    @property
    def w2(self):
        return self.net.second.weight.T

    def place(self, batch):
        return torch.from_numpy(batch["x"]), torch.from_numpy(batch["y"])

    def step(self, x, y):
        self.optimizer.zero_grad()
        loss = self.loss(self.net(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def predict(self, x):
        with torch.no_grad():
            return self.net(torch.from_numpy(x)).numpy()
