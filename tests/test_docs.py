"""The figures of README and docs come from committed samples. Each is computed again and compared digit by digit."""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
import yaml
from conftest import HOST, REPOSITORY

from benchmarks import bench
from pipeline.benchmark import samples
from pipeline.benchmark.headlines import HEADLINES
from pipeline.benchmark.samples import Benchmark

RESULTS = REPOSITORY / "docs/results"
PERFORMANCE = (REPOSITORY / "docs/reference/performance.md").read_text()
STATISTICS = {
    "median of pairs": lambda above, below: np.median(np.log(above / below)),
    "fastest rounds": lambda above, below: np.log(above.min() / below.min()),
    "lower quartiles": lambda above, below: np.log(np.quantile(above, 0.25) / np.quantile(below, 0.25)),
}
WORDS = ("faster", "slower", "the same within 5 %", "cannot tell")


def spaced(text: str) -> str:
    """Lines with one space where a table has several."""
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


def rows_of(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def speed() -> Benchmark:
    return samples.read(RESULTS / "speed/samples.csv", RESULTS / "speed/machine.json")


def test_performance_page_has_the_output_of_make_bench(speed: Benchmark):
    document = spaced(PERFORMANCE)
    for line in bench.report(speed, list(bench.SIZES), {}):
        for part in spaced(line).splitlines():
            assert part in document, part


def test_documented_interval_widths_equal_the_measured_ones(speed: Benchmark):
    widths = [
        100 * estimate.half_width
        for size in bench.plan(list(bench.SIZES), HOST)
        if (case := speed.at(size.problem, size.sizes))
        for pair in size.pairs
        if (estimate := case.ratio(pair.above, pair.below))
    ]
    sentence = f"± {min(widths):.1f} to {max(widths):.1f} %, ± {np.median(widths):.1f} % in the median"
    assert sentence in " ".join(PERFORMANCE.split())


def test_no_lesson_is_faster_than_its_matrix_products(speed: Benchmark):
    for case in speed.cases:
        for lesson in filter(lambda candidate: candidate.is_implementation, case.seconds):
            multiple = case.multiple(lesson)
            assert multiple
            assert multiple.high >= 1, (case.label, lesson)


def test_findings_of_readme_are_the_medians_of_ten_first_runs():
    ratios: dict[str, list[float]] = defaultdict(list)
    for row in rows_of("first_runs.csv"):
        ratios[row["headline"]].append(float(row["ratio"]))
    readme = " ".join((REPOSITORY / "README.md").read_text().split())
    for idea, words in (
        ("Autograd", "a step of `torch_autograd` takes {slower:.3g} times as long as"),
        ("The static graph", "a step of `tensorflow_graph` is {faster:.2g} times as fast as"),
        ("The loop in the graph", "a step of `tensorflow_scan` is {faster:.2g} times as fast as"),
    ):
        assert len(ratios[idea]) == 10
        ratio = np.median(ratios[idea])
        assert words.format(slower=ratio, faster=1 / ratio) in readme, idea
    assert f"a step takes {np.median(ratios['The static graph']):.3g} times as long" in readme


def process_rows() -> Iterator[str]:
    """The results of docs/results/processes.csv on started and forked processes, and on the statistic."""
    paces = defaultdict(lambda: defaultdict(list))
    for row in rows_of("processes.csv"):
        paces[row["process_was"], row["process"]][row["candidate"]].append(float(row["microseconds_a_step"]))
    pairs = [("torch_autograd", "torch_tensors"), ("torch_function", "torch_autograd")]
    pairs += [("numpy_arrays", "torch_tensors"), ("tensorflow_graph", "eager/tensorflow_graph")]
    for above, below in pairs:
        cells = []
        for how, name in (("started", "median of pairs"), *(("forked", name) for name in STATISTICS)):
            values = [
                STATISTICS[name](np.array(process[above]), np.array(process[below]))
                for (was, _), process in paces.items()
                if was == how
            ]
            cells.append(f"{np.exp(np.mean(values)):.3g} ({100 * np.std(values, ddof=1):.1f} %)")
        yield " | ".join([f"| {above} ÷ {below}", *cells]) + " |"


def test_documented_process_statistics_equal_the_measured_ones():
    for row in process_rows():
        assert row in PERFORMANCE, row


def turn_row() -> str:
    """The results of docs/results/turns.csv on the length of a turn."""
    paces = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in rows_of("turns.csv"):
        paces[row["turn_milliseconds"]][row["process"]][row["candidate"]].append(float(row["microseconds_a_step"]))
    cells = []
    for processes in paces.values():
        pairs = [
            (np.array(process["tensorflow_graph"]), np.array(process["torch_tensors"]))
            for process in processes.values()
        ]
        cells.append(f"{np.exp(np.mean([STATISTICS['median of pairs'](*pair) for pair in pairs])):.2g}")
    return " | ".join(["| `tensorflow_graph` ÷ `torch_tensors`", *cells]) + " |"


def test_documented_ratios_by_turn_length_equal_the_measured_ones():
    assert turn_row() in PERFORMANCE


def test_documented_power_curve_equals_the_measured_one():
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for row in rows_of("calibration.csv"):
        counts[int(row["planted_percent"])][row["verdict"]] += 1
    for percent, words in counts.items():
        assert set(words) <= set(WORDS)
        row = f"| {percent} % | " + " | ".join(str(words[word]) for word in WORDS) + " |"
        assert row in PERFORMANCE, row
    same = counts[0]
    sentence = (
        f"{same['slower'] + same['faster']} of {same.total()} comparisons of a program with itself found a difference, "
        f"and {counts[5]['slower']} of {counts[5].total()} found a slowdown of 5 %"
    )
    for text in (PERFORMANCE, (REPOSITORY / "pipeline/report/report.html").read_text()):
        assert sentence in " ".join(text.split()), sentence


def test_documented_verdicts_of_ten_first_runs_equal_the_measured_ones():
    words: dict[str, Counter[str]] = defaultdict(Counter)
    widths: dict[str, list[float]] = defaultdict(list)
    for row in rows_of("first_runs.csv"):
        words[row["headline"]][row["verdict"]] += 1
        widths[row["headline"]].append(100 * np.log(float(row["high"]) / float(row["low"])) / 2)
    assert set(words) == {headline.idea for headline in HEADLINES if not headline.on_gpu}
    for idea, counted in words.items():
        verdicts = ", ".join(f"{word} {count}" for word, count in counted.most_common())
        row = f"| {idea} | {verdicts} | ± {np.median(widths[idea]):.1f} % | ± {max(widths[idea]):.1f} % |"
        assert row in PERFORMANCE, row


def test_time_limit_of_the_benchmark_in_the_documents_equals_params():
    config = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["benchmark"]
    page = (REPOSITORY / "docs/how-to/benchmark.md").read_text()
    assert f"stops after {config['seconds']} seconds" in " ".join(page.split())


def test_every_committed_result_is_used_by_a_document_or_a_test():
    """Used by a document, or by a test that compares a run with it."""
    users = [*(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "tests").glob("*.py")]
    named = "".join(path.read_text() for path in users)
    for path in RESULTS.iterdir():
        assert f"results/{path.name}" in named, path.name


if __name__ == "__main__":  # what to write into docs/reference/performance.md
    for line in process_rows():
        print(line)


def test_every_test_named_in_reliability_exists():
    text = (REPOSITORY / "docs/reference/reliability.md").read_text()
    named = [
        (file, name)
        for file, names in re.findall(r"(test_\w+\.py): (test_\w+(?:, test_\w+)*)", text)
        for name in names.split(", ")
    ]
    assert len(named) > 80
    tests = {file: (REPOSITORY / "tests" / file).read_text() for file, _ in named}
    assert [f"{file}: {name}" for file, name in named if f"def {name}(" not in tests[file]] == []
