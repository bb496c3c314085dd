"""Find the first line of a lesson that does not compute what the equations of its problem say.

    python -m pipeline.parity.explain NAME PROBLEM DEVICE [json]

takes two steps of the lesson on a small batch in float64. It is a process of its own, in the interpreter that has the
lesson's framework. The exit status is 0 where everything agrees, and 1 otherwise.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from pipeline.contract import implementation_file
from pipeline.environment import enter_interpreter, framework_of, resolve
from pipeline.errors import UserError, shown_to_the_user
from pipeline.parity.first_wrong import Finder
from pipeline.quantities.example import LEARNING_RATE, example_to_compare
from pipeline.quantities.match import Match, Matcher
from pipeline.quantities.observe import observe
from pipeline.quantities.paper import Paper
from pipeline.runtimes import Runtime, load_runtime
from pipeline.text import columns


@dataclass(frozen=True)
class Row:
    """An equation, at all of its time steps. `error` is relative, None where the lesson does not show the quantity."""

    equation: str
    lines: list[int]
    shape: list[int]
    error: float | None
    marks: str  # ✓, ✗, or · for a quantity that the lesson does not show; one mark for each time step


@dataclass(frozen=True)
class Explanation:
    """`sentence` names the first mistake, which is on one of `lines`, or the next quantity of an unfinished lesson."""

    is_right: bool
    sentence: str
    quantity: str = ""
    lines: list[int] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


def explain(problem: str, source: str, file: Path, runtime: Runtime) -> Explanation:
    """Compare the values that the lines of a lesson compute with those of the equations.

    `source` is the text of the lesson, and `file` the name that it has in tracebacks.
    """
    weights, batch = example_to_compare(problem)
    paper = Paper(problem, weights, batch, LEARNING_RATE)
    observation = observe(source, file, runtime, paper)
    matches = list(Matcher(paper, observation).matches())
    finder = Finder(paper, observation, matches)
    rows = [_row(list(group)) for _, group in groupby(sorted(finder.matches, key=_number), key=_number)]
    wrong = next(finder.wrong(), None)
    if wrong is None:
        return Explanation(True, "every quantity agrees with the equations.", rows=rows)
    return Explanation(False, wrong.sentence, wrong.quantity, wrong.lines, rows)


def _number(match: Match) -> int:
    return match.equation.number


def _row(matches: Sequence[Match]) -> Row:
    matches = sorted(matches, key=lambda match: match.time or 0)
    equation = matches[0].equation
    wrong_first = sorted(matches, key=lambda match: not match.is_wrong)
    return Row(
        f"{equation.left} = {equation.right}",
        list(dict.fromkeys(match.line for match in wrong_first if match.line)),
        list(matches[0].expected.shape),
        max((match.error for match in matches if match.value is not None), default=None),
        "".join("✗" if match.is_wrong else "✓" if match.is_right else "·" for match in matches),
    )


def table(name: str, explanation: Explanation) -> str:
    """The explanation as text: a line for each equation, and the sentence."""
    rows = [("equation", "line", "shape", "relative error", "")]
    for row in explanation.rows:
        shape = " × ".join(map(str, row.shape)) or "a number"
        error = "" if row.error is None else f"{row.error:.1e}" if np.isfinite(row.error) else "other shape"
        rows.append((row.equation, ", ".join(map(str, row.lines)), shape, error, row.marks))
    return f"{columns(rows)}\n\n{name}: {explanation.sentence}"


def main(name: str, problem: str, device: str, form: str = "") -> None:
    """Print the explanation, with `json` as an object, and exit with the status."""
    from pipeline.params import load_params

    enter_interpreter(framework_of(name))
    params = load_params().model_copy(update={"implementations": {name: problem}, "device": device})
    file = implementation_file(problem, name)
    runtime = load_runtime(name)(resolve(params, setting="DEVICE"))
    try:
        source = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error}). Save it as UTF-8.") from None
    with redirect_stdout(sys.stderr):  # the output of the lesson must not mix with the explanation
        explanation = explain(problem, source, file, runtime)
    print(json.dumps(asdict(explanation)) if form == "json" else table(name, explanation))
    sys.exit(not explanation.is_right)


if __name__ == "__main__":
    with shown_to_the_user():
        main(*sys.argv[1:])
