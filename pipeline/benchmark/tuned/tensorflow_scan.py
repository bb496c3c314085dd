"""tensorflow_scan, tuned: the loop over the steps is written into the graph."""

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
        inputs, outputs, dtype = self.wx.shape[0], self.wo.shape[1], self.wx.dtype
        x = tf.TensorSpec([None, None, None, inputs], dtype)
        running = tf.TensorSpec([None, None, None, 1], tf.bool)
        y = tf.TensorSpec([None, None, outputs], dtype)
        count = tf.TensorSpec([], tf.int32)
        self.graph = tf.function(self._run, input_signature=[x, running, y, count, count])
        self.graph.get_concrete_function()

    def _run(self, xs: tf.Tensor, runnings: tf.Tensor, ys: tf.Tensor, first: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
        losses = tf.TensorArray(self.wx.dtype, tf.shape(xs)[0], element_shape=[])
        step, batch = tf.constant(0), first
        while step < steps:
            x, running, y = xs[batch], runnings[batch], ys[batch]

            # Forward pass.
            with tf.GradientTape() as tape:
                y_pred = self._scan(x, running)
                loss = tf.reduce_mean(tf.square(y_pred - y))
            losses = losses.write(step, loss)

            # Backward pass.
            grad_wx, grad_wh, grad_wo = tape.gradient(loss, (self.wx, self.wh, self.wo))

            # Update.
            self.wx.assign_sub(self.learning_rate * grad_wx)
            self.wh.assign_sub(self.learning_rate * grad_wh)
            self.wo.assign_sub(self.learning_rate * grad_wo)
            step, batch = step + 1, (batch + 1) % tf.shape(xs)[0]
        return losses.stack()

    def _scan(self, x: tf.Tensor, running: tf.Tensor) -> tf.Tensor:
        """y_pred (N, outputs) for x (max_length, N, inputs), running (max_length, N, 1): is the example still on?"""

        def step(h: tf.Tensor, now: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            z, running = now
            return tf.where(running, tf.nn.relu(z + h @ self.wh), h)

        states = tf.scan(step, (x @ self.wx, running), tf.zeros([tf.shape(x)[1], self.wh.shape[0]], x.dtype))
        return states[-1] @ self.wo

    def place(self, chunk: Chunk) -> None:
        with tf.device(self.device):
            self.x, self.running = self._by_time(chunk["x"], chunk["lengths"])
            self.y = tf.constant(chunk["y"])
        self.next = 0

    def _by_time(self, x: Array, lengths: Array) -> tuple[tf.Tensor, tf.Tensor]:
        """Time first: x (…, N, max_length, inputs) as (…, max_length, N, inputs), 0 in the padding, and what is not."""
        running = tf.sequence_mask(lengths, x.shape[-2])[..., None]
        x = tf.where(running, x, 0)  # a masked step's gradient is 0 times its input: nan, were the input nan
        return tf.experimental.numpy.swapaxes(x, -3, -2), tf.experimental.numpy.swapaxes(running, -3, -2)

    def run(self, steps: int) -> tf.Tensor:
        with tf.device(self.device):
            losses = self.graph(self.x, self.running, self.y, tf.constant(self.next), tf.constant(steps))
        self.next = (self.next + steps) % len(self.x)
        return losses[:steps]

    def weights(self) -> Weights:
        return {"wx": self.wx.numpy(), "wh": self.wh.numpy(), "wo": self.wo.numpy()}
