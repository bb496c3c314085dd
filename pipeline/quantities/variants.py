"""What a wrong value would be right for: an equation with one thing changed.

`cause_of` changes an equation in one place at a time, computes it, and compares the result with the wrong value. One
that agrees says what the line computes, and with it what is wrong: a mask that is missing, a sum in place of a mean.
"""

import ast
from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import combinations
from typing import Any, TypeVar

import numpy as np

from pipeline.contract import Array
from pipeline.quantities.equations import Equation
from pipeline.quantities.match import TOLERANCE, Match, relative_error
from pipeline.quantities.paper import FUNCTIONS, Paper

ROUNDED = 1e-4  # relative: what is nearer than this is right but for rounding
Tree = TypeVar("Tree", bound=ast.AST)
SWAPPED: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.Gt: (ast.Lt, ast.GtE, ast.LtE),
}


def cause_of(match: Match, paper: Paper) -> str:
    """What is wrong with a value, in words, or nothing where no single change explains it. No full stop."""
    value = match.value
    if value is None:
        return ""
    explanations = (_not_finite, _whole, _changed, _factor, _other, _rounded, _shape)
    return next((words for explanation in explanations if (words := explanation(match, value, paper))), "")


def where_wrong(match: Match) -> str:
    """Which part of a value is wrong: whole columns, whole rows, or so many numbers."""
    value, expected = match.value, match.expected
    if value is None or value.shape != expected.shape or value.ndim != 2:
        return ""
    running = ~np.isnan(expected)
    size = np.max(np.abs(expected[running]), initial=0) or 1
    wrong = running & ~(np.abs(value - expected) <= TOLERANCE * size)
    columns, rows = np.any(wrong, axis=0), np.any(wrong, axis=1)
    for count, part, other in ((columns, "column", wrong | ~running), (rows, "row", (wrong | ~running).T)):
        if 0 < count.sum() < len(count) and (other.all(0) == count).all():
            return f"{count.sum()} of {len(count)} {part}s {'is' if count.sum() == 1 else 'are'} wrong"
    return (
        f"{wrong.sum()} of its {running.sum()} numbers are wrong"
        if wrong.sum() < running.sum()
        else "every number is wrong"
    )


def attempt(paper: Paper, match: Match, right: str, names: Mapping[str, Any]) -> Array | None:
    """What the equation of a quantity gives with another right side, or with other values; None where it fails."""
    try:
        with np.errstate(all="ignore"):
            return paper.evaluate(right, match.equation, match.time, names={**FUNCTIONS, "total": np.sum, **names})
    except Exception:  # shapes that do not fit, among others
        return None


def _agree(value: Array, other: Array | None) -> bool:
    return other is not None and relative_error(value, np.asarray(other, np.float64)) <= TOLERANCE


def _not_finite(match: Match, value: Array, paper: Paper) -> str:
    computed = value[~np.isnan(match.expected)] if value.shape == match.expected.shape else value
    if np.isfinite(computed).all():
        return ""
    if np.isinf(computed).any():
        return "it is the first quantity that has infinity"
    padding = " (here x is NaN beyond the length of an example, and nothing may depend on that)"
    return f"it is the first quantity that has NaN{padding * (paper.lengths is not None)}"


def _whole(match: Match, value: Array, paper: Paper) -> str:
    """The right numbers in another place or with another sign, or those from before the update."""
    expected, name = match.expected, match.equation.name
    if value.ndim == 2 and _agree(value.T, expected):
        return "it is transposed"
    if match.equation.part == "update" and _agree(value, paper.weights[name]):
        return f"{name} is not updated"
    return "its sign is wrong" if _agree(-value, expected) else ""


def _changed(match: Match, value: Array, paper: Paper) -> str:
    variants = _variants(match.equation, paper)
    return next((words for words, right, names in variants if _agree(value, attempt(paper, match, right, names))), "")


def _variants(equation: Equation, paper: Paper) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Words, the right side of a changed equation, and values to use in it."""
    for words, right in _edits(equation.right):
        yield words, right, {}
    after = {key: paper.values[key, None] for key in paper.weights}
    if equation.part == "update":
        gradient = f"grad_{equation.name}"
        twice = f"the change of {equation.name} is twice what it should be, as if it was updated two times"
        yield twice, equation.right.replace("learning_rate", "2 * learning_rate"), {}
        yield f"{gradient} was computed, but not subtracted", f"{gradient}", {}
        return
    for key in equation.operands & after.keys():
        yield f"it is computed with {key} after its update", equation.right, {key: after[key]}
    if equation.name == "loss":
        updated = Paper(paper.problem, after, paper.batch, paper.given["learning_rate"])
        yield "it is the loss after the update", repr(float(updated.values["loss", None])), {}


def _edits(right: str) -> Iterator[tuple[str, str]]:
    """The right side of an equation, changed in one place, with words for the change."""
    tree = ast.parse(right, mode="eval").body
    for index, node in enumerate(ast.walk(tree)):
        for words, replacement in _replacements(node):
            changed = replaced(tree, index, replacement)
            yield words.format(ast.unparse(changed)), ast.unparse(changed)


def _replacements(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:  # noqa: PLR0912 (a table)
    gives = "it is what `{}` gives"
    match node:
        case ast.BinOp(left=left, op=ast.Mult(), right=ast.Compare() as mask):
            condition = ast.unparse(mask)
            yield f"the mask is missing: it is wrong where `{condition}` does not hold", left
        case ast.BinOp(left=left, op=ast.Mult() as op, right=right):
            yield f"the factor {ast.unparse(left)} is missing: {gives}", right
            yield f"the factor {ast.unparse(right)} is missing: {gives}", left
            yield f"the factor {ast.unparse(left)} is there twice", ast.BinOp(ast.BinOp(left, op, left), op, right)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            yield f"it is not divided by {ast.unparse(right)}", left
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            yield gives, ast.BinOp(right, ast.Sub(), left)
            yield gives, ast.UnaryOp(ast.USub(), right)
        case ast.BinOp(left=left, op=ast.MatMult(), right=right):
            yield gives, ast.BinOp(left, ast.MatMult(), _transposed(right))
            yield gives, ast.BinOp(_transposed(left), ast.MatMult(), right)
        case ast.BinOp(left=left, op=ast.Pow()):
            yield gives, ast.Call(ast.Name("abs"), [left], [])
        case ast.Call(func=ast.Name(id="mean"), args=[argument]):
            yield "it is a sum in place of a mean", ast.Call(ast.Name("total"), [argument], [])
            yield gives, ast.BinOp(node, ast.Pow(), ast.Constant(0.5))
        case ast.Call(func=ast.Name(id="relu" | "softmax" | "log" as function), args=[argument]):
            yield f"{function} is missing", argument
        case ast.Constant(value=int(number)):
            yield gives, ast.Constant(number + 1)
            yield gives, ast.Constant(number - 1)
    if isinstance(node, ast.BinOp):
        yield gives, node.left
        yield gives, node.right
        for operator in SWAPPED.get(type(node.op), ()):
            yield gives, ast.BinOp(node.left, operator(), node.right)  # pyright: ignore[reportArgumentType]
    if isinstance(node, ast.Compare):
        for operator in SWAPPED.get(type(node.ops[0]), ()):
            yield gives, ast.Compare(node.left, [operator()], node.comparators)  # pyright: ignore[reportArgumentType]


def _transposed(node: ast.expr) -> ast.expr:
    return node.value if isinstance(node, ast.Attribute) else ast.Attribute(node, "T")


def replaced(tree: Tree, index: int, replacement: Tree) -> Tree:
    """A copy of the tree in which the node that `ast.walk` reaches at this index is another."""
    copy = deepcopy(tree)
    old = list(ast.walk(copy))[index]
    if old is copy:
        return replacement
    for parent in ast.walk(copy):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, replacement)
            elif isinstance(value, list) and old in value:
                value[value.index(old)] = replacement
    return copy


def _factor(match: Match, value: Array, paper: Paper) -> str:
    """A constant by which the value is too large."""
    expected, what = match.expected, "it"
    if value.shape != expected.shape:
        return ""
    if match.equation.part == "update":
        before, what = paper.weights[match.equation.name], f"the change of {match.equation.name}"
        value, expected = value - before, expected - before
    chosen = np.abs(np.nan_to_num(expected)) > 1e-6
    if not chosen.any():
        return ""
    factor = float(np.median(value[chosen] / expected[chosen]))
    if abs(factor - 1) < ROUNDED or not _agree(value, factor * expected):
        return ""
    if factor == 0:
        return f"{what} is 0"
    sizes = {key: float(value) for key, value in paper.sizes.items()} | {"learning_rate": paper.given["learning_rate"]}
    names = {f"{number}": float(number) for number in (2, 4)} | sizes
    names |= {f"({one} * {two})": sizes[one] * sizes[two] for one, two in combinations(sizes, 2)}
    candidates = names | {f"1 / {name}": 1 / size for name, size in names.items()}
    for name, size in names.items():
        if not name.isdigit():
            candidates |= {f"2 / {name}": 2 / size, f"{name} / 2": size / 2}
    for words, number in candidates.items():
        if np.isclose(abs(factor), number, rtol=1e-9):
            return f"{what} is {'-' * (factor < 0)}{words} times what it should be"
    return f"{what} is {factor:.6g} times what it should be" if expected.ndim else ""


def _other(match: Match, value: Array, paper: Paper) -> str:
    """Another quantity, or the equation with another quantity in place of an operand."""
    equation = match.equation
    known = {name: array for name, array in paper.given.items() if isinstance(array, np.ndarray)}
    known |= {
        name: array for (name, index), array in paper.values.items() if index is None and name not in paper.weights
    }
    for name, array in known.items():
        if _agree(value, array):
            return f"it has the values of {name}"
    if "[" in equation.right:
        return ""
    for operand in sorted(equation.operands - {"learning_rate"}):
        for name, array in known.items():
            if name == operand:
                continue
            if _agree(value, attempt(paper, match, equation.right, {operand: array})):
                return f"it is computed with {name} in place of {operand}"
    return ""


def _rounded(match: Match, value: Array, _: Paper) -> str:
    near = value.shape == match.expected.shape and relative_error(value, match.expected) < ROUNDED
    return "it is rounded: some of the arithmetic is in float32, or less" if near else ""


def _shape(match: Match, value: Array, _: Paper) -> str:
    if value.shape == match.expected.shape:
        return ""
    return f"its shape is {value.shape} and should be {match.expected.shape}"
