"""Checks the project's English: `python -m tests.prose [FILE…]`; without FILE, all tracked and new files.

It runs proselint with the checks and the project's own words of tests/words.yaml. In Python files it reads comments,
docstrings and messages (in tests/ no messages), in other files comments, in Markdown and HTML the text without code.
In Markdown, it also finds sentences of more than MAX_WORDS words.
"""

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import yaml
from proselint.checks import __register__ as proselint_checks
from proselint.registry import CheckRegistry
from proselint.registry.checks import Check, CheckFlags
from proselint.registry.checks.types import PreferredForms
from proselint.tools import LintFile

MAX_WORDS = 40
WORDS = Path(__file__).with_name("words.yaml")
HASH = re.compile(r"(?:^|(?<=\s))#(?!!)(?P<text>[^\n]*)|\b(?:echo|say|printf) (?P<message>[^\n]*)", re.M)
PROSE = {  # the prose of a file, by its suffix; other files have comments with a #
    ".md": re.compile(r"(?P<text>(?:(?!^```|`|\]\()[\s\S])+)|^```[\s\S]*?^```|`[^`]*`|\]\([^)]*\)", re.M),
    ".html": re.compile(
        r"<(?:script|style)[\s\S]*?</(?:script|style)>|<[^>]*>|\{\{.*?\}\}|\{%.*?%\}|(?P<text>[^<{]+)|\{"
    ),
    ".js": re.compile(r"//(?P<text>[^\n]*)"),
    ".css": re.compile(r"/\*(?P<text>[\s\S]*?)\*/"),
}
QUOTED = re.compile(r"`[^`\n]*`|\{[^{}\n]*\}")  # code in a comment, and what an f-string inserts


def mask(text: str) -> str:
    """Replace each character except white space by a dot. Lines and columns stay, and no phrase reaches across the
    dots."""
    return re.sub(r"\S", "·", text)


def prose(path: str, text: str) -> str:
    """The text of a file with everything masked that is not prose."""
    if path.endswith(".py"):
        spans = list(python_spans(text, messages=not path.startswith("tests/")))
    else:
        matches = PROSE.get(Path(path).suffix, HASH).finditer(text)
        spans = [match.span(name) for match in matches for name, part in match.groupdict().items() if part is not None]
    parts, end = [], 0
    for start, stop in spans:
        before = re.sub(r"(?:[rfb]{,2}['\"]+|#|//)$|(?<!\w)['\"]+", lambda mark: " " * len(mark[0]), text[end:start])
        parts += [mask(before), QUOTED.sub(lambda code: mask(code[0]), text[start:stop])]
        end = stop
    return "".join(parts) + mask(text[end:])


def python_spans(text: str, *, messages: bool) -> Iterator[tuple[int, int]]:
    """The positions of comments and of strings with several words; without `messages` only docstrings among the
    strings."""
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        start, stop = (lines[row - 1] + column for row, column in (token.start, token.end))
        if token.type == tokenize.COMMENT:
            yield start + 1, stop
        elif token.type == tokenize.STRING and " " in token.string and (messages or '"""' in token.string):
            quotes = re.match(r"\w*(\"\"\"|'''|\"|')", token.string)
            assert quotes is not None
            yield start + quotes.end(), stop - len(quotes[1])


def long_sentences(text: str) -> Iterator[tuple[int, int]]:
    """Line and number of words of each sentence with more than MAX_WORDS. Cells of tables count as sentences."""
    for sentence in re.finditer(r"(?:(?!\n\s*\n|\n\s*(?:[-*#|>]|\d+\.) |[.!?:;][\"')*_]*\s|\|)[\s\S])+", text):
        words = len(re.findall(r"\S*\w\S*", sentence[0]))
        if words > MAX_WORDS:
            yield text.count("\n", 0, sentence.start() + len(sentence[0]) - len(sentence[0].lstrip())) + 1, words


def register() -> dict[str, bool]:
    """Registers proselint's checks, and the words as one more, `project`; returns which are enabled.

    A space in a pattern also matches the end of a line.
    """
    values = yaml.safe_load(WORDS.read_text())
    gap = r"(?:[ \t]+|[ \t]*\n[ \t]*)"
    items = {pattern.replace(" ", gap): better for pattern, better in values["words"].items()}
    registry = CheckRegistry()
    registry.checks.clear()
    flags = CheckFlags(allow_quotes=True)  # a shell's messages are in quotes
    project = Check(PreferredForms(items), path="project", message="{1} → {0}", flags=flags)
    registry.register_many((*proselint_checks, project))
    return dict.fromkeys(["project", *values["proselint"]], True)


def mistakes(path: str, text: str, enabled: dict[str, bool]) -> Iterator[str]:
    """The findings in a file, as lines "FILE:LINE: word → suggestion"."""
    content = prose(path, text)
    for result in LintFile(path, content).lint({"max_errors": 1000, "checks": enabled}):
        check = result.check_result
        message = check.message if check.check_path == "project" else f"{check.message} ({check.check_path})"
        yield f"{path}:{result.pos[0]}: {' '.join(message.split())}"
    if path.endswith(".md"):
        yield from (
            f"{path}:{line}: a sentence of {words} words → two sentences" for line, words in long_sentences(content)
        )


def tracked() -> list[str]:
    """The files with the project's prose: all tracked and new files except data, locks and the licence."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--deduplicate"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [
        path
        for path in listed
        if Path(path).suffix in {".py", ".md", ".html", ".js", ".css", ".yaml", ".yml", ".sh", ".in", ".toml", ""}
        and path not in {"LICENSE", "tests/words.yaml", "tests/mistakes.yaml"}
        and Path(path).is_file()
    ]


def main(paths: list[str]) -> int:
    enabled = register()
    lines = [line for path in paths or tracked() for line in mistakes(path, Path(path).read_text(), enabled)]
    print(*lines, sep="\n", end="\n" if lines else "")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
