"""The two-layer network in PyTorch, with an autograd function of our own.

To autograd, every operator is two functions. `forward` computes the output from the input; `backward` receives the
gradient of the loss with respect to the output and computes the one with respect to the input. `ctx` carries what
`backward` will need. A subclass of `torch.autograd.Function` with these two is an operator like PyTorch's: our relu.
"""

import torch

from pipeline.contract import Array, Batch, Weights


class ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(h)
        return h.clamp(min=0)

    @staticmethod
    def backward(ctx, grad_h_relu: torch.Tensor) -> torch.Tensor:
        (h,) = ctx.saved_tensors
        return grad_h_relu * (h > 0)


class Implementation:
    def __init__(self, weights: Weights, *, learning_rate: float, device: str) -> None:
        self.w1 = torch.tensor(weights["w1"], device=device, requires_grad=True)
        self.w2 = torch.tensor(weights["w2"], device=device, requires_grad=True)
        self.learning_rate = learning_rate

    def place(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(batch["x"]).to(self.w1.device), torch.from_numpy(batch["y"]).to(self.w1.device)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # Forward pass.
        y_pred = ReLU.apply(x @ self.w1) @ self.w2
        loss = torch.nn.functional.mse_loss(y_pred, y)

        # Backward pass.
        loss.backward()

        # Update, outside the graph. `backward` adds to `.grad`, so clear it.
        with torch.no_grad():
            self.w1 -= self.learning_rate * self.w1.grad
            self.w2 -= self.learning_rate * self.w2.grad
        self.w1.grad = self.w2.grad = None
        return loss

    def predict(self, x: Array) -> Array:
        return (ReLU.apply(torch.from_numpy(x).to(self.w1.device) @ self.w1) @ self.w2).numpy(force=True)
