"""Python that a lesson may use: it inspects its own file, prints, and has other names than the equations."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import ClassVar

import numpy as np

from .numpy_columns import Implementation as Columns


def announced(function):
    @wraps(function)
    def inner(*arguments):
        print("a step", end="")
        return function(*arguments)

    return inner


@dataclass
class Forward:
    rates: ClassVar[int] = 0
    h: np.ndarray
    h_relu: np.ndarray


class Implementation(Columns):
    def __init__(self, weights, **settings):
        super().__init__(weights, **settings)
        self.source = inspect.getsource(Columns) + Path(__file__).read_text(encoding="utf-8")
        with open(__file__, encoding="utf-8") as self.file:  # noqa: PTH123 (a file has a method `detach`)
            pass

    def place(self, batch):
        return batch["x"], batch["y"]

    @announced
    def step(self, x, y):
        targets, *_ = y, None
        relu = lambda a: np.maximum(a, 0)  # noqa: E731
        forward = Forward(before := x @ self.w1, relu(before))
        h = forward.h_relu  # h_relu in the equations
        loss = h @ self.w2 - targets  # not a quantity of the equations
        grad_w2, grad_h = h.T @ (g := 2 * loss / targets.size), np.where(forward.h > 0, g @ self.w2.T, 0)
        for name, gradient in {"w1": x.T @ grad_h, "w2": grad_w2}.items():
            setattr(self, name, getattr(self, name) - self.learning_rate * gradient)
        return sum(np.square(row).sum() for row in loss) / targets.size
