"""`make explain` names the wrong line: in correct lessons, mutants, typical mistakes and unfinished lessons."""

import csv
import json
import random
import re
import sys
from collections.abc import Callable
from typing import Any

import mutations
import pytest
import yaml
from conftest import LESSONS, REPOSITORY, Clone
from mutations import changes_a_result, explained, is_named, mutants, runtime_of, source_of

from pipeline.contract import implementation_file
from pipeline.parity import report
from pipeline.parity.explain import Explanation, explain, table
from pipeline.results import FirstWrong

WRONG_LINE = (REPOSITORY / "docs/explanation/wrong-line.md").read_text(encoding="utf-8")
# Correct lessons that use other features of Python or of a framework than ours.
STYLES = {file.stem: file.relative_to(REPOSITORY) for file in sorted(REPOSITORY.glob("tests/styles/*/*.py"))}
SAMPLE = 10  # mutants of each lesson; tests/mutations.py tries all
pytestmark = pytest.mark.filterwarnings("ignore")  # a mutant may divide by 0, or broadcast


def explanation_of(name: str, old: str, new: str) -> Explanation:
    """Of a lesson, or of a file of tests/styles, in which `old` is replaced by `new`."""
    file = STYLES.get(name) or implementation_file(LESSONS[name], name)
    source = file.read_text(encoding="utf-8")
    assert source.count(old) == 1, old
    return explain(file.parent.name, source.replace(old, new), file, runtime_of(name))


@pytest.mark.parametrize("name", LESSONS)
def test_every_quantity_of_a_lesson_agrees_to_1e_12_in_float64(name: str):
    problem = LESSONS[name]
    explanation = explain(problem, source_of(name), implementation_file(problem, name), runtime_of(name))
    assert explanation.is_right, explanation.sentence
    for row in explanation.rows:
        assert row.error is not None, row
        assert row.error <= 1e-12, row
        assert set(row.marks.removeprefix("·")) == {"✓"}, row  # no gradient leads back to h[0], which is 0
        assert row.lines, row


@pytest.mark.parametrize("name", STYLES)
def test_correct_lesson_in_another_style_is_judged_correct(name: str):
    explanation = explanation_of(name, "class Implementation", "class Implementation")
    assert explanation.is_right, explanation.sentence


MISTAKES = yaml.safe_load((REPOSITORY / "tests/mistakes.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_explained_with_its_line_and_cause(mistake: dict[str, Any]):
    explanation = explanation_of(mistake["lesson"], mistake["old"], mistake["new"])
    assert not explanation.is_right
    for part in mistake["says"]:
        assert part in explanation.sentence


@pytest.mark.parametrize("name", LESSONS)
def test_sampled_mutants_are_noticed_and_named_as_recorded(name: str):
    """Mutants that docs/results/mutations.csv lists as noticed must be noticed, and named ones must be named."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    recorded = {(row["lesson"], row["line"], row["after"]): row for row in recorded_mutants()}
    sample = random.Random(seed).sample(mutants(name), SAMPLE)
    for mutant in filter(changes_a_result, sample):
        row = recorded[name, str(mutant.line), mutant.after]
        explanation = explained(mutant)
        assert not explanation.is_right, (seed, mutant)
        assert is_named(mutant, explanation) >= int(row["named"]), (seed, mutant, explanation.sentence)


def recorded_mutants() -> list[dict[str, str]]:
    with (REPOSITORY / mutations.RESULTS).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_recorded_mutants_match_the_lessons_and_95_percent_are_named():
    rows = recorded_mutants()
    assert {row["lesson"] for row in rows} == set(LESSONS)
    possible = {(mutant.lesson, str(mutant.line), mutant.after) for name in LESSONS for mutant in mutants(name)}
    assert {(row["lesson"], row["line"], row["after"]) for row in rows} <= possible
    assert len(rows) >= 150
    assert all(row["noticed"] == "1" for row in rows)
    assert sum(row["named"] == "1" for row in rows) >= 0.95 * len(rows)


def test_explain_names_the_next_equation_of_an_unfinished_lesson(make_clone: Callable[..., Clone]):
    """Each run names the next quantity until the lesson is correct."""
    clone = make_clone("numpy_arrays")
    explain_mine = [sys.executable, "-m", "commands", "explain", "numpy_mine"]
    printed = clone.run(*explain_mine, "--problem", "two_layer", succeeds=False).stdout
    assert "numpy_mine.py is new" in printed
    file = clone.path / "pipeline/lessons/two_layer/numpy_mine.py"
    right = source_of("numpy_arrays").splitlines()
    body = {"__init__": right[16:19], "place": right[21:22], "step": [], "predict": right[43:44]}
    head = "import numpy as np\n" + file.read_text().split("class ", maxsplit=1)[0].split('"""')[2]

    def write(methods: dict[str, list[str]]) -> None:
        skeleton = file.read_text().partition("class ")[2]
        for method, lines in methods.items():
            start = skeleton.index(f"def {method}(")
            dots = skeleton.index("        ...", start)
            end = skeleton.index("\n", dots)
            skeleton = skeleton[:dots] + "\n".join(lines) + skeleton[end:]
        file.write_text(f"{head}class {skeleton}")

    def explanation(succeeds: bool = False) -> str:
        return clone.run(*explain_mine, succeeds=succeeds).stdout.splitlines()[-1].removeprefix("numpy_mine: ")

    assert explanation().startswith("next: __init__")
    write({"__init__": body["__init__"]})
    assert explanation().startswith("next: place")
    write({"place": body["place"], "predict": body["predict"]})
    steps = [line for line in right[24:41] if " = " in line or " -= " in line]
    names = ["h", "h_relu", "y_pred", "loss", "grad_y_pred", "grad_w2", "grad_h_relu", "grad_h", "grad_w1", "w1", "w2"]
    assert len(steps) == len(names)
    for name, line in zip(names, steps, strict=True):
        assert explanation().startswith(f"next: {name} = "), name
        write({"step": [line, "        ..."]})
    assert explanation() == "next: return the loss."
    write({"step": ["        return loss"]})
    assert explanation(succeeds=True) == "every quantity agrees with the equations."


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["numpy_nothing"], "ERROR: The lesson numpy_nothing is missing. To write a new one, add PROBLEM="),
        (["nothing"], "ERROR: NAME is nothing. A lesson is named <framework>_<mechanism>, such as numpy_mine."),
        (["numpy_mine", "--problem", "three"], "ERROR: PROBLEM is three. The problems are recurrent, two_layer."),
        (["numpy_arrays", "--problem", "recurrent"], "Leave PROBLEM out, or take another name."),
        (["jax_mine", "--problem", "recurrent"], "ERROR: NAME is jax_mine, but there is no pipeline/runtimes/jax.py."),
        (["torch_tensors", "--device", "cuda:99"], "ERROR: DEVICE is cuda:99; found: "),
    ],
)
def test_invalid_explain_arguments_give_one_error(arguments: list[str], words: str, make_clone: Callable[..., Clone]):
    clone = make_clone("numpy_arrays")
    done = clone.run(sys.executable, "-m", "commands", "explain", *arguments, succeeds=False)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not clone.run("git", "status", "--porcelain", "--", "pipeline").stdout, "it has left a file"


def test_output_and_encoding_of_a_lesson_do_not_change_the_explanation(make_clone: Callable[..., Clone]):
    clone = make_clone("numpy_arrays")
    file = clone.path / implementation_file("two_layer", "numpy_arrays")
    right = file.read_bytes()
    command = [sys.executable, "-m", "pipeline.parity.explain", "numpy_arrays", "two_layer", "cpu", "json"]

    def explained_as(source: bytes, succeeds: bool) -> dict[str, Any]:
        file.write_bytes(source)
        return json.loads(clone.run(*command, succeeds=succeeds).stdout)

    for saved in (b"\xef\xbb\xbf" + right, right.replace(b"\n", b"\r\n"), right.replace(b"    ", b"\t")):
        assert explained_as(saved, succeeds=True)["is_right"]
    assert explained_as(right.replace(b"# Update.", b"print('no line', end='')"), succeeds=True)["is_right"]
    assert "SystemExit" in explained_as(right + b"\nraise SystemExit(0)\n", succeeds=False)["sentence"]
    file.write_bytes(b"# caf\xe9\n" + right)
    message = clone.run(*command, succeeds=False).stderr
    assert message.startswith("ERROR: pipeline/lessons/two_layer/numpy_arrays.py is not UTF-8 text")
    assert "Traceback" not in message


def test_failed_explanation_leaves_the_parity_report_complete(make_clone: Callable[..., Clone], monkeypatch: Any):
    clone = make_clone("numpy_arrays")
    clone.run("dvc", "repro", "-q", "environment")
    monkeypatch.chdir(clone.path)
    monkeypatch.setattr(report, "TIMEOUT", 0.01)
    wrong = report.first_wrong("numpy_arrays", "two_layer")
    assert wrong == FirstWrong(
        sentence="The line is not known: `make explain NAME=numpy_arrays` says why.", quantity="", line=None
    )
    monkeypatch.setattr(report, "TIMEOUT", 60)
    assert report.first_wrong("numpy_arrays", "two_layer").sentence == report.RIGHT


def test_documented_explanation_equals_the_printed_one():
    explanation = explanation_of("numpy_arrays", "grad_h = grad_h_relu * (h > 0)", "grad_h = grad_h_relu")

    def comparable(text: str) -> list[str]:
        """Without the errors of correct quantities, which come from rounding."""
        return [re.sub(r"\S+ +✓$", "✓", line) for line in text.splitlines()]

    documented = re.findall(r"```text\n(equation.*?)```", WRONG_LINE, re.DOTALL)[0]
    assert comparable(documented) == comparable(table("numpy_arrays", explanation))
    assert f"numpy_mine: {explanation.sentence}" in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_documented_mutant_counts_equal_the_recorded_ones():
    rows, lines = recorded_mutants(), WRONG_LINE.splitlines()
    for column in ("lesson", "kind"):
        for value in {row[column] for row in rows}:
            matching = [row for row in rows if row[column] == value]
            noticed, named = (sum(row[outcome] == "1" for row in matching) for outcome in ("noticed", "named"))
            assert f"| {value} | {len(matching)} | {noticed} | {named} |" in lines
    named = sum(row["named"] == "1" for row in rows)
    assert f"| all | {len(rows)} | {len(rows)} | {named} ({100 * named / len(rows):.1f} %) |" in lines
    readme = " ".join((REPOSITORY / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"planted {len(rows)} mistakes in the seven lessons, one at a time. `make explain` noticed all of them"
        in readme
    )
    assert f"named the wrong line of {named} (" in readme
    for row in rows:
        if row["named"] == "0":
            assert any(line.startswith(f"| {row['lesson']} | {row['line']} | `{row['after']}` |") for line in lines), (
                row
            )
