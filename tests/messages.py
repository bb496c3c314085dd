"""Writes docs/reference/messages.md, the list of all errors that a user can fix: `python -m tests.messages`.

It reads every `raise UserError(…)` of the code, the remedies for MLflow's errors, and the errors of the shell scripts.
Parts that a message fills in are shown as ‹variable›, or as …
"""

import ast
import re
from collections import defaultdict
from pathlib import Path

from pipeline.tracking.store import REMEDIES

PAGE = Path("docs/reference/messages.md")
HEAD = """# Messages

On an error that you can fix, a command prints `ERROR:` with one or two sentences and ends with status 1.
This page lists the messages by file. ‹A name› in such brackets, or `…`, stands for a name, a number or a reason.
A message that begins in lower case is a reason: it follows a colon in another message.
`python -m tests.messages` writes this page from the code.
"""
SCRIPTS = ("docker/entrypoint", "docker/preflight", "requirements/setup.sh")


def template(node: ast.expr, names: dict[str, str]) -> str:
    """The text of a message, with … for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(value, names) for value in node.values)
    if isinstance(node, ast.FormattedValue):
        node = node.value
    if isinstance(node, ast.IfExp):
        choices = [template(choice, names) for choice in (node.body, node.orelse)]
        return " or ".join(choice for choice in choices if " " in choice) or "…"
    if isinstance(node, ast.Name):
        text = names.get(node.id, "…")
        return text if text.strip("… ") else _variable(node.id)
    return _variable(node.attr) if isinstance(node, ast.Attribute) else "…"


def _variable(name: str) -> str:
    return f"‹{name.strip('_').lower()}›"


def messages() -> dict[str, list[str]]:
    """The messages of each module, in the order of the code."""
    listed = defaultdict(list)
    for folder in ("commands", "stages", "pipeline", "benchmarks"):
        for path in sorted(Path(folder).rglob("*.py")):
            for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(function, ast.FunctionDef):
                    continue
                assigned = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
                values = [
                    (target.id, a.value) for a in assigned for target in a.targets if isinstance(target, ast.Name)
                ]
                names: dict[str, str] = {}
                for name, value in values:
                    text = template(value, names)
                    names[name] = f"{names[name]} or {text}" if " " in names.get(name, "") and " " in text else text
                for node in ast.walk(function):
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError":
                        message = " ".join(template(node.args[0], names).split())
                        if " " in message and message not in listed[path.as_posix()]:
                            listed[path.as_posix()].append(message)
    return {path: texts for path, texts in listed.items() if texts}


def of_scripts() -> dict[str, list[str]]:
    """The errors of the shell scripts: the arguments of `fail`, and of `say` before `exit 1`."""
    listed = {}
    for path in SCRIPTS:
        script = Path(path).read_text(encoding="utf-8").replace("\\\n", " ")
        values = dict(re.findall(r"^(\w+)='(.*)'$", script, re.MULTILINE))
        starts = re.finditer(r"(?:fail|say(?=[^\n]*\n *exit 1)) +(?=\")", script)
        listed[path] = [" ".join(_words(script[start.end() :], values).split()) for start in starts]
    return listed


def _words(code: str, values: dict[str, str]) -> str:
    """The quoted words at the beginning of shell code, with … for each $(command) and ${…}, and ‹name› for $name."""
    text, quoted = "", False
    while code and (quoted or code[0] in '" '):
        if code[0] == '"':
            quoted, code = not quoted, code[1:]
        elif code[0] == "\\":
            text, code = text + code[1], code[2:]
        elif code[0] == "$" and code[1] in "({":
            depth = end = 1
            while depth:
                end += 1
                depth += (code[end] in "({") - (code[end] in ")}")
            text, code = text + "…", code[end + 1 :]
        elif code[0] == "$":
            name = re.match(r"\$(\w+)", code)
            assert name, code
            text, code = text + values.get(name[1], f"‹{name[1]}›"), code[name.end() :]
        else:
            text, code = text + code[0], code[1:]
    return text


def page() -> str:
    parts = [HEAD]
    remedies = [remedy.format("‹package›", uri="‹address›") for remedy in REMEDIES.values()]
    mlflow = {"Errors of MLflow": [f"MLflow at ‹address› cannot be read: …. {remedy}." for remedy in remedies]}
    for path, texts in (messages() | mlflow | of_scripts()).items():
        lines = (text.replace("<", "&lt;").replace("*", r"\*") for text in texts)
        parts.append(f"## {path}\n\n" + "".join(f"- {line}\n" for line in lines))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
