"""The two-layer network in JAX: NumPy's lines traced once and compiled, with the loop over the batches (`lax.scan`).

Installed by `make bench PEERS=1` alone. A call of `run` takes whole epochs, since `scan` goes over all of its input.
"""

import jax
import jax.numpy as jnp
import numpy as np

from pipeline.contract import Array, Chunk, Weights

jax.config.update("jax_enable_x64", True)  # or float64 would silently become float32


def _loss(weights: tuple[jax.Array, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    w1, w2 = weights
    return jnp.mean((jnp.maximum(x @ w1, 0) @ w2 - y) ** 2)


class Loop:
    def __init__(self, weights: Weights, *, learning_rate: float, device: str) -> None:
        self.device = jax.devices(device)[0]
        self.values = tuple(jax.device_put(weights[key], self.device) for key in ("w1", "w2"))

        def step(values, batch):
            loss, gradients = jax.value_and_grad(_loss)(values, *batch)
            return tuple(w - learning_rate * grad for w, grad in zip(values, gradients, strict=True)), loss

        self.epoch = jax.jit(lambda values, batches: jax.lax.scan(step, values, batches), donate_argnums=0)

    def place(self, chunk: Chunk) -> None:
        self.batches = tuple(jax.device_put(chunk[key], self.device) for key in ("x", "y"))
        self.least_steps = len(chunk["y"])

    def run(self, steps: int) -> Array:
        losses = []
        for _ in range(steps // self.least_steps):
            self.values, epoch_losses = self.epoch(self.values, self.batches)
            losses.append(epoch_losses)
        return np.concatenate([np.asarray(epoch_losses) for epoch_losses in losses])  # waits until they are there

    def weights(self) -> Weights:
        return dict(zip(("w1", "w2"), map(np.asarray, self.values), strict=True))
