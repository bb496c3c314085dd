"""The two-layer network in TensorFlow, as a static graph.

The graph is defined once, before any data is seen: `tf.function` runs the Python lines of `_train` a single time, with
placeholders in the arguments' place, and keeps the operations. Executing it does not come back to Python: the loop over
the steps, the gradient and the update are all nodes of the graph. What is known beforehand can be optimised as a
whole, up to machine code. That costs something up front, and is paid back by executing the same graph over and over.
"""

import tensorflow as tf

from pipeline.contract import Array, Batches, Weights


class Implementation:
    def __init__(self, initial: Weights, *, learning_rate: float, device: str) -> None:
        self.device = device
        with tf.device(device):
            self.w1 = tf.Variable(initial["w1"])
            self.w2 = tf.Variable(initial["w2"])
        self.learning_rate = learning_rate
        (inputs, _), outputs, dtype = self.w1.shape, self.w2.shape[1], self.w1.dtype
        x = tf.TensorSpec([None, None, inputs], dtype)
        y = tf.TensorSpec([None, None, outputs], dtype)
        count = tf.TensorSpec([], tf.int32)
        self.graph = tf.function(self._train, input_signature=[x, y, count, count])
        self.graph.get_concrete_function()

    def _train(self, xs: tf.Tensor, ys: tf.Tensor, first: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
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

    def load(self, batches: Batches) -> None:
        with tf.device(self.device):
            self.x, self.y = tf.constant(batches["x"]), tf.constant(batches["y"])
        self.next = 0

    def train(self, steps: int) -> tf.Tensor:
        with tf.device(self.device):
            losses = self.graph(self.x, self.y, tf.constant(self.next), tf.constant(steps))
        self.next = (self.next + steps) % len(self.x)
        return losses[:steps]

    def predict(self, x: Array) -> Array:
        with tf.device(self.device):
            return (tf.nn.relu(x @ self.w1) @ self.w2).numpy()

    def weights(self) -> Weights:
        return {"w1": self.w1.numpy(), "w2": self.w2.numpy()}
