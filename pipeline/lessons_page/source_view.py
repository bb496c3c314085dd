"""A lesson's file as lines of HTML, and the difference from one file to the next."""

import ast
import difflib
import re
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import NamedTuple, TypeVar

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

T = TypeVar("T")
CONTEXT = 2  # unchanged lines that are shown before and after a change


class Line(NamedTuple):
    """A line of a file, or of a difference of two: there `sign` is + or − where it was added or taken out."""

    number: int  # in the file, or in the new one; 0 where a line was taken out
    html: str
    sign: str = ""
    old: int = 0  # in the old file; 0 where a line was added


class Run(NamedTuple):
    """Lines that are shown, or folded under a title."""

    title: str
    lines: list[Line]


def idea(source: str) -> str:
    """The docstring of a file."""
    return ast.get_docstring(ast.parse(source)) or ""


def listing(source: str, shown: Sequence[range]) -> list[Run]:
    """The whole file. The lines in `shown`, and empty lines between them, are open. Others are folded under a title."""
    tree = ast.parse(source)
    names = {node.lineno: "imports" for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
    names |= {tree.body[0].lineno: "docstring"} if ast.get_docstring(tree) else {}
    names |= {node.lineno: node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    html = highlight(source, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True)).splitlines()
    lines = [Line(number, text) for number, text in enumerate(html, 1)]
    opened = {number for span in shown for number in span}
    for line in lines:  # an empty line is open where the line before it is
        if not line.html.strip() and line.number - 1 in opened:
            opened.add(line.number)
    runs = []
    for is_open, group in groupby(lines, lambda line: line.number in opened):
        run = list(group)
        inside = dict.fromkeys(names[line.number] for line in run if line.number in names)
        runs.append(Run("" if is_open else f"{run[0].number}–{run[-1].number}: {', '.join(inside)}", run))
    return runs


def functions_used(source: str, by: str = "step") -> list[range]:
    """The lines of a method, and of all functions, methods and classes of the file that it uses."""
    functions = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == "Implementation":
            functions |= {method.name: method for method in node.body if isinstance(method, ast.FunctionDef)}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            functions[node.name] = node
    wanted, ahead = set(), {by}
    while ahead:
        wanted |= ahead & functions.keys()
        names = {name_of(node) for name in ahead & functions.keys() for node in ast.walk(functions[name])}
        ahead = (names & functions.keys()) - wanted
    return sorted((lines_of(functions[name]) for name in wanted), key=lambda lines: lines.start)


def lines_of(node: ast.stmt) -> range:
    last = node.iter.end_lineno if isinstance(node, ast.For) else node.end_lineno
    return range(node.lineno, (last or node.lineno) + 1)


def name_of(node: ast.AST) -> str:
    """The variable or the attribute of self that code names; `self(…)` uses forward, as in a torch.nn.Module."""
    match node:
        case ast.Call(func=ast.Name(id="self")):
            return "forward"
        case ast.Attribute(value=ast.Name(id="self"), attr=name) | ast.Name(id=name):
            return name
        case ast.Subscript(value=value):
            return name_of(value)
    return ""


def changes(old: str, new: str) -> list[Run]:
    """The difference of two files without their docstrings: changed words are marked, unchanged lines folded."""
    lines = list(_difference(_code(old), _code(new)))
    changed = [index for index, line in enumerate(lines) if line.sign]
    near = [any(abs(index - other) <= CONTEXT for other in changed) for index in range(len(lines))]
    runs = []
    for shown, group in groupby(zip(near, lines, strict=True), lambda pair: pair[0]):
        run = [line for _, line in group]
        runs.append(Run("" if shown else f"{len(run)} line{'s' * (len(run) > 1)} unchanged", run))
    return runs


def nearest(source: str, others: dict[T, str]) -> T | None:
    """The key of the file that differs from this one in the fewest lines; of several the last. None without files."""
    return min(reversed(others), key=lambda key: _changed_lines(others[key], source), default=None)


def _changed_lines(old: str, new: str) -> int:
    return sum(bool(line.sign) for line in _difference(_code(old), _code(new)))


def _code(source: str) -> list[tuple[int, str]]:
    """The numbered lines after the docstring and the empty line below it."""
    tree = ast.parse(source)
    start = (tree.body[0].end_lineno or 0) if ast.get_docstring(tree) else 0
    lines = list(enumerate(source.splitlines(), 1))[start:]
    return lines[1:] if lines and not lines[0][1] else lines


def _difference(old: list[tuple[int, str]], new: list[tuple[int, str]]) -> Iterator[Line]:
    numbers = {"-": iter([number for number, _ in old]), "+": iter([number for number, _ in new])}
    lines: list[tuple[str, int, int, str]] = []
    for text in difflib.ndiff([line for _, line in old], [line for _, line in new]):
        if text[0] != "?":
            in_old = next(numbers["-"]) if text[0] in " -" else 0
            lines.append((text[0], in_old, next(numbers["+"]) if text[0] in " +" else 0, text[2:]))
    none = ("", 0, 0, "")
    for before, (kind, in_old, number, text), after in zip([none, *lines], lines, [*lines[1:], none], strict=False):
        if kind == "-":
            yield Line(number, _marked(text, after[3] if after[0] == "+" else "", 0), "−", in_old)
        elif kind == "+":
            yield Line(number, _marked(before[3] if before[0] == "-" else "", text, 1), "+", in_old)
        else:
            yield Line(number, escape(text), "", in_old)


def _marked(old: str, new: str, side: int) -> str:
    """The old (0) or the new (1) of two lines. Words that the other line lacks are marked."""
    if difflib.SequenceMatcher(None, old, new).ratio() < 0.5:
        return escape((old, new)[side])
    words = [re.findall(r"\w+|\s+|.", line) for line in (old, new)]
    html = []
    for kind, *bounds in difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        part = escape("".join(words[side][slice(*bounds[2 * side : 2 * side + 2])]))
        html.append(part if kind == "equal" or not part.strip() else f"<mark>{part}</mark>")
    return "".join(html)
