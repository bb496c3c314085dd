"""A loop that AutoGraph puts into the graph, and an optimizer of Keras."""

import tensorflow as tf


class Implementation:
    def __init__(self, weights, *, learning_rate, **_):
        self.wx, self.wh, self.wo = (tf.Variable(weights[k]) for k in ("wx", "wh", "wo"))
        self.optimizer = tf.keras.optimizers.SGD(learning_rate)

    def place(self, batch):
        x = tf.where(tf.math.is_nan(batch["x"]), tf.zeros_like(batch["x"]), batch["x"])
        return x, tf.constant(batch["lengths"]), tf.constant(batch["y"])

    def _forward(self, x, lengths):
        h = tf.zeros([tf.shape(x)[0], self.wh.shape[0]], x.dtype)
        for t in tf.range(tf.shape(x)[1]):
            new = tf.nn.relu(x[:, t] @ self.wx + h @ self.wh)
            h = tf.where((tf.cast(t, lengths.dtype) < lengths)[:, None], new, h)
        return h @ self.wo

    @tf.function
    def step(self, x, lengths, y):
        with tf.GradientTape() as tape:
            y_pred = self._forward(x, lengths)
            loss = tf.reduce_mean(tf.square(y_pred - y))
        variables = [self.wx, self.wh, self.wo]
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    def predict(self, x, lengths):
        x = tf.where(tf.math.is_nan(x), tf.zeros_like(x), x)
        return self._forward(x, tf.constant(lengths)).numpy()
