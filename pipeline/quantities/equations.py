"""The equations of a problem, from the docstring of its file, as data.

An equation is an indented line of that docstring, in Python's syntax, with the shape of the result:

    h_relu = relu(h)    (N, hidden)    for t = 1 … length

The text after the shape says for which time steps the equation holds, in the order in which they are computed.
"""

import ast
import re
from dataclasses import dataclass, replace

LINE = re.compile(r" {4}(?P<left>\S.*?) += +(?P<right>\S.*?) {2,}\((?P<shape>.*?)\)(?: {2,}(?P<times>for t = .*))?$")


@dataclass(frozen=True)
class Equation:
    left: str
    right: str
    shape: str  # the sizes by name, with commas; empty for a single number
    times: str  # for t = 1 … length, or nothing
    number: int = 0  # in the docstring, from 1

    @property
    def name(self) -> str:
        """The quantity that it computes, without an index."""
        return re.split(r"\W", self.left)[0]

    @property
    def operands(self) -> frozenset[str]:
        """The names on its right side, without functions and indices."""
        nodes = list(ast.walk(ast.parse(self.right, mode="eval")))
        left_out = [node.func for node in nodes if isinstance(node, ast.Call)]
        left_out += [node.slice for node in nodes if isinstance(node, ast.Subscript)]
        ignored = {id(inner) for node in left_out for inner in ast.walk(node)}
        return frozenset(node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in ignored)

    @property
    def part(self) -> str:
        """The part of a step: forward, backward or update."""
        if self.name.startswith("grad_"):
            return "backward"
        return "update" if {self.name, "learning_rate"} <= self.operands else "forward"

    @property
    def size(self) -> str:
        """Its shape in words: N × hidden, or a number."""
        return self.shape.replace(", ", " × ") or "a number"


def equations(docstring: str) -> list[Equation]:
    """The equations of a docstring in its order, numbered from 1."""
    equations = [equation for line in docstring.splitlines() if (equation := equation_in(line))]
    return [replace(equation, number=number) for number, equation in enumerate(equations, 1)]


def equation_in(line: str) -> Equation | None:
    match = LINE.match(line)
    return match and Equation(match["left"], match["right"], match["shape"], match["times"] or "")
