"""The two-layer network as a PyTorch module with an optimiser: `option` is plain, foreach or fused, as SGD has it."""

import torch

from pipeline.contract import Chunk, Weights
from pipeline.runtimes import batches_of


class Loop:
    def __init__(self, weights: Weights, *, learning_rate: float, device: str, option: str) -> None:
        inputs, hidden, outputs = *weights["w1"].shape, weights["w2"].shape[1]
        dtype = torch.from_numpy(weights["w1"]).dtype
        self.device = device
        self.model = torch.nn.Sequential(
            torch.nn.Linear(inputs, hidden, bias=False, device=device, dtype=dtype),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, outputs, bias=False, device=device, dtype=dtype),
        )
        with torch.no_grad():
            for parameter, key in zip(self.model.parameters(), ("w1", "w2"), strict=True):
                parameter.copy_(torch.from_numpy(weights[key].T))
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), learning_rate, foreach=option == "foreach", fused=option == "fused"
        )
        self.loss = torch.nn.MSELoss()

    def place(self, chunk: Chunk) -> None:
        self.batches = [
            (torch.from_numpy(batch["x"]).to(self.device), torch.from_numpy(batch["y"]).to(self.device))
            for batch in batches_of(chunk)
        ]
        self.next = 0

    def run(self, steps: int) -> torch.Tensor:
        losses = []
        for _ in range(steps):
            x, y = self.batches[self.next]
            self.next = (self.next + 1) % len(self.batches)
            self.optimizer.zero_grad()
            loss = self.loss(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    def weights(self) -> Weights:
        first, second = self.model.parameters()
        return {"w1": first.numpy(force=True).T, "w2": second.numpy(force=True).T}
