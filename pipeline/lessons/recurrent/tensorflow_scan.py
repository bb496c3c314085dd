"""The recurrent network in TensorFlow, its loop over time in the graph.

A static graph is there before any example is, so it cannot be as long as an example needs. The loop has to be part of
it: `tf.scan` builds an operation that carries a state along the first axis of a tensor, here time. Traced once, it
serves all lengths. Every example goes through as many steps as the tensor is long, and `tf.gather_nd` picks out the
state that counts: the one at the example's own end.
"""

import tensorflow as tf

from pipeline.contract import Array, Batch, Weights


class Implementation:
    def __init__(self, weights: Weights, *, learning_rate: float, device: str) -> None:
        with tf.device(device):
            self.wx = tf.Variable(weights["wx"])
            self.wh = tf.Variable(weights["wh"])
            self.wo = tf.Variable(weights["wo"])
        self.learning_rate = learning_rate
        x = tf.TensorSpec([None, None, self.wx.shape[0]], self.wx.dtype)
        ends = tf.TensorSpec([None, 2], tf.int32)
        y = tf.TensorSpec([None, self.wo.shape[1]], self.wo.dtype)
        self.step = tf.function(self.step, input_signature=[x, ends, y])

    def place(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return *self._by_time(batch["x"], batch["lengths"]), tf.constant(batch["y"])

    def step(self, x: tf.Tensor, ends: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        # Forward pass.
        with tf.GradientTape() as tape:
            y_pred = self._forward(x, ends)
            loss = tf.reduce_mean(tf.square(y_pred - y))

        # Backward pass.
        grad_wx, grad_wh, grad_wo = tape.gradient(loss, [self.wx, self.wh, self.wo])

        # Update.
        self.wx.assign_sub(self.learning_rate * grad_wx)
        self.wh.assign_sub(self.learning_rate * grad_wh)
        self.wo.assign_sub(self.learning_rate * grad_wo)
        return loss

    def _forward(self, x: tf.Tensor, ends: tf.Tensor) -> tf.Tensor:
        def next_state(h: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
            return tf.nn.relu(z + h @ self.wh)

        start = tf.zeros([tf.shape(x)[1], self.wh.shape[0]], x.dtype)
        states = tf.scan(next_state, x @ self.wx, start)
        return tf.gather_nd(states, ends) @ self.wo

    def _by_time(self, x: Array, lengths: Array) -> tuple[tf.Tensor, tf.Tensor]:
        """x (max_length, N, inputs), time first, 0 in the padding, and the (time, example) of each end, (N, 2)."""
        padded = tf.where(tf.sequence_mask(lengths, x.shape[1])[..., None], x, 0)
        ends = tf.stack([tf.cast(lengths, tf.int32) - 1, tf.range(len(lengths))], 1)
        return tf.transpose(padded, [1, 0, 2]), ends

    def predict(self, x: Array, lengths: Array) -> Array:
        return self._forward(*self._by_time(x, lengths)).numpy()
