"""The two-layer network as a Keras model: `option` is train_on_batch, once for each step, or fit, once for an epoch."""

from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.contract import Array, Chunk, Weights


class Loop:
    def __init__(self, weights: Weights, *, learning_rate: float, device: str, option: str) -> None:
        keras: Any = tf.keras
        inputs, hidden, outputs = *weights["w1"].shape, weights["w2"].shape[1]
        self.device, self.option = device, option
        with tf.device(device):
            self.model = keras.Sequential(
                [
                    keras.layers.Input((inputs,)),
                    keras.layers.Dense(hidden, activation="relu", use_bias=False, dtype=weights["w1"].dtype.name),
                    keras.layers.Dense(outputs, use_bias=False, dtype=weights["w1"].dtype.name),
                ]
            )
            self.model.compile(keras.optimizers.SGD(learning_rate), "mse")
            self.model.set_weights([weights["w1"], weights["w2"]])

    def place(self, chunk: Chunk) -> None:
        self.x, self.y = chunk["x"], chunk["y"]
        self.least_steps = len(self.x) if self.option == "fit" else 1
        self.next = 0

    def run(self, steps: int) -> Array:
        losses = []
        with tf.device(self.device):
            while steps > 0:
                count = min(steps, len(self.x) - self.next) if self.option == "fit" else 1
                x, y = self.x[self.next : self.next + count], self.y[self.next : self.next + count]
                losses.append(self._train(x, y))
                self.next = (self.next + count) % len(self.x)
                steps -= count
        return np.array(losses)  # of `fit` the mean over the batches of a call

    def _train(self, x: Array, y: Array) -> float:
        examples = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        if self.option == "fit":
            history = self.model.fit(*examples, batch_size=x.shape[1], shuffle=False, verbose=0)
            return history.history["loss"][0]
        return float(self.model.train_on_batch(*examples))

    def weights(self) -> Weights:
        return dict(zip(("w1", "w2"), self.model.get_weights(), strict=True))
