"""tensorflow_graph, tuned: the loop over the steps is written into the graph, and XLA compiles it as the lesson's."""

import tensorflow as tf

from pipeline.contract import Chunk, Weights
from pipeline.runtimes.xla import xla_pays


class Loop:
    def __init__(self, weights: Weights, *, learning_rate: float, device: str) -> None:
        self.device = device
        with tf.device(device):
            self.w1 = tf.Variable(weights["w1"])
            self.w2 = tf.Variable(weights["w2"])
        self.learning_rate = learning_rate
        (inputs, _), outputs, dtype = self.w1.shape, self.w2.shape[1], self.w1.dtype
        x = tf.TensorSpec([None, None, inputs], dtype)
        y = tf.TensorSpec([None, None, outputs], dtype)
        count = tf.TensorSpec([], tf.int32)
        compiled = xla_pays(sum(weight.size for weight in weights.values()), on_gpu=device != "CPU:0")
        self.graph = tf.function(self._run, input_signature=[x, y, count, count], jit_compile=compiled)

    def _run(self, xs: tf.Tensor, ys: tf.Tensor, first: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
        losses = tf.TensorArray(self.w1.dtype, tf.shape(xs)[0], element_shape=[])
        step, batch = tf.constant(0), first
        while step < steps:
            x, y = xs[batch], ys[batch]

            # Forward pass.
            with tf.GradientTape() as tape:
                y_pred = tf.nn.relu(x @ self.w1) @ self.w2
                loss = tf.reduce_mean(tf.square(y_pred - y))
            losses = losses.write(step, loss)

            # Backward pass.
            grad_w1, grad_w2 = tape.gradient(loss, (self.w1, self.w2))

            # Update.
            self.w1.assign_sub(self.learning_rate * grad_w1)
            self.w2.assign_sub(self.learning_rate * grad_w2)
            step, batch = step + 1, (batch + 1) % tf.shape(xs)[0]
        return losses.stack()

    def place(self, chunk: Chunk) -> None:
        with tf.device(self.device):
            self.x, self.y = tf.constant(chunk["x"]), tf.constant(chunk["y"])
        self.next = 0

    def run(self, steps: int) -> tf.Tensor:
        with tf.device(self.device):
            losses = self.graph(self.x, self.y, tf.constant(self.next), tf.constant(steps))
        self.next = (self.next + steps) % len(self.x)
        return losses[:steps]

    def weights(self) -> Weights:
        return {"w1": self.w1.numpy(), "w2": self.w2.numpy()}
