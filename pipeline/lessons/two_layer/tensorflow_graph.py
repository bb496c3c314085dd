"""The two-layer network in TensorFlow, as a static graph.

The graph is defined once and executed over and over. To define it, `tf.function` runs the lines of `step` a single
time, with placeholders of the given shapes instead of data, and keeps the operations. `GradientTape` records those of
the forward pass, and `tape.gradient` adds the backward pass. Executing the graph runs no Python. A graph known
beforehand can be optimised as a whole; that costs time once and saves a little in each execution.
"""

import tensorflow as tf

from pipeline.contract import Array, Batch, Weights


class Implementation:
    def __init__(self, weights: Weights, *, learning_rate: float, device: str) -> None:
        with tf.device(device):
            self.w1 = tf.Variable(weights["w1"])
            self.w2 = tf.Variable(weights["w2"])
        self.learning_rate = learning_rate
        x = tf.TensorSpec([None, self.w1.shape[0]], self.w1.dtype)
        y = tf.TensorSpec([None, self.w2.shape[1]], self.w2.dtype)
        self.step = tf.function(self.step, input_signature=[x, y])

    def place(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.constant(batch["x"]), tf.constant(batch["y"])

    def step(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        # Forward pass.
        with tf.GradientTape() as tape:
            y_pred = tf.nn.relu(x @ self.w1) @ self.w2
            loss = tf.reduce_mean(tf.square(y_pred - y))

        # Backward pass.
        grad_w1, grad_w2 = tape.gradient(loss, [self.w1, self.w2])

        # Update.
        self.w1.assign_sub(self.learning_rate * grad_w1)
        self.w2.assign_sub(self.learning_rate * grad_w2)
        return loss

    def predict(self, x: Array) -> Array:
        return (tf.nn.relu(x @ self.w1) @ self.w2).numpy()
