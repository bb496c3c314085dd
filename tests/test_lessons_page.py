"""The lessons as a page, in a real browser: made from a small run of all of them, and from what becomes of it."""

import html
import json
import re
import shutil
from collections.abc import Callable
from typing import Any

import browser
import pytest
from conftest import LESSONS, REPOSITORY, TINY, Clone

from pipeline.contract import implementation_file, load_problem
from pipeline.lessons_page.equation_map import equations_by_line, functions_used
from pipeline.lessons_page.equations import equations
from pipeline.lessons_page.exercises import EXERCISES
from pipeline.lessons_page.source_view import changes, listing
from pipeline.params import load_params

needs_browser = pytest.mark.skipif(
    bool(browser.is_missing()), reason=f"the page is not looked at: {browser.is_missing()}"
)
ORDER = list(load_params(REPOSITORY / "params.yaml").implementations)
MODULE = re.search(r"<<'END'\n(.*?)END\n", (REPOSITORY / ".ci/eighth").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def clone(make_clone: Callable[..., Clone]) -> Clone:
    clone = make_clone(*ORDER)
    clone.write_params(clone.params() | {"benchmark": TINY["benchmark"] | {"processes": 0}})
    clone.run("dvc", "repro")
    return clone


@pytest.fixture(scope="module")
def page(clone: Clone) -> str:
    return (clone.path / "lessons.html").read_text()


@pytest.fixture(scope="module")
def opened(clone: Clone, page: str):
    # A copy, since other tests change the clone.
    shutil.copy(clone.path / "lessons.html", clone.path / "opened.html")
    with browser.chromium() as opened:
        browser.prefer(opened, "light")
        opened.get((clone.path / "opened.html").as_uri())
        yield opened


def section(page: str, name: str) -> str:
    """What stands in a lesson's section."""
    found = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    assert found, f"the page has no section {name}"
    return found[0]


def text(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", markup))


def links(source: str, problem: str) -> dict[str, list[str]]:
    """The left sides of the equations that a line of code computes."""
    of_problem = equations(load_problem(problem).__doc__ or "")
    lines = source.splitlines()
    return {
        lines[line - 1].strip(): [of_problem[number - 1].left for number in numbers]
        for line, numbers in equations_by_line(source, of_problem).items()
    }


def source_of(name: str) -> str:
    return (REPOSITORY / implementation_file(LESSONS[name], name)).read_text()


# Which line computes which equation.

FORWARD = ["h", "h_relu", "y_pred"]
BACKWARD = ["grad_y_pred", "grad_w2", "grad_h_relu", "grad_h", "grad_w1"]


@pytest.mark.parametrize("name", LESSONS)
def test_every_equation_is_computed_by_a_line(name: str):
    computed = {left for lefts in links(source_of(name), LESSONS[name]).values() for left in lefts}
    assert computed == {each.left for each in equations(load_problem(LESSONS[name]).__doc__ or "")}


def test_by_hand_a_line_computes_what_it_assigns():
    for line, lefts in links(source_of("numpy_arrays"), "two_layer").items():
        assert lefts == [re.split(r"\W+", line.removeprefix("self."))[0]]


def test_what_no_line_assigns_is_computed_on_the_way():
    found = links(source_of("torch_autograd"), "two_layer")
    assert found["y_pred = (x @ self.w1).relu() @ self.w2"] == FORWARD
    assert found["loss = torch.nn.functional.mse_loss(y_pred, y)"] == ["loss"]
    assert found["loss.backward()"] == BACKWARD
    assert "self.w1.grad = self.w2.grad = None" not in found
    found = links(source_of("tensorflow_graph"), "two_layer")
    assert found["grad_w1, grad_w2 = tape.gradient(loss, [self.w1, self.w2])"] == BACKWARD


def test_functions_of_the_file_are_followed():
    found = links(source_of("torch_function"), "two_layer")
    assert found["return h.clamp(min=0)"] == ["h_relu"]
    assert found["return grad_h_relu * (h > 0)"] == ["grad_h"]
    assert found["y_pred = ReLU.apply(x @ self.w1) @ self.w2"] == FORWARD
    found = links(source_of("tensorflow_scan"), "recurrent")
    assert found["y_pred = self._forward(x, ends)"] == ["h[0]", "z[t]", "h[t]", "y_pred"]
    assert found["return tf.nn.relu(z + h @ self.wh)"] == ["h[t]"]
    assert found["start = tf.zeros([tf.shape(x)[1], self.wh.shape[0]], x.dtype)"] == ["h[0]"]
    assert found["return tf.gather_nd(states, ends) @ self.wo"] == ["y_pred"]


def test_a_quantity_with_two_equations_is_assigned_in_their_order():
    found = links(source_of("torch_loop"), "recurrent")
    assert found["h = x.new_zeros(batch_sizes[0], len(self.wh))"] == ["h[0]"]
    assert found["h = (z + h[:running] @ self.wh).relu()"] == ["h[t]"]


def test_a_lesson_that_is_not_ours_is_linked_by_the_same_rules():
    assert MODULE
    found = links(MODULE[1], "two_layer")
    assert found["return (x @ self.w1).relu() @ self.w2"] == FORWARD
    assert found["loss = torch.nn.functional.mse_loss(self(x), y)"] == [*FORWARD, "loss"]
    assert found["self.optimizer.step()"] == ["w1", "w2"]
    changed = source_of("torch_autograd").replace(
        "y_pred = (x @ self.w1).relu() @ self.w2", "h = x @ self.w1\n        y_pred = h.relu() @ self.w2"
    )
    assert links(changed, "two_layer")["y_pred = h.relu() @ self.w2"] == ["h_relu", "y_pred"]


# The code, and what changes.


def test_all_lines_of_a_file_are_there_and_step_is_open():
    source = source_of("torch_loop")
    runs = listing(source, functions_used(source))
    numbers = [line.number for run in runs for line in run.lines]
    blank = {number for number, line in enumerate(source.splitlines(), 1) if not line}
    assert set(numbers) | blank == set(range(1, len(source.splitlines()) + 1))
    assert numbers == sorted(set(numbers))
    opened = "".join(text(line.html) for run in runs if not run.title for line in run.lines)
    assert "loss.backward()" in opened
    assert "def _forward" in opened
    assert "def predict" not in opened


def test_a_difference_marks_words_and_folds_what_is_the_same():
    runs = changes(source_of("torch_tensors"), source_of("torch_autograd"))
    shown = [line for run in runs if not run.title for line in run.lines]
    added = [line.html for line in shown if line.sign == "+"]
    assert any("<mark>, requires_grad=True</mark>" in line for line in added)
    assert {line.sign for run in runs if run.title for line in run.lines} == {""}
    rebuilt = [text(line.html) for run in runs for line in run.lines if line.sign != "−"]
    assert source_of("torch_autograd").endswith("\n".join(rebuilt) + "\n")


# The page.


@pytest.mark.parametrize("name", ORDER)
def test_each_lesson_has_its_idea_equations_code_graph_and_cost(clone: Clone, page: str, name: str):
    found = section(page, name)
    file = implementation_file(LESSONS[name], name)
    said = " ".join(text(found).split())
    idea = (REPOSITORY / file).read_text().split('"""')[1].split("\n\n")
    for paragraph in idea:
        if not paragraph.startswith("    "):
            assert " ".join(paragraph.replace("`", "").split()) in said
    of_problem = equations(load_problem(LESSONS[name]).__doc__ or "")
    for each in of_problem:
        assert each.mathml in found
    for line in (REPOSITORY / file).read_text().splitlines():
        assert line.strip() in text(found)
    evaluation = json.loads((clone.path / f"results/{name}/evaluation.json").read_text())
    assert f"{evaluation['test_loss']:.4f}" in found
    assert f"gradient off by {evaluation['gradient_relative_error']:.1e}, at most 1e-03" in said
    assert "there was no benchmark" in found
    graphs = json.loads((clone.path / f"results/{name}/graph.json").read_text())["graphs"]
    for node in (node for graph in graphs for node in graph["nodes"]):
        assert html.escape(node["name"] or node["label"]) in found
    # Data and weights stand once in each band that uses them.
    assert found.count('<g class="node') >= sum(len(graph["nodes"]) for graph in graphs)


def test_lessons_are_in_the_order_of_params_and_in_the_contents(page: str):
    assert re.findall(r'<section id="(.*?)"', page) == [*ORDER, "static-and-dynamic"]
    contents = re.findall(r'href="#(.*?)"', page.split("</nav>", maxsplit=1)[0])
    assert contents == ["top", *ORDER, "static-and-dynamic"]


def test_static_and_dynamic_graphs_are_shown_beside_each_other(clone: Clone, page: str):
    both = section(page, "static-and-dynamic")
    assert both.count("<svg") == 3
    loop = json.loads((clone.path / "results/torch_loop/graph.json").read_text())["graphs"]
    for graph in loop:
        assert f"{len(graph['nodes'])} nodes for {graph['title'].partition(':')[0].lower()}" in both
    assert len({len(graph["nodes"]) for graph in loop}) == 2
    assert "backward" not in re.findall(r'<g class="node (\w+)', both)


def test_it_is_small_needs_no_network_and_is_made_without_a_framework(clone: Clone, page: str):
    assert len(page.encode()) <= 1_500_000
    assert not re.search(r"""(src|href)=["']https?:|@import|url\(""", page)
    imported = "import sys, stages.report; print(sorted({'torch', 'tensorflow', 'mlflow'} & sys.modules.keys()))"
    assert clone.run("python", "-c", imported).stdout == "[]\n"


def test_the_same_results_make_the_same_page(clone: Clone, page: str):
    clone.run("dvc", "repro", "-f", "-s", "report")
    assert (clone.path / "lessons.html").read_text() == page


def test_an_edited_lesson_changes_its_code_and_its_graph(clone: Clone, page: str):
    file = implementation_file("two_layer", "torch_autograd")
    before = (clone.path / file).read_text()
    clone.edit(str(file), "(x @ self.w1).relu() @", "(x @ self.w1).relu().tanh() @")
    clone.run("dvc", "repro", "train@torch_autograd")
    clone.run("python", "-m", "stages.report")
    changed = section((clone.path / "lessons.html").read_text(), "torch_autograd")
    (clone.path / file).write_text(before)
    clone.run("dvc", "repro")
    assert "TanhBackward0" in changed
    assert "TanhBackward0" not in section(page, "torch_autograd")
    assert "(x @ self.w1).relu().tanh() @ self.w2" in text(changed)
    assert (clone.path / "lessons.html").read_text() == page


def test_an_eighth_is_on_the_page_by_itself(clone: Clone, page: str):
    params = clone.params()
    file = clone.path / "pipeline/lessons/two_layer/torch_eighth.py"
    assert MODULE
    file.write_text(MODULE[1])
    clone.write_params(params | {"implementations": params["implementations"] | {"torch_eighth": "two_layer"}})
    clone.run("dvc", "repro", "report")
    eighth = section((clone.path / "lessons.html").read_text(), "torch_eighth")
    file.unlink()
    clone.write_params(params)
    clone.run("dvc", "repro")
    assert "torch.nn.Module" in text(eighth)
    assert "Try it" not in eighth
    assert "tensorflow_graph" in eighth.split("What changes")[1]  # the one before it, of the same problem
    assert "AccumulateGrad" in eighth


@pytest.mark.parametrize("name", ["numpy_arrays", "tensorflow_scan"])
def test_a_page_of_one_lesson(clone: Clone, name: str):
    params = clone.params()
    clone.write_params(params | {"implementations": {name: params["implementations"][name]}})
    clone.run("dvc", "repro", "report")
    page = (clone.path / "lessons.html").read_text()
    clone.write_params(params)
    clone.run("dvc", "repro")
    assert re.findall(r'<section id="(.*?)"', page) == [name]
    assert "Everything is new" in section(page, name)


# What a student can try.


def test_exercises_are_of_lessons_that_are_there():
    assert EXERCISES.keys() <= LESSONS.keys()


@pytest.mark.faults  # minutes; .ci/run has them
@pytest.mark.parametrize("name", EXERCISES)
def test_an_exercise_does_what_the_page_promises(clone: Clone, page: str, name: str):
    exercise, file = EXERCISES[name], implementation_file(LESSONS[name], name)
    shown = text(section(page, name).split('class="try"')[1])
    for said in (*exercise.old.splitlines(), *exercise.new.splitlines(), exercise.command, exercise.promised):
        assert said in shown
    before = (clone.path / file).read_text()
    assert before.count(exercise.old) == 1
    (clone.path / file).write_text(before.replace(exercise.old, exercise.new))
    printed = clone.run("bash", "-c", f"{exercise.command} 2>&1", succeeds=None).stdout
    (clone.path / file).write_text(before)
    rows = [line for line in printed.splitlines() if exercise.promised in line]
    assert rows, printed
    if "✗" in exercise.promised:
        assert [row.split()[0] for row in rows] == [name]
    if exercise.times:
        assert len(rows) == exercise.times


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
    from selenium.webdriver.common.by import By

    opened.find_element(By.TAG_NAME, "body").send_keys(key)
    return opened.execute_async_script("setTimeout(() => arguments[0](location.hash), 100)")


@needs_browser
def test_nothing_is_fetched_and_nothing_goes_wrong(opened: Any, clone: Clone):
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = {each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith(("chrome:", "data:"))} == {(clone.path / "opened.html").as_uri()}
    assert opened.get_log("browser") == []


@needs_browser
def test_a_line_and_its_equations_mark_each_other(opened: Any):
    name = "torch_autograd"
    source = source_of(name).splitlines()
    backward = next(number for number, line in enumerate(source, 1) if line.strip() == "loss.backward()")
    hover(opened, f"#{name}-L{backward} code")
    assert marked(opened, f"#{name} .step") == [f"{name}-L{backward}", *(f"{name}-e{each}" for each in range(5, 10))]
    y_pred = next(number for number, line in enumerate(source, 1) if "relu() @" in line)
    hover(opened, f"#{name}-e3")
    assert marked(opened, f"#{name} .step") == [f"{name}-L{y_pred}", f"{name}-e3"]
    assert marked(opened, f"#{name} .drawn") == ["y_pred"]
    hover(opened, f"#{name} .drawn [data-name='loss']")
    assert f"{name}-e4" in marked(opened, f"#{name} .step")
    hover(opened, "h1")
    assert marked(opened, "main") == []


@needs_browser
def test_keys_go_from_lesson_to_lesson_and_the_contents_follow(opened: Any):
    opened.execute_script("location.hash = ''; scrollTo(0, 0)")
    assert press(opened, "j") == f"#{ORDER[0]}"
    assert press(opened, "n") == f"#{ORDER[1]}"
    current = "return document.querySelector('nav [aria-current]').textContent"
    assert opened.execute_script(current) == ORDER[1]
    assert press(opened, "k") == f"#{ORDER[0]}"
    from selenium.webdriver.common.keys import Keys

    assert press(opened, Keys.ARROW_RIGHT) == f"#{ORDER[1]}"
    assert press(opened, Keys.CONTROL + "j") == f"#{ORDER[1]}"


@needs_browser
def test_a_link_to_a_line_that_is_folded_opens_it(opened: Any, clone: Clone):
    opened.get((clone.path / "opened.html").as_uri() + "#numpy_arrays-L1")
    box = "return document.getElementById('numpy_arrays-L1').getBoundingClientRect()"
    assert opened.execute_script(f"{box}.height") > 0
    assert 0 < opened.execute_script(f"{box}.top") < opened.execute_script("return innerHeight")


@needs_browser
def test_a_link_to_a_line_marks_its_equations(opened: Any, clone: Clone):
    opened.get("about:blank")
    line = next(
        number
        for number, text in enumerate(source_of("numpy_arrays").splitlines(), 1)
        if text.strip().startswith("loss = np")
    )
    opened.get((clone.path / "opened.html").as_uri() + f"#numpy_arrays-L{line}")
    assert marked(opened, ".step") == [f"numpy_arrays-L{line}", "numpy_arrays-e4"]


@needs_browser
@pytest.mark.parametrize("width", [380, 1100, 1900])
def test_it_fits(opened: Any, width: int):
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    )
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    read = "[...document.querySelectorAll('main p, main code, main td, main dd')]"
    sizes = opened.execute_script(f"return {read}.map(each => getComputedStyle(each).fontSize)")
    assert min(float(size.removesuffix("px")) for size in sizes) >= 12
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened: Any, clone: Clone, scheme: str):
    browser.prefer(opened, scheme)
    for file in ("opened.html", "report.html"):
        opened.get((clone.path / file).as_uri())
        assert browser.violations(opened) == []
