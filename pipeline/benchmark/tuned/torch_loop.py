"""torch_loop, tuned: a fused loss, product and sum in one call, gradients returned, and an update in one call."""

import torch

from pipeline.contract import Array, Chunk, Weights


class Loop:
    def __init__(self, weights: Weights, *, learning_rate: float, device: str) -> None:
        self.wx = torch.tensor(weights["wx"], device=device, requires_grad=True)
        self.wh = torch.tensor(weights["wh"], device=device, requires_grad=True)
        self.wo = torch.tensor(weights["wo"], device=device, requires_grad=True)
        self.learning_rate = learning_rate

    def place(self, chunk: Chunk) -> None:
        self.placed = []
        for x, lengths, y in zip(chunk["x"], chunk["lengths"], chunk["y"], strict=True):
            order, steps, running = self._pack(x, lengths)
            self.placed.append((steps, running, torch.from_numpy(y).to(self.wx.device)[order]))
        self.next = 0

    def run(self, steps: int) -> torch.Tensor:
        wx, wh, wo, learning_rate = self.wx, self.wh, self.wo, self.learning_rate
        losses = torch.empty(steps, dtype=wx.dtype, device=wx.device)
        for step in range(steps):
            x, running, y = self.placed[self.next]
            self.next = (self.next + 1) % len(self.placed)

            # Forward pass.
            y_pred = self._unroll(x, running)
            loss = torch.nn.functional.mse_loss(y_pred, y)
            losses[step] = loss.detach()

            # Backward pass.
            grad_wx, grad_wh, grad_wo = torch.autograd.grad(loss, (wx, wh, wo))

            # Update.
            with torch.no_grad():
                wx.sub_(grad_wx, alpha=learning_rate)
                wh.sub_(grad_wh, alpha=learning_rate)
                wo.sub_(grad_wo, alpha=learning_rate)
        return losses

    def _unroll(self, x: torch.Tensor, running: list[int]) -> torch.Tensor:
        """y_pred (N, outputs) of examples sorted by length; x (sum of lengths, inputs) holds them time after time."""
        h = x.new_zeros(running[0], len(self.wh))
        done = []
        for count, z in zip(running, x.mm(self.wx).split(running), strict=True):
            done.append(h[count:])
            h = torch.addmm(z, h[:count], self.wh).relu()
        return torch.cat([h, *reversed(done)]).mm(self.wo)

    def _pack(self, x: Array, lengths: Array) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Examples x (N, max_length, inputs) without their padding, longest first, time after time.

        Returns the order of the examples (N,), the packed x (sum of lengths, inputs), and how many run at each time.
        """
        length = torch.from_numpy(lengths).to(self.wx.device)
        order = length.argsort(descending=True, stable=True)
        active = torch.arange(int(length.max()), device=length.device)[:, None] < length[order]
        time, row = active.nonzero(as_tuple=True)
        return order, torch.from_numpy(x).to(self.wx.device)[order[row], time], active.sum(1).tolist()

    def weights(self) -> Weights:
        return {key: getattr(self, key).numpy(force=True).copy() for key in ("wx", "wh", "wo")}
