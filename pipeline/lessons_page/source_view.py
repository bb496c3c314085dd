"""A lesson's file as lines of HTML, and what changes from one file to the next."""

import ast
import difflib
import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

CONTEXT = 2  # unchanged lines that are shown before and after a change


class Line(NamedTuple):
    """A line of a listing, or of a difference: there `sign` is + or − where it was added or taken out."""

    number: int  # in its file
    html: str
    sign: str = ""


class Run(NamedTuple):
    """Lines that are shown, or folded under a title."""

    title: str
    lines: list[Line]


def idea(source: str) -> str:
    """The docstring of a file."""
    return ast.get_docstring(ast.parse(source)) or ""


def highlighted(source: str) -> list[Line]:
    html = highlight(source, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True))
    return [Line(number, line) for number, line in enumerate(html.splitlines(), 1)]


def listing(source: str, shown: Sequence[tuple[int, int]]) -> list[Run]:
    """The file, of which the spans of lines in `shown` are open. What else there is is folded under a title."""
    lines = highlighted(source)
    names = _names(ast.parse(source))
    runs: list[Run] = []
    for line in lines:
        opened = any(first <= line.number <= last for first, last in shown)
        if not runs or opened == bool(runs[-1].title):
            runs.append(Run("" if opened else "folded", []))
        runs[-1].lines.append(line)
    return [Run(run.title and _title(run.lines, names), run.lines) for run in runs if not _blank(run, lines)]


def changes(old: str, new: str) -> list[Run]:
    """From one file to another, without their docstrings: words marked, and folded where nothing changed."""
    lines = list(_difference(*(_code(source) for source in (old, new))))
    changed = [index for index, line in enumerate(lines) if line.sign]
    runs: list[Run] = []
    for index, line in enumerate(lines):
        near = any(abs(index - each) <= CONTEXT for each in changed)
        title = "" if near else "unchanged"
        if not runs or title != runs[-1].title:
            runs.append(Run(title, []))
        runs[-1].lines.append(line)
    return [Run(run.title and f"{_count(run.lines)} unchanged", run.lines) for run in runs]


def _names(tree: ast.Module) -> dict[int, str]:
    """What begins in which line."""
    found = {node.lineno: "imports" for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
    found |= {tree.body[0].lineno: "docstring"} if ast.get_docstring(tree) else {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.lineno] = node.name
    return found


def _title(lines: list[Line], names: dict[int, str]) -> str:
    inside = dict.fromkeys(names[line.number] for line in lines if line.number in names)
    return f"{lines[0].number}–{lines[-1].number}: {', '.join(inside)}"


def _blank(run: Run, lines: list[Line]) -> bool:
    """A fold of empty lines alone; they are left out."""
    return bool(run.title) and all(not line.html.strip() for line in run.lines) and len(run.lines) < len(lines)


def _count(lines: list[Line]) -> str:
    return f"{len(lines)} line{'s' * (len(lines) > 1)}"


def _code(source: str) -> list[tuple[int, str]]:
    """The numbered lines after the docstring."""
    first = ast.parse(source).body[0]
    start = (first.end_lineno or 0) if ast.get_docstring(ast.parse(source)) else 0
    lines = list(enumerate(source.splitlines(), 1))[start:]
    return lines[1:] if lines and not lines[0][1] else lines


def _difference(old: list[tuple[int, str]], new: list[tuple[int, str]]) -> Iterator[Line]:
    before, after = (iter([number for number, _ in lines]) for lines in (old, new))
    found: list[tuple[str, int, str]] = []
    for text in difflib.ndiff([line for _, line in old], [line for _, line in new]):
        if text[0] == "-":
            found.append(("-", next(before), text[2:]))
        elif text[0] == "+":
            found.append(("+", next(after), text[2:]))
        elif text[0] == " ":
            next(before)
            found.append((" ", next(after), text[2:]))
    for index, (kind, number, text) in enumerate(found):
        if kind == " ":
            yield Line(number, escape(text))
        elif kind == "-":
            other = next(((text, each[2]) for each in found[index + 1 : index + 2] if each[0] == "+"), None)
            yield Line(number, _marked(text, other, 0), "−")
        else:
            other = next(((each[2], text) for each in found[max(0, index - 1) : index] if each[0] == "-"), None)
            yield Line(number, _marked(text, other, 1), "+")


def _marked(text: str, pair: tuple[str, str] | None, side: int) -> str:
    """A changed line, in which the words are marked that its counterpart lacks."""
    if pair is None or difflib.SequenceMatcher(None, *pair).ratio() < 0.5:
        return escape(text)
    words: Any = [re.findall(r"\w+|\s+|.", each) for each in pair]
    html = []
    for kind, *bounds in difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        part = escape("".join(words[side][bounds[2 * side] : bounds[2 * side + 1]]))
        html.append(part if kind == "equal" or not part else f"<mark>{part}</mark>")
    return "".join(html)
