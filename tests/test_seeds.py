"""Many seeds: the statistics of a table, and parity over a real sweep, with sound lessons and with wrong ones."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import LESSONS, REPOSITORY, Clone

from pipeline import files
from pipeline.benchmark.intervals import mean
from pipeline.params import load_params
from pipeline.report import seeds

HEADER = "experiment,seed,train.learning_rate,implementation,problem,test_loss,test_r2,gradient,loss_curve,predictions"


def written(rates: dict[float, float], *, gradient: float = 1e-7, count: int = 12) -> seeds.Seeds:
    """Seeds whose losses differ much from each other; a learning rate adds the same to each, give or take 0.01."""
    generator = np.random.default_rng(3)
    losses = generator.uniform(0.1, 2, count)
    rows = [
        (f"exp-{rate}-{seed}", seed, rate, "numpy_arrays", "two_layer", loss + more, 0.5, gradient, 1e-6, 1e-6)
        for rate, added in rates.items()
        for seed, loss, more in zip(range(count), losses, generator.normal(added, 0.01, count), strict=True)
    ]
    files.write_rows(files.SEEDS, HEADER, rows)
    return seeds.read(load_params())


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("params.yaml", "pipeline"):
        (tmp_path / file).symlink_to(REPOSITORY / file)
    monkeypatch.chdir(tmp_path)


def test_best_value_is_found_by_the_paired_difference():
    table = written({0.1: 0.1, 0.2: 0.0, 0.4: 0.3})
    (sentence,) = seeds.better(table)
    pattern = r"two_layer \(numpy_arrays\), train.learning_rate: 0.2 is the best of 3; the next loses (\S+) \("
    match = re.match(pattern, sentence)
    assert match, sentence
    assert float(match[1]) == pytest.approx(0.1, abs=0.01), sentence
    assert "paired over 12 seeds" in sentence
    losses = [row.loss for row in table.rows()]
    assert losses[0].low < losses[1].high  # unpaired, the data would not decide


def test_equal_values_give_no_best_value():
    (sentence,) = seeds.better(written({0.1: 0.0, 0.2: 0.0}))
    assert "the seeds do not decide which value is best" in sentence


def test_values_with_two_seeds_are_left_out():
    assert seeds.better(written({0.1: 0.5, 0.2: 0.0}, count=2)) == []
    rows = files.read_rows(files.SEEDS)
    written({0.3: 0.5, 0.4: 0.0})
    few = [tuple(row.values()) for row in rows] + [tuple(row.values()) for row in files.read_rows(files.SEEDS)]
    files.write_rows(files.SEEDS, HEADER, few)
    (sentence,) = seeds.better(seeds.read(load_params()))
    assert "0.1, 0.2 left out: too few seeds: 0.4 is the best of 2" in sentence


def test_failed_parity_check_is_counted_for_every_seed():
    table = written({0.2: 0.0}, gradient=1e-2)
    (row,) = table.rows()
    assert (row.passed, row.seeds) == (0, 12)
    assert row.worst["gradient"] == 1e-2
    assert table.passed() == (0, 12)
    assert written({0.2: 0.0}).passed() == (12, 12)


def test_nan_measure_fails_the_parity_check():
    (row,) = written({0.2: 0.0}, gradient=float("nan")).rows()
    assert row.passed == 0
    assert not row.worst["gradient"] <= 1


def test_seed_without_a_result_counts_as_not_passed_and_leaves_the_mean():
    rows = [tuple(row.values()) for row in written({0.2: 0.0}, count=4) and files.read_rows(files.SEEDS)]
    before = seeds.read(load_params()).rows()[0]
    failed = ("", 4, 0.2, "numpy_arrays", "two_layer", "", "", "", "", "")
    files.write_rows(files.SEEDS, HEADER, [*rows, failed])
    table = seeds.read(load_params())
    (row,) = table.rows()
    assert (row.passed, row.seeds, row.loss) == (4, 5, before.loss)
    assert table.passed() == (4, 5)
    assert "No result, and so not passed: seed 4, whose experiment failed." in seeds.table(table)
    assert seeds.losses(table, "train.learning_rate", "numpy_arrays")["0.2"] == [float(row[5]) for row in rows]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is damaged ("),
        ("experiment,seed\nx,0\n", "is damaged ("),
        (f"{HEADER}\nx,a,0.2,numpy_arrays,two_layer,1,1,1,1,1\n", "is damaged ("),
        (f"{HEADER}\n", "has no result of params.yaml's implementations"),
        (f"{HEADER}\nx,0,0.2,gone,two_layer,1,1,1,1,1\n", "has no result of params.yaml's implementations"),
    ],
    ids=["empty", "columns", "number", "no rows", "another lesson"],
)
def test_unusable_seed_table_gives_a_warning(content: str, reason: str, capsys: pytest.CaptureFixture[str]):
    files.write_bytes(files.SEEDS, content.encode())
    assert seeds.read_if_usable(load_params()) is None
    output = capsys.readouterr().err
    assert output.startswith(f"WARNING: the report leaves the seeds out: {files.SEEDS} {reason}"), output


def test_interval_of_a_mean_covers_the_true_mean():
    generator = np.random.default_rng(8)
    intervals = [mean(list(generator.normal(3.0, 2.0, 24))) for _ in range(1000)]
    assert 930 <= sum(interval.low < 3.0 < interval.high for interval in intervals) <= 970


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_gradient_off_by_1_percent_fails_for_every_seed_and_implementation(make_clone: Callable[..., Clone]):
    clone = make_clone(*LESSONS)
    clone.commit()
    output = run_seeds(clone)
    for name, problem in LESSONS.items():
        assert re.search(rf"^ *{name} +2 of 2 ", output, re.MULTILINE), output
        file = clone.path / f"pipeline/lessons/{problem}/{name}.py"
        text, update = file.read_text(), r"(-= |assign_sub\()self\.learning_rate \* "
        wrong = re.sub(update, r"\1 1.01 * self.learning_rate * ", text, count=1)  # the first weights' gradient
        assert wrong != text
        file.write_text(wrong)
    clone.commit()
    output = run_seeds(clone)
    for name in LESSONS:
        assert re.search(rf"^ *{name} +0 of 2 .* ≤ 1\.0e-02 ", output, re.MULTILINE), output
    clone.run("dvc", "repro", "-f", "-s", "environment")
    assert run_seeds(clone).startswith("0 of 2 seeds are queued")


def run_seeds(clone: Clone) -> str:
    return clone.run(sys.executable, "-m", "commands", "seeds", "2").stdout
