"""The equations of a problem, from the docstring of its file, as data and as MathML.

An equation is an indented line of that docstring, in Python's syntax, with the shape of the result:

    h_relu = relu(h)    (N, hidden)    for t = 1 … length

What follows the shape says for which time steps it holds, in the order in which they are computed.
"""

import ast
import re
from typing import NamedTuple

LINE = re.compile(r" {4}(?P<left>\S.*?) += +(?P<right>\S.*?) {2,}\((?P<shape>.*?)\)(?: {2,}(?P<times>for t = .*))?$")
CLOSING = '<mo stretchy="false">)</mo>'


class Equation(NamedTuple):
    left: str
    right: str
    shape: str  # the sizes by name, with commas; empty of a single number
    times: str  # for t = 1 … length, or nothing
    number: int  # in the docstring, from 1

    @property
    def name(self) -> str:
        """Of the quantity that it computes, without an index."""
        return re.split(r"\W", self.left)[0]

    @property
    def operands(self) -> frozenset[str]:
        """The names on its right side, without indices."""
        tree = ast.parse(self.right, mode="eval")
        indices = {
            id(each) for node in ast.walk(tree) if isinstance(node, ast.Subscript) for each in ast.walk(node.slice)
        }
        return frozenset(
            node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in indices
        ) - {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}

    @property
    def part(self) -> str:
        """Of a step: forward, backward or update."""
        if self.name.startswith("grad_"):
            return "backward"
        return "update" if self.name in self.operands and "learning_rate" in self.operands else "forward"

    @property
    def size(self) -> str:
        """Its shape in words: N × hidden, or a number."""
        return self.shape.replace(", ", " × ") or "a number"

    @property
    def mathml(self) -> str:
        left, right = (_mathml(ast.parse(side, mode="eval").body) for side in (self.left, self.right))
        return f"<math>{left}<mo>{'←' if self.part == 'update' else '='}</mo>{right}</math>"


def equations(docstring: str) -> list[Equation]:
    """Those of a docstring, in its order, numbered from 1."""
    found = [equation for line in docstring.splitlines() if (equation := equation_in(line))]
    return [equation._replace(number=number) for number, equation in enumerate(found, 1)]


def equation_in(line: str) -> Equation | None:
    match = LINE.match(line)
    return match and Equation(match["left"], match["right"], match["shape"], match["times"] or "", 0)


def _mathml(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            html = _symbol(name)
        case ast.Constant(value=number):
            html = f"<mn>{number}</mn>"
        case ast.Subscript(value=value, slice=index):
            html = f"<msub>{_mathml(value)}<mrow>{_mathml(index)}</mrow></msub>"
        case ast.Attribute(value=value, attr="T"):
            html = _raised(_mathml(value), "<mi>T</mi>")
        case ast.BinOp(left=base, op=ast.Pow(), right=power):
            html = _raised(_bracketed(base), _mathml(power))
        case ast.BinOp(left=above, op=ast.Div(), right=below):
            html = f"<mfrac><mrow>{_mathml(above)}</mrow><mrow>{_mathml(below)}</mrow></mfrac>"
        case ast.BinOp(left=left, op=operator, right=right):
            sign = _sign(operator, right)
            product = not isinstance(operator, ast.Add | ast.Sub)
            html = f"{_bracketed(left, product)}{sign}{_bracketed(right, product)}"
        case ast.Compare(left=left, ops=[ast.Gt()], comparators=[right]):
            html = f'<mo stretchy="false">[</mo>{_mathml(left)}<mo>&gt;</mo>{_mathml(right)}<mo stretchy="false">]</mo>'
        case ast.Call(func=ast.Name(id="zeros")):
            html = "<mn>0</mn>"
        case ast.Call(func=ast.Name(id="sum"), args=[ast.GeneratorExp(elt=term, generators=[loop])]):
            first, beyond = loop.iter.args  # pyright: ignore[reportAttributeAccessIssue]
            last = ast.unparse(beyond).removesuffix(" + 1")
            below = f"<mrow>{_mathml(loop.target)}<mo>=</mo>{_mathml(first)}</mrow>"
            html = f"<munderover><mo>∑</mo>{below}{_symbol(last)}</munderover>{_mathml(term)}"
        case ast.Call(func=ast.Name(id=function), args=[argument]):
            html = f"<mi>{function}</mi><mo>&#8289;</mo><mrow>{_round(argument)}</mrow>"
        case _:
            what = ast.unparse(node)
            raise ValueError(
                f"an equation holds {what}, which pipeline/lessons_page/equations.py cannot write as MathML"
            )
    return html


def _raised(base: str, power: str) -> str:
    """The power beside a subscript or a closing bracket rather than above all of the base."""
    if base.startswith("<msub>"):
        return f"<msubsup>{base.removeprefix('<msub>').removesuffix('</msub>')}{power}</msubsup>"
    return (
        f"{base.removesuffix(CLOSING)}<msup>{CLOSING}{power}</msup>"
        if base.endswith(CLOSING)
        else f"<msup>{base}{power}</msup>"
    )


def _bracketed(node: ast.expr, within_product: bool = True) -> str:
    lower = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub)
    return _round(node) if lower and within_product else _mathml(node)


def _round(node: ast.expr) -> str:
    return f'<mo stretchy="false">(</mo>{_mathml(node)}{CLOSING}'


def _sign(operator: ast.operator, right: ast.expr) -> str:
    match operator:
        case ast.Add():
            return "<mo>+</mo>"
        case ast.Sub():
            return "<mo>−</mo>"
        case ast.Mult() if isinstance(right, ast.Compare):
            return "<mo>⊙</mo>"  # of arrays, element by element
        case ast.Mult():
            return "<mo>·</mo>"
        case ast.MatMult():
            return '<mspace width="0.2em"></mspace>'
    raise ValueError(f"an equation holds the operator {ast.dump(operator)}")


def _symbol(name: str) -> str:
    """grad_w1 as ∇ with w₁, y_pred as y with its subscript, a word as a word."""
    if name.startswith("grad_"):
        return f"<mrow><mo>∇</mo>{_symbol(name.removeprefix('grad_'))}</mrow>"
    if found := re.fullmatch(r"([a-z])_?([a-z0-9]|(?<=_)[a-z]+)", name):
        base, below = found.groups()
        kind = "mn" if below.isdigit() else "mi" if len(below) == 1 else "mtext"
        return f"<msub><mi>{base}</mi><{kind}>{below}</{kind}></msub>"
    return f"<mi>{name}</mi>" if "_" not in name else f"<mtext>{name.replace('_', ' ')}</mtext>"
