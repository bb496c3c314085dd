"""Which line of a lesson is wrong: every lesson as it is, mutants of each, typical mistakes, and unfinished lessons."""

import json
import random
import subprocess
import sys
from pathlib import Path

import mutations
import pytest
from conftest import LESSONS, REPOSITORY
from mutations import Mutant, changes_a_result, explained, is_named, mutants, runtime_of, source_of

from pipeline.contract import implementation_file
from pipeline.parity.explain import Explanation, explain

SAMPLE = 12  # mutants of each lesson; tests/mutations.py tries all
pytestmark = pytest.mark.filterwarnings("ignore")  # a mutant may divide by 0, or broadcast


def explanation_of(name: str, old: str, new: str) -> Explanation:
    """Of a lesson in which `old` is replaced by `new`."""
    source = source_of(name)
    assert source.count(old) == 1, old
    problem = LESSONS[name]
    return explain(problem, source.replace(old, new), implementation_file(problem, name), runtime_of(name))


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
