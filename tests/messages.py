"""Writes docs/reference/messages.md, the list of all errors that a user can fix: `python -m tests.messages`.

It reads every `raise UserError(…)` in the code. What a message fills in is shown as the variable in CAPITALS, or as …
"""

import ast
from collections import defaultdict
from pathlib import Path

PAGE = Path("docs/reference/messages.md")
HEAD = """# Messages

On an error that you can fix, a command prints `ERROR:` with one or two sentences and ends with status 1.
This page lists these messages by the module that raises them. A word in CAPITALS or `…` stands for a name, a number
or a reason. `python -m tests.messages` writes this page from the code.
"""


def template(node: ast.expr, names: dict[str, str]) -> str:
    """The text of a message, with … for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(value, names) for value in node.values)
    if isinstance(node, ast.FormattedValue):
        node = node.value
    if isinstance(node, ast.Name):
        text = names.get(node.id, "…")
        return text if text.strip("… ") else node.id.strip("_").upper()
    return node.attr.strip("_").upper() if isinstance(node, ast.Attribute) else "…"


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
                single = {name for name, _ in values if sum(name == other for other, _ in values) == 1}
                names = {name: template(value, {}) for name, value in values if name in single}
                for node in ast.walk(function):
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError":
                        message = " ".join(template(node.args[0], names).split())
                        if " " in message and message not in listed[path.as_posix()]:
                            listed[path.as_posix()].append(message)
    return {path: texts for path, texts in listed.items() if texts}


def page() -> str:
    parts = [HEAD]
    for path, texts in messages().items():
        parts.append(
            f"## {path}\n\n" + "".join(f"- {text.replace('<', '&lt;').replace('*', chr(92) + '*')}\n" for text in texts)
        )
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
