"""An exercise for each lesson: one edit, the command, and what it prints. A test carries each exercise out. An
implementation that is not named here has no exercise.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Exercise:
    """`old`, lines of the lesson's file, becomes `new`; `command` then prints `promised`."""

    task: str
    old: str
    new: str
    command: str
    promised: str
    why: str
    times: int = 0  # how often it is printed, if the exercise is about that


_COMPARE = "dvc repro compare"

EXERCISES = {
    "numpy_arrays": Exercise(
        "Forget relu's part in the chain rule",
        "        grad_h = grad_h_relu * (h > 0)",
        "        grad_h = grad_h_relu",
        _COMPARE,
        "✗ FAILED",
        "The loss still falls, so nothing looks wrong. The parity check compares the gradient with that of the float64 "
        "reference, and fails.",
    ),
    "torch_tensors": Exercise(
        "Lose a factor 2",
        "        grad_y_pred = 2 * (y_pred - y) / y.numel()",
        "        grad_y_pred = (y_pred - y) / y.numel()",
        _COMPARE,
        "5.0e-01 ✗",
        "Every gradient is computed from this one, so all are half of what they should be: a relative error of 0.5.",
    ),
    "torch_autograd": Exercise(
        "Walk back through the graph twice",
        "        loss.backward()",
        "        loss.backward()\n        loss.backward()",
        "dvc repro train@torch_autograd",
        "Trying to backward through the graph a second time",
        "The graph is used once. `backward` frees what it held, and the next step records a new one.",
    ),
    "torch_function": Exercise(
        "Save nothing for the backward pass",
        "        ctx.save_for_backward(h)\n",
        "",
        "dvc repro train@torch_function",
        "not enough values to unpack (expected 1, got 0)",
        "The forward pass runs and gives the right loss. `backward` is called later, by autograd, and knows of the "
        "forward pass only what `ctx` carries: to compute `h > 0` it needs `h`.",
    ),
    "tensorflow_graph": Exercise(
        "Let Python say when it runs",
        "        # Forward pass.\n",
        '        print("Python runs this line")\n',
        "dvc repro -fs train@tensorflow_graph",
        "Python runs this line",
        "Python runs it only where a graph is built: for the training and for the first gradient. All steps of the "
        "training execute the first of these. In torch_autograd the same line would be printed in every step.",
        2,
    ),
    "torch_loop": Exercise(
        "Take the state out of the record",
        "            h = (z + h[:running] @ self.wh).relu()",
        "            h = (z + h[:running].detach() @ self.wh).relu()",
        _COMPARE,
        "✗ FAILED",
        "The forward pass computes what it did before. But autograd knows only what it has recorded, and no gradient "
        "goes back through time any more.",
    ),
    "tensorflow_scan": Exercise(
        "Write the loop in Python instead",
        "        states = tf.scan(next_state, x @ self.wx, start)",
        "        states = [start]\n"
        "        for t in range(x.shape[0]):\n"
        "            states.append(next_state(states[-1], x[t] @ self.wx))",
        "dvc repro train@tensorflow_scan",
        "'NoneType' object cannot be interpreted as an integer",
        "When Python runs these lines, there is no batch yet: the number of time steps is None. A Python loop cannot "
        "be as long as data that come later; `tf.scan` can.",
    ),
}
