"""Equations of a problem as MathML."""

import ast
import re

from pipeline.quantities.equations import Equation

CLOSING = '<mo stretchy="false">)</mo>'


def mathml(equation: Equation) -> str:
    left, right = (_mathml(ast.parse(side, mode="eval").body) for side in (equation.left, equation.right))
    return f"<math>{left}<mo>{'←' if equation.part == 'update' else '='}</mo>{right}</math>"


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
            raise ValueError(f"pipeline/lessons_page/mathml.py cannot write {ast.unparse(node)} as MathML")
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
    raise ValueError(f"pipeline/lessons_page/mathml.py cannot write the operator {ast.dump(operator)} as MathML")


def _symbol(name: str) -> str:
    """grad_w1 as ∇ with w₁, y_pred as y with its subscript, a word as a word."""
    if name.startswith("grad_"):
        return f"<mrow><mo>∇</mo>{_symbol(name.removeprefix('grad_'))}</mrow>"
    if parts := re.fullmatch(r"([a-z])_?([a-z0-9]|(?<=_)[a-z]+)", name):
        base, below = parts.groups()
        kind = "mn" if below.isdigit() else "mi" if len(below) == 1 else "mtext"
        return f"<msub><mi>{base}</mi><{kind}>{below}</{kind}></msub>"
    return f"<mi>{name}</mi>" if "_" not in name else f"<mtext>{name.replace('_', ' ')}</mtext>"
