"""The page of lessons: made in process from the results of one small pipeline, and opened in a real browser."""

import html
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import browser
import numpy as np
import pytest
from conftest import HOST, LESSONS, REPOSITORY, Clone, quiet
from safetensors.numpy import load_file
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pipeline import files
from pipeline.benchmark import samples
from pipeline.benchmark.candidates import Candidate
from pipeline.clock import TIME_BREAKDOWN
from pipeline.contract import implementation_file, load_problem
from pipeline.graphs.graph import Graph, Node, read_structure
from pipeline.lessons_page.equation_map import equations_by_line
from pipeline.lessons_page.exercises import EXERCISES
from pipeline.lessons_page.mathml import mathml
from pipeline.lessons_page.notes import BATCH_SIZES, ENDS, LENGTHS, gradient_twice
from pipeline.lessons_page.page import read, shares, warn_once, write
from pipeline.lessons_page.source_view import changes, functions_used, listing
from pipeline.params import load_params
from pipeline.quantities.equations import equations
from pipeline.report.figures import Result
from pipeline.report.findings import findings
from pipeline.results import ParityReport, Timing
from pipeline.runtimes import open_implementation

ORDER = list(load_params(REPOSITORY / "params.yaml").implementations)
MODULE = re.search(r"<<'END'\n(.*?)END\n", (REPOSITORY / ".ci/extend").read_text(), re.DOTALL)


def in_a_browser(test: Callable[..., None]) -> Callable[..., None]:
    reason = browser.is_missing()
    return pytest.mark.browser(pytest.mark.skipif(bool(reason), reason=f"the page is not looked at: {reason}")(test))


@pytest.fixture(scope="module")
def results(finished_pipeline: Clone) -> Iterator[dict[str, Any]]:
    """The arguments of `write`, without a benchmark. The tests of this file run in the folder of the finished
    pipeline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished_pipeline.path)
        params = load_params().model_copy(update={"implementations": {name: LESSONS[name] for name in ORDER}})
        parity = ParityReport.read(files.PARITY_REPORT)
        content = {
            "params": params,
            "parity": parity,
            "results": {
                name: Result(problem, Timing.read(files.result_file(name, "timing.json")), *files.read_history(name))
                for name, problem in params.implementations.items()
            },
            "benchmark": samples.collect([], quiet()),
            **read(params.implementations),
        }
        sizes = {problem: params.problems[problem].sizes for problem in params.used_problems}
        structures = {name: read_structure(name) for name in params.implementations}
        yield content | {"statements": findings(content["benchmark"], parity, sizes, structures)}


@pytest.fixture(scope="module")
def page(results: dict[str, Any]) -> str:
    return write(**results)


@pytest.fixture(scope="module")
def address(page: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("page") / "lessons.html"
    file.write_text(page)
    return file.as_uri()


@pytest.fixture(scope="module")
def opened(address: str) -> Iterator[Any]:
    with browser.chromium() as opened:
        browser.prefer(opened, "light")
        opened.get(address)
        yield opened


def section(page: str, name: str) -> str:
    match = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    assert match, f"the page has no section {name}"
    return match[0]


def text(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", markup)).split())


def source_of(name: str) -> str:
    return (REPOSITORY / implementation_file(LESSONS[name], name)).read_text()


def line_of(name: str, start: str) -> int:
    return next(number for number, line in enumerate(source_of(name).splitlines(), 1) if line.strip().startswith(start))


# Which line computes which equation.

TWO_LAYER = ["grad_y_pred", "grad_w2", "grad_h_relu", "grad_h", "grad_w1"]
RECURRENT = ["grad_y_pred", "grad_wo", "grad_h[length]", "grad_z[t]", "grad_h[t - 1]", "grad_wx", "grad_wh"]
BY_HAND = ["h", "h_relu", "y_pred", "loss", *TWO_LAYER, "w1", "w2"]
IN_LINE = {  # the equations that the lines compute, in order; a line is identified by its start
    "numpy_arrays": {f"{'self.' * (left in ('w1', 'w2'))}{left} ": [left] for left in BY_HAND},
    "torch_tensors": {f"{'self.' * (left in ('w1', 'w2'))}{left} ": [left] for left in BY_HAND},
    "torch_autograd": {
        "y_pred = (x @ self.w1)": ["h", "h_relu", "y_pred"],
        "loss =": ["loss"],
        "loss.backward()": TWO_LAYER,
        "self.w1 -=": ["w1"],
        "self.w2 -=": ["w2"],
    },
    "torch_function": {
        "return h.clamp(min=0)": ["h_relu"],
        "return grad_h_relu * (h > 0)": ["grad_h"],
        "y_pred = ReLU.apply": ["h", "h_relu", "y_pred"],
        "loss =": ["loss"],
        "loss.backward()": TWO_LAYER,
        "self.w1 -=": ["w1"],
        "self.w2 -=": ["w2"],
    },
    "tensorflow_graph": {
        "y_pred =": ["h", "h_relu", "y_pred"],
        "loss =": ["loss"],
        "grad_w1, grad_w2 =": TWO_LAYER,
        "self.w1.assign_sub": ["w1"],
        "self.w2.assign_sub": ["w2"],
    },
    "torch_loop": {
        "h = x.new_zeros": ["h[0]"],
        "for running, z in": ["z[t]"],
        "h = (z +": ["h[t]"],
        "return torch.cat": ["y_pred"],
        "y_pred =": ["h[0]", "z[t]", "h[t]", "y_pred"],
        "loss =": ["loss"],
        "loss.backward()": RECURRENT,
        **{f"self.{weight} -=": [weight] for weight in ("wx", "wh", "wo")},
    },
    "tensorflow_scan": {
        "y_pred =": ["h[0]", "z[t]", "h[t]", "y_pred"],
        "return tf.nn.relu": ["h[t]"],
        "start =": ["h[0]"],
        "states =": ["h[0]", "z[t]", "h[t]"],
        "return tf.gather_nd": ["y_pred"],
        "loss =": ["loss"],
        "grad_wx, grad_wh, grad_wo =": RECURRENT,
        **{f"self.{weight}.assign_sub": [weight] for weight in ("wx", "wh", "wo")},
    },
}


def mapped(name: str, source: str, problem: str) -> dict[str, list[str]]:
    """The left sides of the equations that a line computes, by the line."""
    of_problem, lines = equations(load_problem(problem).__doc__ or ""), source.splitlines()
    computed = equations_by_line(name, source, of_problem).items()
    return {lines[line - 1].strip(): [of_problem[number - 1].left for number in numbers] for line, numbers in computed}


@pytest.mark.parametrize("name", LESSONS)
def test_every_equation_is_mapped_to_the_lines_that_compute_it(name: str):
    lines = mapped(name, source_of(name), LESSONS[name])
    assert {left for lefts in lines.values() for left in lefts} == {
        equation.left for equation in equations(load_problem(LESSONS[name]).__doc__ or "")
    }
    assert len(lines) == len(IN_LINE[name])
    for line, lefts in lines.items():
        (expected,) = [lefts for start, lefts in IN_LINE[name].items() if line.startswith(start)]
        assert lefts == expected, line


def test_lesson_without_entries_in_the_tables_is_mapped_by_names():
    assert MODULE
    lines = mapped("torch_module", MODULE[1], "two_layer")
    assert lines["loss = torch.nn.functional.mse_loss(self(x), y)"] == ["h", "h_relu", "y_pred", "loss"]
    assert lines["loss.backward()"] == TWO_LAYER
    assert lines["self.optimizer.step()"] == ["w1", "w2"]
    filled = (
        "class Implementation:\n    def step(self, x):\n        h = start\n        h = zeros()\n        h[t] = z + h\n"
    )
    assert mapped("numpy_filled", filled, "recurrent") == {"h = zeros()": ["h[0]"], "h[t] = z + h": ["z[t]", "h[t]"]}


# The code, and the differences.


def test_all_lines_are_listed_and_step_is_not_folded():
    source = source_of("torch_loop")
    runs = listing(source, functions_used(source))
    assert [line.number for run in runs for line in run.lines] == list(range(1, len(source.splitlines()) + 1))
    assert all(run.title or "" not in {line.html for line in run.lines} or len(run.lines) > 1 for run in runs)
    opened = "".join(text(line.html) for run in runs if not run.title for line in run.lines)
    assert "loss.backward()" in opened
    assert "def _forward" in opened
    assert "def predict" not in opened


def test_difference_marks_words_and_folds_unchanged_lines():
    runs = changes(source_of("torch_tensors"), source_of("torch_autograd"))
    lines = [line for run in runs if not run.title for line in run.lines]
    assert any("<mark>, requires_grad=True</mark>" in line.html for line in lines if line.sign == "+")
    assert {line.sign for run in runs if run.title for line in run.lines} == {""}
    for side, name in (("old", "torch_tensors"), ("number", "torch_autograd")):
        numbers = [number for run in runs for line in run.lines if (number := getattr(line, side))]
        assert numbers == list(range(numbers[0], len(source_of(name).splitlines()) + 1))
    assert not re.search(r"<mark>\s+</mark>", "".join(line.html for line in lines))
    rebuilt = [html.unescape(re.sub(r"<.*?>", "", line.html)) for run in runs for line in run.lines if line.sign != "−"]
    assert source_of("torch_autograd").endswith("\n".join(rebuilt) + "\n")


def test_lesson_is_compared_with_the_most_similar_earlier_lesson(page: str):
    before = {name: re.search(r'What changes from <a href="#(.*?)"', section(page, name)) for name in ORDER}
    assert {name: match and match[1] for name, match in before.items()} == {
        "numpy_arrays": None,
        "torch_tensors": "numpy_arrays",
        "torch_autograd": "torch_tensors",
        "torch_function": "torch_autograd",
        "tensorflow_graph": "torch_autograd",
        "torch_loop": "torch_autograd",
        "tensorflow_scan": "tensorflow_graph",
    }


# The page.


@pytest.mark.parametrize("name", ORDER)
def test_lesson_has_idea_equations_code_graph_and_cost(results: dict[str, Any], page: str, name: str):
    part = section(page, name)
    words, row = text(part), results["parity"].implementations[name]
    for paragraph in source_of(name).split('"""')[1].split("\n\n"):
        if not paragraph.startswith("    "):
            assert " ".join(paragraph.replace("`", "").split()) in words
    for equation in equations(load_problem(LESSONS[name]).__doc__ or ""):
        assert mathml(equation) in part
    for line in source_of(name).splitlines():
        assert " ".join(line.split()) in words
    assert f"{row.test_loss:.4f}" in part
    assert f"gradient off by {row.parity.gradient:.1e}, at most 1e-03" in words
    drawn = re.findall(r'<g class="node [^>]*data-name="(.*?)"', part)
    for graph in results["graphs"][name]:
        operations = sum(node.kind in ("operation", "loop") for node in graph.nodes)
        assert f"{graph.title}. It has {operations} operations" in words
        assert {html.escape(node.name) for node in graph.nodes} <= set(drawn)
    assert ("On paper: nothing is recorded" in part) == (name in ("numpy_arrays", "torch_tensors"))


def test_lessons_are_listed_in_the_order_of_params(page: str):
    first_static = ORDER.index("tensorflow_graph")
    expected = [*ORDER[:first_static], "static-and-dynamic", *ORDER[first_static:], "in-one-picture", "step-times"]
    assert re.findall(r'<section id="(.*?)"', page) == expected
    contents = re.findall(r'href="#(.*?)"', page.split("</nav>", maxsplit=1)[0])
    assert contents == ["top", *expected]


def test_static_and_dynamic_graphs_are_shown_side_by_side(results: dict[str, Any], page: str):
    both = section(page, "in-one-picture")
    assert both.count("<svg") == 3
    short, long = results["graphs"]["torch_loop"]
    assert len(short.nodes) < len(long.nodes)
    for graph, steps in ((short, 2), (long, 4)):
        assert f"torch_loop. {graph.title}. It has" in text(both)
        assert set(re.findall(r"t = \d", text(both))) >= {f"t = {time}" for time in range(1, steps + 1)}
    assert "backward" not in re.findall(r'<g class="node (\w+)', both)


def test_sizes_learning_rate_and_noise_equal_params(results: dict[str, Any], page: str):
    params, top = results["params"], page.split('<section class="words"', maxsplit=1)[0]
    words = text(top)
    for column, problem in enumerate(params.used_problems):
        sizes = params.problems[problem]
        shown = [cells[column] for row in top.split("<tr>") if (cells := re.findall(r'"figure">([\d,]*)<', row))]
        assert {f"{size:,}" for size in {**vars(sizes.data), **vars(sizes.train)}.values()} <= set(shown)
    assert f"learning rate of {params.train.learning_rate:g}" in words
    assert f"standard deviation {params.data.noise:g}" in words


def test_linked_words_are_defined_before_the_first_lesson(page: str):
    defined = dict.fromkeys(re.findall(r'id="(word-[\w-]+)"', page))
    assert set(re.findall(r'href="#(word-[\w-]+)"', page)) <= set(defined)
    for word in defined:
        assert page.count(f'id="{word}"') == 1
    words = text(page.split(f'<section id="{ORDER[0]}"', maxsplit=1)[0])
    for used in ("parity", "R²", "p95", "the matrix products alone", "second moment", "∇w", "Aᵀ", "T is the number"):
        assert used in words
    for used in ("traced", "None in a TensorSpec", "StatelessWhile", "cannot tell", "Everything else", "thick", "XLA"):
        assert used in words


@pytest.mark.parametrize("name", ORDER)
def test_shares_of_the_training_time_add_up_to_100_percent(results: dict[str, Any], name: str):
    parts = shares(results["results"][name])
    timing = results["results"][name].timing
    assert sum(part.percent for part in parts) == 100
    for part in parts[:-1]:
        exact = 100 * timing.breakdown_seconds[part.line.replace(" ", "_")] / timing.wall_seconds
        assert abs(part.percent - exact) < 1
    assert len(parts) < len(TIME_BREAKDOWN)
    seconds = [timing.breakdown_seconds[part.line.replace(" ", "_")] for part in parts[:-1]]
    assert seconds == sorted(seconds, reverse=True)
    assert "residual" not in {part.line for part in parts}


@pytest.mark.parametrize("name", ORDER)
def test_lesson_shows_its_loss_curve_and_its_predictions(results: dict[str, Any], page: str, name: str):
    plots = re.findall(r'<svg class="plot".*?</svg>', section(page, name), re.DOTALL)
    assert len(plots) == 2
    targets, before, after = results["fits"][name]
    outputs = load_file(files.outputs_file(name))
    assert np.isin(np.float32(after), outputs["predictions"]).all()
    assert np.isin(np.float32(before), outputs["initial_predictions"]).all()
    for kind in ("before", "after"):
        (points,) = re.findall(rf'class="points {kind}" d="(.*?)"', plots[1])
        assert points.count("M") == len(targets) <= 200
    row = results["parity"].implementations[name]
    assert f"Of the held-out loss of {row.test_loss:.3g}, 0.01 is the noise" in text(section(page, name))


def test_step_times_are_in_one_table_that_explains_a_slower_static_graph(results: dict[str, Any]):
    def times(scan: float) -> str:
        measured = dict(results["results"])
        for name, seconds in (("torch_loop", 0.001), ("tensorflow_scan", scan)):
            timing = measured[name].timing.model_copy(update={"step_seconds_median": seconds})
            measured[name] = measured[name]._replace(timing=timing)
        arguments: dict[str, Any] = {**results, "results": measured}
        return text(section(write(**arguments), "step-times"))

    slower, faster = times(0.0015), times(0.0008)
    assert all(name in slower for name in ORDER)
    assert "a step of tensorflow_scan took 1.5 times as long as one of torch_loop" in slower
    assert "16 examples × 5 time steps = 80 states, padding included" in slower
    assert "as many as the lengths add up to, 48 on average" in slower
    assert "tensorflow_scan took" not in faster
    assert "one of torch_loop takes 1.2 times as long" in faster


def test_page_without_ratios_gives_the_reason(results: dict[str, Any], page: str):
    reason = "other processes took 1.0 of 2 CPUs"
    seconds = {Candidate("numpy_arrays"): {0: np.full(3, 1e-4)}}
    case = samples.Case("two_layer", results["params"].problems["two_layer"].sizes, seconds, {0: reason}, on_gpu=False)
    disturbed = write(**results | {"benchmark": results["benchmark"]._replace(cases=[case])})
    sentences = ("This run had no benchmark", f"its times are not used: {reason}.")
    for markup, (expected, absent) in ((page, sentences), (disturbed, sentences[::-1])):
        assert all(expected in text(section(markup, name)) for name in ("tensorflow_graph", "step-times"))
        assert absent not in text(markup)
        assert "The benchmark gave no" not in text(markup)


def test_only_lines_with_equations_are_tab_stops(page: str):
    lines = re.findall(r'<span class="line[^"]*" id=.*?</code>', section(page, "torch_loop"))
    assert len(lines) == len(source_of("torch_loop").splitlines())
    for line in lines:
        stops = [link for link in re.findall(r"<a .*?>", line) if 'tabindex="-1"' not in link]
        assert bool(stops) == ("data-eq=" in line)


def test_examples_of_lengths_equal_what_the_lessons_compute():
    batch = {"x": np.ones((3, 4, 2), np.float32), "lengths": np.array(LENGTHS), "y": np.ones((3, 1), np.float32)}
    weights = {"wx": np.ones((2, 2), np.float32), "wh": np.ones((2, 2), np.float32), "wo": np.ones((2, 1), np.float32)}
    for name, expected in (("torch_loop", BATCH_SIZES), ("tensorflow_scan", ENDS)):
        loop = open_implementation(name, LESSONS[name], HOST).create(weights, 0.1)
        _, placed, _ = loop.implementation.place(batch)
        assert np.asarray(placed).tolist() == expected


def test_second_backward_without_clearing_doubles_the_gradient(page: str):
    name, once, twice = gradient_twice("two_layer")
    assert (name, once.shape) == ("w2", (2, 2))
    np.testing.assert_array_equal(twice, 2 * once)
    assert once.all()
    for value in (once[0, 0], twice[0, 0]):
        assert f"{value:.4f}" in section(page, "torch_autograd")


def test_page_is_small_and_needs_no_network_and_no_framework(
    finished_pipeline: Clone, results: dict[str, Any], page: str
):
    assert len(page.encode()) <= 1_500_000
    assert not re.search(r"""(src|href)=["']https?:|@import|url\(""", page)
    imported = "import sys, stages.report; print(sorted({'torch', 'tensorflow', 'mlflow'} & sys.modules.keys()))"
    assert finished_pipeline.run("python", "-c", imported).stdout == "[]\n"
    assert write(**results) == page


def test_edited_and_new_lessons_change_only_related_sections(results: dict[str, Any], page: str, tmp_path: Path):
    """`write` reads the lessons' files below the current folder, and takes the graphs from its caller."""
    assert MODULE
    shutil.copytree(REPOSITORY / "pipeline/lessons", tmp_path / "pipeline/lessons")
    edited = tmp_path / implementation_file("two_layer", "torch_autograd")
    edited.write_text(edited.read_text().replace("(x @ self.w1).relu() @", "(x @ self.w1).relu().tanh() @"))
    (tmp_path / implementation_file("two_layer", "torch_eighth")).write_text(MODULE[1])
    new = {key: dict(results[key]) for key in ("results", "graphs", "examples", "fits")}
    new["graphs"]["torch_autograd"] = [Graph("Edited", True, [Node("n0", "TanhBackward0", group="forward")], [])]
    for part in (*new.values(), rows := dict(results["parity"].implementations)):
        part["torch_eighth"] = part["torch_autograd"]
    params = results["params"].model_copy(
        update={"implementations": results["params"].implementations | {"torch_eighth": "two_layer"}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        parity = results["parity"].model_copy(update={"implementations": rows})
        arguments: dict[str, Any] = {**results, **new, "params": params, "parity": parity}
        changed = write(**arguments)
    assert "TanhBackward0" in section(changed, "torch_autograd")
    assert "(x @ self.w1).relu().tanh() @ self.w2" in text(section(changed, "torch_autograd"))
    eighth = section(changed, "torch_eighth")
    assert "torch.nn.Module" in text(eighth)
    assert "Try it" not in eighth
    assert 'What changes from <a href="#torch_autograd">' in eighth
    related = ["torch_autograd", "torch_function", "tensorflow_graph", "torch_loop"]  # shown beside the edited one
    for name in set(ORDER) - set(related):
        assert section(changed, name).replace(" of 8 ·", " of 7 ·") == section(page, name)


def test_page_without_graphviz_names_the_packages_to_install(
    results: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "pygraphviz", None)  # as on a system without GLib
    warn_once.cache_clear()
    assert "On Debian and Ubuntu: apt-get install libglib2.0-0 libxext6 libxrender1</p>" in write(**results)
    assert capsys.readouterr().err.count("WARNING: no picture of a graph: Graphviz cannot be loaded") == 1


@pytest.mark.parametrize("name", ["numpy_arrays", "tensorflow_scan"])
def test_page_of_one_lesson_has_no_comparison(results: dict[str, Any], name: str):
    params = results["params"].model_copy(update={"implementations": {name: LESSONS[name]}})
    page = write(**results | {"params": params})
    assert re.findall(r'<section id="(.*?)"', page) == [name, "step-times"]
    assert "Everything is new" in section(page, name)


# The exercises.


def test_every_exercise_is_shown_with_its_lesson(page: str):
    assert EXERCISES.keys() <= LESSONS.keys()
    for name, exercise in EXERCISES.items():
        shown = text(section(page, name).split('class="try"')[1])
        assert source_of(name).count(exercise.old) == 1
        for part in (*exercise.old.splitlines(), *exercise.new.splitlines(), exercise.command, exercise.promised):
            assert " ".join(part.split()) in shown
        question, answer = shown.split("What it prints, and why")
        assert "What do you expect?" in question
        assert exercise.why[:20] in answer
    assert len({exercise.promised + exercise.new.strip() for exercise in EXERCISES.values()}) == len(EXERCISES)


def test_writing_a_new_lesson_is_the_first_exercise(page: str):
    first = text(page.split('id="set-up"', maxsplit=1)[1].split("</section>", maxsplit=1)[0])
    assert "make explain NAME=numpy_mine PROBLEM=two_layer" in first
    assert "first __init__, then the line for h" in first
    assert page.index('id="set-up"') < page.index('class="try">\n<h3>')


def test_links_lead_to_the_page_or_contain_the_file(page: str):
    """Each link leads to a place on the page, or holds the file itself."""
    ids = set(re.findall(r' id="(.*?)"', page))
    for link in re.findall(r'href="(.*?)"', page):
        assert link.startswith("data:text/x-python") or link.removeprefix("#") in ids, link
    saved = re.search(r'href="data:text/x-python;charset=utf-8,(.*?)" download="numpy_arrays.py"', page)
    assert saved
    assert unquote(saved[1]) == source_of("numpy_arrays")


@pytest.mark.faults  # minutes; .ci/run has them
@pytest.mark.parametrize("name", EXERCISES)
def test_exercise_prints_the_promised_output(finished: Clone, name: str):
    exercise = EXERCISES[name]
    finished.edit(str(implementation_file(LESSONS[name], name)), exercise.old, exercise.new)
    printed = finished.run("bash", "-c", f"{exercise.command} 2>&1", succeeds=None).stdout
    rows = [line for line in printed.splitlines() if exercise.promised in line]
    assert rows, printed
    if "✗" in exercise.promised:
        assert [row.split()[0] for row in rows] == [name]
    if exercise.times:
        assert len(rows) == exercise.times


def test_edit_of_drawing_code_retrains_nothing(finished: Clone):
    finished.edit("pipeline/graphs/record.py", "N, PRIMES = 7,", "N, PRIMES = 5,")
    finished.edit("pipeline/lessons_page/layout.py", "MARGIN, BAND = 14,", "MARGIN, BAND = 15,")
    changed = json.loads(finished.run("dvc", "status", "--json").stdout)
    assert changed.keys() - {"environment", "track"} == {"graphs", "report"}


# In a browser.


def marked(opened: Any, within: str) -> list[str]:
    script = (
        "return [...document.querySelectorAll(arguments[0] + ' .marked')].map(each => each.id || each.dataset.name)"
    )
    return opened.execute_script(script, within)


def hover(opened: Any, selector: str) -> None:
    script = "document.querySelector(arguments[0]).dispatchEvent(new Event(arguments[1], {bubbles: true}))"
    opened.execute_script(script, selector, "pointerover")


def press(opened: Any, key: str) -> str:
    opened.find_element(By.TAG_NAME, "body").send_keys(key)
    return opened.execute_async_script("setTimeout(() => arguments[0](location.hash), 100)")


@in_a_browser
def test_page_fetches_nothing_and_reports_no_error(opened: Any, address: str):
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    requested = {
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in requested if not url.startswith(("chrome:", "data:"))} == {address}
    assert opened.get_log("browser") == []


@in_a_browser
def test_hovering_over_a_line_marks_its_equations_and_back(opened: Any):
    name = "torch_autograd"
    hover(opened, f"#{name}-L{line_of(name, 'loss.backward()')} code")
    backward = [f"{name}-L{line_of(name, 'loss.backward()')}", *(f"{name}-e{number}" for number in range(5, 10))]
    assert marked(opened, f"#{name} .step") == backward
    hover(opened, f"#{name}-e3")
    assert marked(opened, f"#{name} .step") == [f"{name}-L{line_of(name, 'y_pred = (x')}", f"{name}-e3"]
    assert marked(opened, f"#{name} .drawn") == ["y_pred"]
    hover(opened, f"#{name} .drawn [data-name='loss']")
    assert f"{name}-e4" in marked(opened, f"#{name} .step")
    hover(opened, "h1")
    assert marked(opened, "main") == []


@in_a_browser
def test_keys_move_between_lessons_and_update_the_contents(opened: Any):
    opened.execute_script("location.hash = ''; scrollTo(0, 0)")
    assert press(opened, "j") == f"#{ORDER[0]}"
    assert press(opened, "n") == f"#{ORDER[1]}"
    current = "return document.querySelector('nav [aria-current]').textContent"
    assert opened.execute_script(current) == ORDER[1]
    assert press(opened, "k") == f"#{ORDER[0]}"
    assert press(opened, Keys.ARROW_RIGHT) == f"#{ORDER[1]}"
    assert press(opened, Keys.CONTROL + "j") == f"#{ORDER[1]}"


@in_a_browser
def test_keys_pressed_during_a_smooth_scroll_are_counted(opened: Any, address: str):
    browser.prefer(opened, "light", motion="no-preference")
    opened.get("about:blank")
    opened.get(address)
    opened.find_element(By.TAG_NAME, "body").send_keys("jjj")
    settled = """
        const done = arguments[0];
        let last = -1;
        const look = () => (scrollY === last ? done(location.hash) : ((last = scrollY), setTimeout(look, 400)));
        look();
    """
    assert opened.execute_async_script(settled) == f"#{ORDER[2]}"
    assert opened.execute_script("return document.querySelector('nav [aria-current]').textContent") == ORDER[2]
    top = f"return document.getElementById('{ORDER[2]}').getBoundingClientRect().top"
    assert 0 <= opened.execute_script(top) < 60
    browser.prefer(opened, "light")


@in_a_browser
@pytest.mark.parametrize("width", [390, 1280, 1440])
def test_content_is_not_covered_or_cut_off(opened: Any, address: str, width: int):
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    )
    opened.get("about:blank")
    opened.get(address)
    problems = """
        const box = (element) => element.getBoundingClientRect();
        const all = (selector) => [...document.querySelectorAll(selector)].filter((each) => box(each).width);
        const covered = all(".line").flatMap((line) => {
            const parts = [...line.children].map(box);
            return parts.some((part, index) => index && part.left < parts[index - 1].right - 1) ? [line.id] : [];
        });
        const wide = all("main p, main dd, main li, main td, .drawn, .plot, .one-picture, .equations li")
            .filter((each) => !each.closest(".scroll") && (box(each).right > innerWidth || box(each).left < 0));
        const broken = all(".number, .idea pre span").filter((each) => each.getClientRects().length > 1);
        const scrolls = all(".one-picture").filter((each) => each.scrollWidth > each.clientWidth);
        return [...covered, ...[...wide, ...broken, ...scrolls].map((each) => each.outerHTML.slice(0, 200))];
    """
    assert opened.execute_script(problems) == []
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@in_a_browser
def test_link_to_a_word_highlights_its_definition(opened: Any, address: str):
    opened.get(f"{address}#word-parity")
    colour = "return getComputedStyle(document.getElementById('word-parity')).backgroundColor"
    marked_colour = opened.execute_script(colour)
    opened.get(f"{address}#top")
    assert opened.execute_script(colour) != marked_colour


@in_a_browser
def test_link_to_a_line_opens_its_fold_and_marks_its_equations(opened: Any, address: str):
    opened.get(f"{address}#numpy_arrays-L1")
    box = "return document.getElementById('numpy_arrays-L1').getBoundingClientRect()"
    assert opened.execute_script(f"{box}.height") > 0
    assert 0 < opened.execute_script(f"{box}.top") < opened.execute_script("return innerHeight")
    opened.get("about:blank")
    line = f"numpy_arrays-L{line_of('numpy_arrays', 'loss = np')}"
    opened.get(f"{address}#{line}")
    assert marked(opened, ".step") == [line, "numpy_arrays-e4"]


@in_a_browser
@pytest.mark.parametrize("width", [380, 1100, 1900])
def test_page_fits_the_width_with_readable_text(opened: Any, width: int):
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    )
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    read = "[...document.querySelectorAll('main p, main code, main td, main dd')]"
    sizes = opened.execute_script(f"return {read}.map(each => getComputedStyle(each).fontSize)")
    assert min(float(size.removesuffix("px")) for size in sizes) >= 12
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_has_no_serious_accessibility_violation(opened: Any, address: str, scheme: str):
    browser.prefer(opened, scheme)
    opened.get(address)
    assert browser.violations(opened) == []
