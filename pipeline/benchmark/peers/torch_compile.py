"""The two-layer network through `torch.compile(mode="max-autotune")`, which needs a C compiler, and on a GPU triton.

It must be alone in its process: its CUDA graphs clear the workspaces of cuBLAS that other graphs use.
"""

import torch

from pipeline.contract import Chunk, Weights
from pipeline.runtimes import batches_of


class Loop:
    def __init__(self, weights: Weights, *, learning_rate: float, device: str) -> None:
        self.w1 = torch.tensor(weights["w1"], device=device, requires_grad=True)
        self.w2 = torch.tensor(weights["w2"], device=device, requires_grad=True)
        self.learning_rate = learning_rate
        self.loss = torch.compile(self._loss, mode="max-autotune", dynamic=False)

    def _loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.mse_loss((x @ self.w1).relu() @ self.w2, y)

    def place(self, chunk: Chunk) -> None:
        self.batches = [
            (torch.from_numpy(batch["x"]).to(self.w1.device), torch.from_numpy(batch["y"]).to(self.w1.device))
            for batch in batches_of(chunk)
        ]
        self.next = 0

    def run(self, steps: int) -> torch.Tensor:
        losses = []
        for _ in range(steps):
            x, y = self.batches[self.next]
            self.next = (self.next + 1) % len(self.batches)
            loss = self.loss(x, y)
            loss.backward()
            with torch.no_grad():
                self.w1 -= self.learning_rate * self.w1.grad
                self.w2 -= self.learning_rate * self.w2.grad
            self.w1.grad = self.w2.grad = None
            losses.append(loss.detach().clone())  # the next step overwrites what a CUDA graph returned
        return torch.stack(losses)

    def weights(self) -> Weights:
        return {"w1": self.w1.numpy(force=True), "w2": self.w2.numpy(force=True)}
