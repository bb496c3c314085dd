"""Counts in the text of the lessons' files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import LESSONS, REPOSITORY

from pipeline.contract import implementation_file
from pipeline.report.illustrations import backward_lines, code, difference

HAND = '''"""A lesson."""

import numpy as np


class Implementation:
    """Its class."""

    def step(self, x, y):
        # Forward pass.
        h = x @ self.w1

        # Backward pass.
        grad_h = 2 * h  # the chain rule

        # The mask.
        grad_w1 = (
            x.T @ grad_h
        )

        # Update, in place.
        self.w1 -= grad_w1
        return "# Backward pass is no comment here"
'''
OPERATOR = """class Operator(torch.autograd.Function):
    @staticmethod
    def backward(ctx, grad):
        '''Of the output.'''
        (h,) = ctx.saved_tensors

        # The mask.
        return grad * (h > 0)


class Implementation:
    def step(self, x, y):
        # Backward pass.
        loss.backward()

        # Update.
        self.w1 -= self.w1.grad
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """write(name, source) makes it a lesson of the problem `toy`."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, source: str) -> None:
        file = implementation_file("toy", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)

    return write


def test_code_leaves_out_docstrings_comments_imports_and_blank_lines():
    assert code(HAND) == {
        6: "class Implementation:",
        9: "    def step(self, x, y):",
        11: "        h = x @ self.w1",
        14: "        grad_h = 2 * h",
        17: "        grad_w1 = (",
        18: "            x.T @ grad_h",
        19: "        )",
        22: "        self.w1 -= grad_w1",
        23: '        return "# Backward pass is no comment here"',
    }


def test_difference_contains_only_lines_of_code(write: Callable[[str, str], None]):
    write("one", HAND)
    other = HAND.replace("import numpy as np", "import torch").replace("A lesson", "Another").replace("the mask", "m")
    write("alike", other)
    assert difference("toy", "one", "alike") == ([], 9, 9)
    write("other", other.replace("2 * h", "h").replace("        h = x @ self.w1\n", ""))
    lines = ["-        h = x @ self.w1", "-        grad_h = 2 * h", "+        grad_h = h"]
    assert difference("toy", "one", "other") == (lines, 7, 8)


def test_removed_line_that_begins_with_hyphens_is_kept(write: Callable[[str, str], None]):
    write("one", "--x\n")
    write("other", "++x\n")
    assert difference("toy", "one", "other").lines == ["---x", "+++x"]


def test_backward_pass_is_counted_between_its_comments(write: Callable[[str, str], None]):
    write("hand", HAND)
    assert backward_lines("toy", "hand") == 4
    write("longer", HAND.replace("        # The mask.", "        grad_h = grad_h * (h > 0)"))
    assert backward_lines("toy", "longer") == 5


def test_functions_called_backward_belong_to_the_backward_pass(write: Callable[[str, str], None]):
    write("operator", OPERATOR)
    assert backward_lines("toy", "operator") == 3
    write("autograd", OPERATOR[OPERATOR.index("class Implementation") :])
    assert backward_lines("toy", "autograd") == 1


@pytest.mark.parametrize("comment", ["# Backward pass.", "# Update, in place."])
def test_unmarked_backward_pass_is_not_counted(write: Callable[[str, str], None], comment: str):
    write("unmarked", HAND.replace(comment, "#"))
    assert backward_lines("toy", "unmarked") is None


def test_backward_passes_of_the_lessons_have_the_stated_lengths(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)
    assert {name: backward_lines(problem, name) for name, problem in LESSONS.items()} == {
        "numpy_arrays": 5,
        "torch_tensors": 5,
        "torch_autograd": 1,
        "torch_function": 3,
        "tensorflow_graph": 1,
        "torch_loop": 1,
        "tensorflow_scan": 1,
    }


def test_backward_passes_of_numpy_and_torch_differ_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)
    lines, same, of = difference(LESSONS["numpy_arrays"], "numpy_arrays", "torch_tensors")
    assert [line.split()[1:3] for line in lines if "grad_" in line] == [["grad_y_pred", "="]] * 2
    assert (same, of) == (13, 22)
