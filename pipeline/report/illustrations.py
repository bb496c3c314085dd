"""Illustrations of claims that no measurement can decide: counts of lines in the lessons' files. Code here means a file
without docstrings, comments, imports and blank lines: the class `Implementation`, and the other classes and functions.
Lines are compared as text, so two lines that differ only in a type count as different.
"""

import ast
from difflib import unified_diff
from io import StringIO
from tokenize import COMMENT, generate_tokens
from typing import NamedTuple

from pipeline.contract import implementation_file

BACKWARD, UPDATE = "# Backward pass", "# Update"  # the comments at the start of these parts of a lesson's step


class Difference(NamedTuple):
    """The difference between the code of two lessons."""

    lines: list[str]  # with - lines that only the first has, with + lines that only the other has
    same: int  # lines of the other lesson that are not in `lines`
    of: int  # lines of the other lesson


def difference(problem: str, one: str, other: str) -> Difference:
    """The lines of a unified diff, without its headers and without the lines that both lessons have."""
    old, new = (list(code(_source(problem, name)).values()) for name in (one, other))
    diff = list(unified_diff(old, new, n=0, lineterm=""))[2:]  # without the names of the two files
    lines = [line for line in diff if not line.startswith("@@")]
    return Difference(lines, len(new) - sum(line.startswith("+") for line in lines), len(new))


def backward_lines(problem: str, name: str) -> int | None:
    """How many lines of code a lesson has for the backward pass.

    These are the lines between the comments "# Backward pass." and "# Update.", and those in the body of each function
    `backward` of the lesson. None where the file does not have the two comments in this order.
    """
    source = _source(problem, name)
    comments = _comments(source)
    start = next((row for row, (_, text) in comments.items() if text.startswith(BACKWARD)), None)
    end = next((row for row, (_, text) in comments.items() if text.startswith(UPDATE) and start and row > start), None)
    if start is None or end is None:
        return None
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    parts = [range(start, end), *(_rows(*function.body) for function in functions if function.name == "backward")]
    return sum(any(row in part for part in parts) for row in code(source))


def code(source: str) -> dict[int, str]:
    """The lines of code of a file, by their numbers, without comments at their ends."""
    lines = dict(enumerate(source.splitlines(), 1))
    for row, (column, _) in _comments(source).items():
        lines[row] = lines[row][:column]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant(value=str())):
                for row in _rows(node):
                    lines[row] = ""
    return {row: text.rstrip() for row, text in lines.items() if text.strip()}


def _rows(*statements: ast.stmt) -> range:
    return range(statements[0].lineno, (statements[-1].end_lineno or 0) + 1)


def _comments(source: str) -> dict[int, tuple[int, str]]:
    """By line, the column and the text of the comment there."""
    tokens = generate_tokens(StringIO(source).readline)
    return {token.start[0]: (token.start[1], token.string) for token in tokens if token.type == COMMENT}


def _source(problem: str, name: str) -> str:
    return implementation_file(problem, name).read_text(encoding="utf-8")
