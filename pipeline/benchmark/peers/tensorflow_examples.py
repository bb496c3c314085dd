"""The recurrent network in TensorFlow: `tf.scan` over the time steps of one example, `tf.map_fn` over the examples."""

import numpy as np
import tensorflow as tf

from pipeline.contract import Array, Chunk, Weights


class Loop:
    def __init__(self, weights: Weights, *, learning_rate: float, device: str) -> None:
        self.device = device
        with tf.device(device):
            self.wx = tf.Variable(weights["wx"])
            self.wh = tf.Variable(weights["wh"])
            self.wo = tf.Variable(weights["wo"])
        self.learning_rate = learning_rate
        self.step = tf.function(self._step)

    def _step(self, x: tf.Tensor, lengths: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        # Forward pass.
        with tf.GradientTape() as tape:
            y_pred = tf.map_fn(self._unroll, (x, lengths), fn_output_signature=y.dtype)
            loss = tf.reduce_mean((y_pred - y) ** 2)

        # Backward pass.
        grad_wx, grad_wh, grad_wo = tape.gradient(loss, [self.wx, self.wh, self.wo])

        # Update.
        self.wx.assign(self.wx - self.learning_rate * grad_wx)
        self.wh.assign(self.wh - self.learning_rate * grad_wh)
        self.wo.assign(self.wo - self.learning_rate * grad_wo)
        return loss

    def _unroll(self, example: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """y_pred (outputs,) of one example: x (max_length, inputs), length ()."""
        x, length = example

        def step(h: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
            return tf.maximum(x @ self.wx + h @ self.wh, 0)

        states = tf.scan(step, x[:length, None], tf.zeros([1, self.wh.shape[0]], x.dtype))
        return (states[-1] @ self.wo)[0]

    def place(self, chunk: Chunk) -> None:
        self.x, self.lengths, self.y = chunk["x"], chunk["lengths"], chunk["y"]
        self.next = 0

    def run(self, steps: int) -> Array:
        losses = []
        for _ in range(steps):
            x, lengths, y = self.x[self.next], self.lengths[self.next], self.y[self.next]
            self.next = (self.next + 1) % len(self.x)
            with tf.device(self.device):
                loss = self.step(tf.constant(x), tf.constant(lengths), tf.constant(y))
            losses.append(float(loss))
        return np.array(losses)

    def weights(self) -> Weights:
        return {"wx": self.wx.numpy(), "wh": self.wh.numpy(), "wo": self.wo.numpy()}
