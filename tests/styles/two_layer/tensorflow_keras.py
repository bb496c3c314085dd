"""An optimizer of Keras, which keeps its learning rate in float32."""

import tensorflow as tf


class Implementation:
    def __init__(self, weights, *, learning_rate, **_):
        self.w1 = tf.Variable(weights["w1"])
        self.w2 = tf.Variable(weights["w2"])
        self.optimizer = tf.keras.optimizers.SGD(learning_rate)

    def place(self, batch):
        return tf.constant(batch["x"]), tf.constant(batch["y"])

    @tf.function
    def step(self, x, y):
        with tf.GradientTape() as tape:
            y_pred = tf.nn.relu(x @ self.w1) @ self.w2
            loss = tf.reduce_mean((y_pred - y) ** 2)
        variables = [self.w1, self.w2]
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    def predict(self, x):
        return (tf.nn.relu(x @ self.w1) @ self.w2).numpy()
