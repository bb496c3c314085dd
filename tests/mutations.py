"""Mutants of the lessons: each is a lesson with one thing changed that changes its maths.

python -m tests.mutations    # writes docs/results/mutations.csv: each mutant, and whether it was noticed and named
"""

import ast
import csv
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.contract import implementation_file, load_problem
from pipeline.environment import resolve
from pipeline.lessons_page.equation_map import equations_by_line
from pipeline.params import load_params
from pipeline.parity.explain import Explanation, explain
from pipeline.quantities.equations import equations
from pipeline.quantities.example import LEARNING_RATE, example_to_compare
from pipeline.quantities.variants import replaced
from pipeline.runtimes import Runtime, load_runtime

RESULTS = Path("docs/results/mutations.csv")
OPERATORS: dict[type[ast.AST], tuple[type[Any], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div, ast.Add),
    ast.Div: (ast.Mult,),
    ast.Gt: (ast.Lt, ast.GtE),
}
CALLS = {  # the name of a function or method, and its replacement
    "mean": ("sum",),
    "reduce_mean": ("reduce_sum",),
    "maximum": ("minimum",),
    "relu": ("tanh", "abs"),
    "square": ("abs",),
    "new_zeros": ("new_ones",),
    "zeros": ("ones",),
}
VARIABLES = {  # one that is easily taken for another
    "h": ("h_relu",),
    "h_relu": ("h",),
    "y_pred": ("y",),
    "y": ("y_pred",),
    "grad_h": ("grad_h_relu",),
    "grad_h_relu": ("grad_h",),
    "grad_w1": ("grad_w2",),
    "grad_wx": ("grad_wh",),
    "grad_wh": ("grad_wx",),
    "w1": ("w2",),
    "w2": ("w1",),
    "wx": ("wh",),
    "wh": ("wx",),
    "z": ("h",),
    "running": ("batch_sizes",),
}


@dataclass(frozen=True)
class Mutant:
    lesson: str
    line: int
    kind: str
    before: str  # the statement, as ast.unparse writes it
    after: str
    source: str


@cache
def runtime_of(name: str) -> Runtime:
    params = load_params()
    return load_runtime(name)(resolve(params.model_copy(update={"device": "cpu"})))


def source_of(name: str) -> str:
    return implementation_file(load_params().implementations[name], name).read_text(encoding="utf-8")


def mutants(name: str) -> list[Mutant]:
    """Every mutant of a lesson, once, in the order of its lines."""
    source, unique = source_of(name), {}
    for statement in _statements(ast.parse(source)):
        before = _text(statement)
        for kind, after in _mutations(statement):
            mutant = Mutant(name, statement.lineno, kind, before, after, _replaced(source, statement, after))
            if after != before:
                unique.setdefault(mutant.source, mutant)
    return list(unique.values())


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements of all functions that assign, return or call something, and the heads of loops."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            yield from _statements_in(function.body)


def _statements_in(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.For | ast.With):
            yield from [node] if isinstance(node, ast.For) else []
            yield from _statements_in(node.body)
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.Return | ast.Expr) and isinstance(node.value, ast.expr):
            yield node


def _text(statement: ast.stmt) -> str:
    return ast.unparse(statement).splitlines()[0]


def _mutations(statement: ast.stmt) -> Iterator[tuple[str, str]]:
    if not isinstance(statement, ast.Return | ast.For):
        yield "dropped line", "pass"
    if isinstance(statement, ast.AugAssign) or (isinstance(statement, ast.Expr) and "assign" in ast.unparse(statement)):
        yield "repeated line", f"{_text(statement)}; {_text(statement)}"
    value = getattr(statement, "value", None)
    if isinstance(value, ast.BinOp | ast.Call) and isinstance(statement, ast.Assign | ast.AugAssign | ast.Return):
        for kind, text in (("sign", "-({})"), ("factor", "2 * ({})")):
            changed = deepcopy(statement)
            changed.value = ast.parse(text.format(ast.unparse(value)), mode="eval").body  # pyright: ignore[reportAttributeAccessIssue]
            yield kind, _text(changed)
    for index, node in enumerate(ast.walk(statement)):
        for kind, replacement in _replacements(node):
            changed = replaced(statement, index, replacement)
            yield kind, _text(ast.fix_missing_locations(changed))


def _replacements(node: ast.AST) -> Iterator[tuple[str, Any]]:  # noqa: PLR0912 (a table)
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            for other in OPERATORS.get(type(op), ()):
                yield "operator", ast.BinOp(left, other(), right)
            if isinstance(right, ast.Compare):
                yield "missing mask", left
            elif isinstance(op, ast.Mult | ast.Div):
                yield "missing factor", left
            if isinstance(op, ast.Mult):
                yield "missing factor", right
            if isinstance(op, ast.Sub | ast.Add):
                yield "missing term", left
                yield "missing term", right
            if isinstance(op, ast.MatMult):
                yield "missing product", left
        case ast.Compare(left=left, ops=[op], comparators=comparators):
            for other in OPERATORS.get(type(op), ()):
                yield "mask", ast.Compare(left, [other()], comparators)
        case ast.AugAssign(target=target, op=ast.Sub(), value=value):
            yield "sign", ast.AugAssign(target, ast.Add(), value)
        case ast.Attribute(value=value, attr="T"):
            yield "transpose", value
        case ast.Attribute(value=value, attr="size" | "numel" as attr):
            yield "mean", ast.Call(ast.Name("len"), [value], [])
        case ast.Attribute(value=value, attr=attr, ctx=ast.Load()) if attr in VARIABLES:
            for other in VARIABLES[attr]:
                yield "wrong variable", ast.Attribute(value, other, ast.Load())
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            yield "constant", ast.Constant(number + 1)
        case ast.Constant(value="w1" | "w2" | "wx" | "wh" as key):
            yield "wrong variable", ast.Constant(VARIABLES[key][0])
        case ast.Name(id=name, ctx=ast.Load()) if name in VARIABLES:
            for other in VARIABLES[name]:
                yield "wrong variable", ast.Name(other, ast.Load())
        case ast.Call(func=ast.Attribute(value=value, attr=attr) as function, args=arguments, keywords=keywords):
            for other in CALLS.get(attr, ()):
                yield "function", ast.Call(ast.Attribute(value, other, ast.Load()), arguments, keywords)
            if attr == "mse_loss":
                yield "mean", ast.Call(function, arguments, [ast.keyword("reduction", ast.Constant("sum"))])
            if (
                attr in ("relu", "square", "clamp", "detach", "numpy")
                and not arguments
                and not isinstance(value, ast.Name)
            ):
                yield "missing function", value
            if attr in ("relu", "square", "maximum", "reversed", "transpose", "where", "sequence_mask") and arguments:
                yield "missing function", arguments[0 if attr != "where" else 1]
            if attr == "apply" and arguments:
                yield "missing function", arguments[0]
                yield (
                    "detached",
                    ast.Call(ast.Attribute(ast.Call(function, arguments, []), "detach", ast.Load()), [], []),
                )
            if attr == "relu" and not arguments:
                yield "detached", ast.Call(ast.Attribute(ast.Call(function, [], []), "detach", ast.Load()), [], [])
        case ast.Subscript(value=ast.Name(), slice=ast.Slice(lower=lower, upper=upper)) if lower or upper:
            assert isinstance(node, ast.Subscript)
            yield "slice", ast.Subscript(node.value, ast.Slice(upper, lower), ast.Load())
            if upper:
                yield "detached", ast.Call(ast.Attribute(node, "detach", ast.Load()), [], [])


def _replaced(source: str, statement: ast.stmt, text: str) -> str:
    """The source with another statement on the same lines, so that the others keep their numbers."""
    lines = source.splitlines()
    first = statement.lineno - 1
    last = statement.iter.end_lineno if isinstance(statement, ast.For) else statement.end_lineno
    indent = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
    count = (last or statement.lineno) - first
    lines[first : first + count] = [indent + text, *[""] * (count - 1)]
    return "\n".join(lines) + "\n"


def results(name: str, source: str) -> list[Any] | None:
    """Losses, weights and predictions of two steps without any recording; None where it fails."""
    problem, runtime = load_params().implementations[name], runtime_of(name)
    weights, batch = example_to_compare(problem)
    module = ModuleType(name)
    try:
        with runtime.eagerly():
            exec(compile(source, f"{name}.py", "exec"), vars(module))  # noqa: S102
            made = module.Implementation(
                {key: array.copy() for key, array in weights.items()},
                learning_rate=LEARNING_RATE,
                device=runtime.device,
            )
            *inputs, _ = (array.copy() for array in batch.values())
            results = [np.array(made.predict(*inputs))]
            placed = made.place({key: array.copy() for key, array in batch.items()})
            loop = runtime.python_loop(made, list(weights), runtime.device)
            for _ in range(2):
                loss = made.step(*placed)
                results.append(np.array(loss.detach() if hasattr(loss, "detach") else loss, np.float64))
                results += [np.array(array) for array in loop.weights().values()]
    except Exception:
        return None
    return results


def changes_a_result(mutant: Mutant) -> bool:
    right, wrong = results(mutant.lesson, source_of(mutant.lesson)), results(mutant.lesson, mutant.source)
    assert right is not None
    return wrong is None or not all(
        one.shape == other.shape and np.allclose(one, other, rtol=1e-9, atol=1e-12)
        for one, other in zip(right, wrong, strict=True)
    )


def explained(mutant: Mutant) -> Explanation:
    problem = load_params().implementations[mutant.lesson]
    return explain(problem, mutant.source, implementation_file(problem, mutant.lesson), runtime_of(mutant.lesson))


def is_named(mutant: Mutant, explanation: Explanation) -> bool:
    """Whether the explanation names the line, or a quantity that the line computed before it was changed."""
    problem = load_params().implementations[mutant.lesson]
    of_problem = equations(load_problem(problem).__doc__ or "")
    computed = equations_by_line(mutant.lesson, source_of(mutant.lesson), of_problem).get(mutant.line, [])
    names = {of_problem[number - 1].name for number in computed} | set(_assigned(mutant.before))
    return mutant.line in explanation.lines or explanation.quantity.partition("[")[0] in names


def _assigned(statement: str) -> Iterator[str]:
    """The variables and attributes that a statement sets; grad_w1 where it sets self.w1.grad."""
    with suppress(SyntaxError):
        for node in ast.walk(ast.parse(statement)):
            match node:
                case ast.Attribute(value=ast.Attribute(attr=weight), attr="grad", ctx=ast.Store()):
                    yield f"grad_{weight}"
                case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                    yield name


def main(*names: str) -> None:
    rows = []
    for name in names or load_params().implementations:
        for mutant in mutants(name):
            if changes_a_result(mutant):
                explanation = explained(mutant)
                named = not explanation.is_right and is_named(mutant, explanation)
                noticed, sentence = not explanation.is_right, "" if named else explanation.sentence
                rows.append((mutant.lesson, mutant.line, mutant.kind, mutant.after, int(noticed), int(named), sentence))
        counted = [row for row in rows if row[0] == name]
        noticed, named = sum(row[4] for row in counted), sum(row[5] for row in counted)
        print(f"{name}: {len(counted)} mutants change a result, {noticed} noticed, {named} named", flush=True)
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("lesson", "line", "kind", "after", "noticed", "named", "said"), *rows])


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # a mutant may divide by 0, or broadcast
    main(*sys.argv[1:])
