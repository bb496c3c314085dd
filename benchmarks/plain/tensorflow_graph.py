"""The two-layer network in TensorFlow: a graph of one step, fed from the host and called once per step."""

import numpy as np
import tensorflow as tf

from pipeline.contract import Array, Batches, Weights


class Implementation:
    def __init__(self, initial: Weights, *, learning_rate: float, device: str) -> None:
        self.device = device
        with tf.device(device):
            self.w1 = tf.Variable(initial["w1"])
            self.w2 = tf.Variable(initial["w2"])
        self.learning_rate = learning_rate
        self.step = tf.function(self._step)

    def _step(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        # Forward pass.
        with tf.GradientTape() as tape:
            h = tf.matmul(x, self.w1)
            h_relu = tf.maximum(h, 0)
            y_pred = tf.matmul(h_relu, self.w2)
            loss = tf.reduce_mean((y_pred - y) ** 2)

        # Backward pass.
        grad_w1, grad_w2 = tape.gradient(loss, [self.w1, self.w2])

        # Update.
        self.w1.assign(self.w1 - self.learning_rate * grad_w1)
        self.w2.assign(self.w2 - self.learning_rate * grad_w2)
        return loss

    def load(self, batches: Batches) -> None:
        self.x, self.y = batches["x"], batches["y"]
        self.next = 0

    def train(self, steps: int) -> Array:
        losses = []
        for _ in range(steps):
            x, y = self.x[self.next], self.y[self.next]
            self.next = (self.next + 1) % len(self.x)
            with tf.device(self.device):
                loss = self.step(tf.constant(x), tf.constant(y))
            losses.append(float(loss))
        return np.array(losses)

    def weights(self) -> Weights:
        return {"w1": self.w1.numpy(), "w2": self.w2.numpy()}
