"""A lesson's step as data for player.js: the small batch, the equations as trees, and the quantities in order.

A tree is a list of an operator and its operands: `h_relu @ w2` is ["@", ["name", "h_relu"], ["name", "w2"]].
player.js evaluates it, so that a reader can change a number and see what follows.
"""

import ast
import json
from dataclasses import asdict
from typing import Any

from pipeline.graphs.graph import Example
from pipeline.quantities.equations import Equation

OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
    ast.MatMult: "@",
    ast.Gt: ">",
}


def player_data(equations: list[Equation], example: Example) -> str:
    """JSON that can stand in a <script>."""
    content = {
        "equations": [
            {"name": line.name, "part": line.part, "shape": line.shape, "right": tree(line.right)} for line in equations
        ],
        **asdict(example),
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def tree(right: str) -> list[Any]:
    return _tree(ast.parse(right, mode="eval").body)


def _tree(node: ast.expr) -> list[Any]:
    match node:
        case ast.Constant(value=number):
            made = ["number", number]
        case ast.Name(id=name):
            made = ["name", name]
        case ast.Subscript(value=ast.Name(id=name), slice=index):
            made = ["name", name, _tree(index)]
        case ast.Attribute(value=value, attr="T"):
            made = ["T", _tree(value)]
        case (
            ast.BinOp(left=left, op=operator, right=right) | ast.Compare(left=left, ops=[operator], comparators=[right])
        ):
            made = [OPERATORS[type(operator)], _tree(left), _tree(right)]
        case ast.Call(func=ast.Name(id="sum"), args=[ast.GeneratorExp(elt=term, generators=[loop])]):
            bounds = loop.iter.args  # pyright: ignore[reportAttributeAccessIssue]
            made = ["sum", _tree(term), *map(_tree, (loop.target, *bounds))]
        case ast.Call(func=ast.Name(id=function), args=arguments):
            made = [function, *map(_tree, arguments)]
        case _:
            raise ValueError(f"pipeline/lessons_page/player.py cannot make a tree of {ast.unparse(node)}")
    return made
