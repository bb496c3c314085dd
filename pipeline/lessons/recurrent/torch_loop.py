"""The recurrent network in PyTorch, its loop over time in Python.

    h_t = relu(x_t @ wx + h_(t-1) @ wh) for each time step t of an example,   y_pred = h_length @ wo,   h_0 = 0

Autograd records whatever runs, so a loop over time is an ordinary Python loop, and the graph it leaves is as long as
this batch needs. `pack_padded_sequence` sorts the examples by length, longest first, and drops the padding:
`batch_sizes[t]` says how many examples are still running at time t, and they are the first ones. Those that have ended
are set aside, so the work is proportional to the sum of the lengths. `x @ wx` is computed for all times at once.
"""

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from pipeline.contract import Array, Batch, Weights


class Implementation:
    def __init__(self, weights: Weights, *, learning_rate: float, device: str) -> None:
        self.wx = torch.tensor(weights["wx"], device=device, requires_grad=True)
        self.wh = torch.tensor(weights["wh"], device=device, requires_grad=True)
        self.wo = torch.tensor(weights["wo"], device=device, requires_grad=True)
        self.learning_rate = learning_rate

    def place(self, batch: Batch) -> tuple[torch.Tensor, list[int], torch.Tensor]:
        packed = self._packed(batch["x"], batch["lengths"])
        y = torch.from_numpy(batch["y"])[packed.sorted_indices]
        return packed.data.to(self.wx.device), packed.batch_sizes.tolist(), y.to(self.wx.device)

    def step(self, x: torch.Tensor, batch_sizes: list[int], y: torch.Tensor) -> torch.Tensor:
        # Forward pass.
        y_pred = self._forward(x, batch_sizes)
        loss = torch.nn.functional.mse_loss(y_pred, y)

        # Backward pass.
        loss.backward()

        # Update, outside the graph. `backward` adds to `.grad`, so clear it.
        with torch.no_grad():
            self.wx -= self.learning_rate * self.wx.grad
            self.wh -= self.learning_rate * self.wh.grad
            self.wo -= self.learning_rate * self.wo.grad
        self.wx.grad = self.wh.grad = self.wo.grad = None
        return loss

    def _forward(self, x: torch.Tensor, batch_sizes: list[int]) -> torch.Tensor:
        h = x.new_zeros(batch_sizes[0], len(self.wh))
        ended = []
        for running, z in zip(batch_sizes, (x @ self.wx).split(batch_sizes), strict=True):
            ended.append(h[running:])
            h = (z + h[:running] @ self.wh).relu()
        return torch.cat([h, *reversed(ended)]) @ self.wo  # the last to end are the longest: longest first again

    def _packed(self, x: Array, lengths: Array) -> PackedSequence:
        return pack_padded_sequence(
            torch.from_numpy(x), torch.from_numpy(lengths), batch_first=True, enforce_sorted=False
        )

    def predict(self, x: Array, lengths: Array) -> Array:
        packed = self._packed(x, lengths)
        y_pred = self._forward(packed.data.to(self.wx.device), packed.batch_sizes.tolist())
        return y_pred[packed.unsorted_indices].numpy(force=True)
