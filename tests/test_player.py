"""The step player of lessons.html: its numbers are the recorded ones, and those of the equations after a change."""

import re
from collections.abc import Iterator
from typing import Any

import browser
import numpy as np
import pytest
from conftest import HOST, LESSONS, Clone
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pipeline.contract import Array
from pipeline.graphs.graph import Example, read_example
from pipeline.graphs.values import record_example, small_step
from pipeline.lessons_page.player import tree
from pipeline.problems import PROBLEMS
from pipeline.quantities.paper import Paper
from pipeline.runtimes import open_implementation

in_a_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(browser.is_missing()), reason=f"the page is not opened: {browser.is_missing()}"),
]


def numbers(value: Any) -> Array:
    return np.array(value, np.float64)  # None becomes NaN


def paper_of(problem: str, example: Example, **weights: Any) -> Paper:
    batch = {key: np.array(value) for key, value in example.batch.items()}
    initial = {key: np.array(value) for key, value in (example.weights | weights).items()}
    return Paper(problem, initial, batch, example.learning_rate)


def keys_of(problem: str, example: Example) -> list[str]:
    """The names of the quantities on the page, such as h[3]."""
    lines = paper_of(problem, example).equations
    names = [lines[value.equation - 1].name for value in example.values]
    return [
        name if value.index is None else f"{name}[{value.index}]"
        for name, value in zip(names, example.values, strict=True)
    ]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_small_batch_has_one_decimal_and_active_and_inactive_relus(problem: str):
    paper = small_step(problem)
    for array in (*paper.weights.values(), *paper.batch.values()):
        np.testing.assert_array_equal(array, np.round(array, 1))
        assert array.shape[-1] <= 3
    switched = [paper.values[key] > 0 for line, key, _ in paper.order if "relu(" in line.right]
    assert {bool(on) for array in switched for on in array.flat} == {True, False}


@pytest.mark.parametrize(("name", "problem"), LESSONS.items())
def test_recorded_quantities_equal_those_of_the_equations(name: str, problem: str):
    example = record_example(name, problem, open_implementation(name, problem, HOST).runtime)
    paper = paper_of(problem, example)
    for value, key, (line, (_, index), time) in zip(example.values, paper.values, paper.order, strict=True):
        assert (value.equation, value.index, value.time) == (line.number, index, time)
        np.testing.assert_allclose(numbers(value.value), paper.values[key], rtol=1e-12, atol=1e-15)
        # No gradient leads to the start of a loop over time, which is a constant.
        assert value.recorded == (key != ("grad_h", 0))
        assert (value.line > 0) == value.recorded


def test_equation_that_the_page_cannot_compute_is_named():
    with pytest.raises(ValueError, match="cannot make a tree of x or y"):
        tree("x or y")


@pytest.fixture(scope="module")
def examples(finished_pipeline: Clone) -> dict[str, Example]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished_pipeline.path)
        return {name: read_example(name) for name in LESSONS}


@pytest.fixture(scope="module")
def opened(finished_pipeline: Clone) -> Iterator[Any]:
    with browser.chromium() as opened:
        browser.prefer(opened, "light")
        opened.get((finished_pipeline.path / "lessons.html").as_uri())
        yield opened


class Panel:
    """The player of a lesson, driven by its buttons, fields and keys."""

    def __init__(self, opened: Any, name: str) -> None:
        self.opened, self.name = opened, name
        self.element = opened.find_element(By.CSS_SELECTOR, f"#{name} .player")

    def all(self, selector: str) -> list[Any]:
        return self.element.find_elements(By.CSS_SELECTOR, selector)

    def press(self, way: str) -> None:
        self.opened.execute_script("arguments[0].click()", self.all(f"[data-go={way}]")[0])

    def status(self) -> str:
        return self.all(".status")[0].text

    def matrices(self, selector: str) -> list[tuple[str, Array]]:
        """The labels and the numbers of the matrices in a part of the player."""
        script = """return [...arguments[0].querySelectorAll(arguments[1])].map(each => [
            each.querySelector('code').textContent,
            [...each.querySelectorAll('tr')].map(row => [...row.cells].map(cell => cell.dataset.value))])"""
        return [
            (label, np.array(rows, np.float64))
            for label, rows in self.opened.execute_script(script, self.element, selector)
        ]

    def texts(self, selector: str) -> dict[str, str]:
        """The cells of matrices in reading order, by label."""
        script = """return [...arguments[0].querySelectorAll(arguments[1])].map(each => [
            each.dataset.key, each.querySelector('table').textContent])"""
        return dict(self.opened.execute_script(script, self.element, selector))


@pytest.fixture(params=LESSONS)
def panel(opened: Any, request: pytest.FixtureRequest) -> Iterator[Panel]:
    panel = Panel(opened, request.param)
    panel.press("first")
    yield panel
    opened.execute_script("arguments[0].click()", panel.all(".reset")[0])


def as_matrix(value: Any) -> Array:
    return np.atleast_2d(numbers(value))


class TestInABrowser:
    pytestmark = in_a_browser

    def test_each_step_shows_the_recorded_numbers_and_its_operands(self, panel: Panel, examples: dict[str, Example]):
        example, problem = examples[panel.name], LESSONS[panel.name]
        paper = paper_of(problem, example)
        known = {line.name for line in paper.equations} | {"x", "y", "learning_rate"}
        for value, key in zip(example.values, keys_of(problem, example), strict=True):
            (label, shown), *operands = panel.matrices(".computation .matrix")
            assert label == key
            np.testing.assert_array_equal(shown, as_matrix(value.value))
            used = {operand.removesuffix(".T").split("[")[0].split(" ")[0] for operand, _ in operands}
            assert used >= paper.equations[value.equation - 1].operands & known
            panel.press("next")
        assert [label for label, _ in panel.matrices(".tiles .matrix")] == keys_of(problem, example)

    def test_rows_of_ended_examples_name_their_source(self, opened: Any):
        panel = Panel(opened, "torch_loop")
        panel.press("first")
        remarks, used = {}, {}
        while (key := panel.matrices(".computation .matrix")[0][0]) not in remarks:
            remarks[key] = panel.all(".remark")[0].text
            used[key] = {label for label, _ in panel.matrices(".used")}
            panel.press("next")
        assert "Row 1 of grad_h[1] is that of grad_h[length], because example 1 ends at t = 1." in remarks["grad_h[1]"]
        assert "Row 2 of grad_h[3] is that of grad_h[length]" in remarks["grad_z[3]"]
        assert "grad_h[length]" in used["grad_h[1]"] & used["grad_z[3]"]
        assert used["y_pred"] == {"h[1]", "h[3]", "wo"}

    def test_rows_that_step_receives_name_their_examples(self, opened: Any):
        rows = {
            name: [row.text for row in Panel(opened, name).all(".placed th")]
            for name in ("tensorflow_scan", "torch_loop")
        }
        assert rows["torch_loop"] == [
            *("example 2, t = 1", "example 1, t = 1", "example 2, t = 2", "example 2, t = 3"),
            *("example 2", "example 1"),
        ]
        assert rows["tensorflow_scan"] == [f"example {example}" for example in (1, 2, 2, 2, 1, 2)]
        assert (
            Panel(opened, "torch_loop").all(".order")[0].text == "The longest example comes first: example 2, then 1."
        )
        assert not Panel(opened, "tensorflow_scan").all(".order")[0].text

    def test_transposed_operands_equal_the_transposed_inputs(self, opened: Any, examples: dict[str, Example]):
        for name in LESSONS:
            panel = Panel(opened, name)
            panel.press("last")
            given = dict(panel.matrices(".given .matrix"))
            panel.press("first")
            for _ in examples[name].values:
                for label, array in panel.matrices(".computation .matrix"):
                    if label.endswith(".T") and label.removesuffix(".T") in given:
                        np.testing.assert_array_equal(array, given[label.removesuffix(".T")].T)
                panel.press("next")

    def test_changed_number_updates_all_quantities_by_the_equations(self, panel: Panel, examples: dict[str, Example]):
        example, problem = examples[panel.name], LESSONS[panel.name]
        key = next(iter(example.weights))
        field = panel.all(f".given [data-key={key}] input")[0]
        field.send_keys(Keys.CONTROL + "a")
        field.send_keys("-3.7")
        weights = numbers(example.weights[key])
        weights[0, 0] = -3.7
        paper = paper_of(problem, example, **{key: weights})
        shown = panel.matrices(".tiles .matrix")
        for (label, array), (_, quantity, _) in zip(shown, paper.order, strict=True):
            np.testing.assert_allclose(array, as_matrix(paper.values[quantity]), rtol=1e-12, atol=1e-15, err_msg=label)
        size = field.find_element(By.XPATH, "..").get_attribute("style").removeprefix("--size:").strip(" ;")
        assert float(size) == 3.7 / np.abs(weights).max()
        assert dict(panel.matrices(".given .matrix"))[key][0, 0] == -3.7
        assert "computed on this page" in panel.all(".edited")[0].text
        assert panel.all(".tiles .changed")
        for _ in example.values:  # an operand has the marks of its tile
            marks = panel.texts(".tiles .matrix")
            for label, text in panel.texts(".computation .matrix").items():
                assert label in example.weights or text == marks.get(label, text)
            panel.press("next")
        panel.all(".reset")[0].send_keys(Keys.ENTER)
        assert not panel.all(".changed")
        for (_, array), value in zip(panel.matrices(".tiles .matrix"), example.values, strict=True):
            np.testing.assert_array_equal(array, as_matrix(value.value))

    def test_field_without_a_number_is_invalid_and_reset_when_left(self, panel: Panel):
        field = panel.all(".given input")[0]
        before = field.get_attribute("value")
        field.send_keys(Keys.CONTROL + "a")
        field.send_keys(Keys.DELETE)
        assert field.get_attribute("aria-invalid") == "true"
        field.send_keys(Keys.TAB)
        assert (field.get_attribute("aria-invalid"), field.get_attribute("value")) == (None, before)

    def test_keys_move_the_player_and_not_the_page(self, panel: Panel, examples: dict[str, Example]):
        opened, count = panel.opened, len(examples[panel.name].values)
        before = opened.execute_script("return location.hash")
        for key, place in (
            (Keys.ARROW_RIGHT, 2),
            (Keys.END, count),
            (Keys.ARROW_RIGHT, count),
            (Keys.ARROW_LEFT, count - 1),
            (Keys.HOME, 1),
        ):
            panel.all("[data-go=next]")[0].send_keys(key)
            assert panel.status().startswith(f"{place} of {count}")
        panel.all("input[type=range]")[0].send_keys(Keys.ARROW_RIGHT)
        assert panel.status().startswith(f"2 of {count}")
        assert opened.execute_script("return location.hash") == before

    def test_line_equation_and_node_of_the_current_quantity_are_marked(
        self, panel: Panel, examples: dict[str, Example]
    ):
        value = examples[panel.name].values[-1]
        panel.press("last")
        marked = "return [...document.querySelectorAll(arguments[0])].map(each => each.dataset.eq ?? each.dataset.name)"
        section = f"#{panel.name}"
        assert panel.opened.execute_script(marked, f"{section} .equations .marked") == [str(value.equation)]
        assert panel.opened.execute_script(marked, f"{section} .code .marked") == [str(value.equation)]
        assert panel.opened.execute_script(marked, f"{section} .tiles .current.marked") == [str(value.equation)]
        # Autograd records no update. Then the weight's own node is not marked in its place.
        key = keys_of(LESSONS[panel.name], examples[panel.name])[-1]
        assert panel.all(".picture .marked") == panel.all(f".picture .update[data-name={key}]")
        panel.press("first")
        assert panel.all(".picture .marked")

    def test_node_of_the_current_time_step_is_marked(self, opened: Any, examples: dict[str, Example]):
        panel = Panel(opened, "torch_loop")
        panel.press("first")
        keys = keys_of(LESSONS["torch_loop"], examples["torch_loop"])
        places = []
        for key in keys:
            if key in ("h[1]", "h[2]", "h[3]", "grad_h[2]"):
                nodes = panel.all(".picture [data-name=h]")
                places.append([index for index, node in enumerate(nodes) if "marked" in node.get_attribute("class")])
            panel.press("next")
        assert places == [[0], [1], [2], [2]]  # grad_h[2] is computed at t = 3, where backward passes that time step

    def test_tab_key_reaches_every_control(self, panel: Panel):
        opened = panel.opened
        controls = "[...document.querySelectorAll(arguments[0])].filter(each => each.offsetParent)"
        count = opened.execute_script(f"return {controls}.length", f"#{panel.name} .player :is(button, input)")
        panel.all("button")[0].send_keys("")
        opened.execute_script("arguments[0].focus()", panel.all("button")[0])
        reached = 0
        while opened.execute_script("return document.activeElement.closest('.player') !== null"):
            reached += 1
            opened.switch_to.active_element.send_keys(Keys.TAB)
        assert reached == count

    def test_arrow_keys_move_between_nodes_of_a_graph(self, opened: Any):
        first = opened.find_element(By.CSS_SELECTOR, ".drawn svg .node[tabindex='0']")
        opened.execute_script("arguments[0].focus()", first)
        first.send_keys(Keys.ARROW_RIGHT)
        active = opened.switch_to.active_element
        assert active != first
        assert active.get_attribute("tabindex") == "0"
        assert first.get_attribute("tabindex") == "-1"

    def test_hovering_over_an_equation_shows_its_values(self, panel: Panel, examples: dict[str, Example]):
        example = examples[panel.name]
        keys = keys_of(LESSONS[panel.name], example)
        pointed = "document.querySelector(arguments[0]).dispatchEvent(new Event('pointerover', {bubbles: true}))"
        for value, key in zip(example.values, keys, strict=True):
            panel.opened.execute_script(pointed, f"#{panel.name}-e{value.equation}")
            labels = "return [...document.querySelectorAll('.bar .values code')].map(each => each.textContent)"
            before = [key] if key in example.weights else []  # a weight is shown before and after the step
            of_equation = [k for v, k in zip(example.values, keys, strict=True) if v.equation == value.equation]
            assert panel.opened.execute_script(labels) == [*before, *of_equation]

    def test_printed_page_shows_all_quantities_alike(self, panel: Panel):
        values = """return new Set([...arguments[0].querySelectorAll(arguments[1])]
            .map(each => getComputedStyle(each)[arguments[2]])).size"""
        cells, frames = (".tiles .plus", "color"), (".tiles > *", "border")
        panel.press("next")
        assert panel.opened.execute_script(values, panel.element, *cells) == 2
        panel.opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        try:
            assert panel.opened.execute_script(values, panel.element, *cells) == 1
            assert panel.opened.execute_script(values, panel.element, *frames) == 1
            assert not any(element.is_displayed() for element in panel.all(".controls, .status, .now, .how"))
        finally:
            panel.opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})

    def test_suggested_change_sets_a_column_of_relu_to_0(self, panel: Panel, examples: dict[str, Example]):
        example, problem = examples[panel.name], LESSONS[panel.name]
        text = panel.all(".invitation")[0].text.replace("−", "-")
        change = re.search(r"Try (.+) in row (\d+), column (\d+) of (\w+): .* column (\d+) of (\S+)\. ", text)
        assert change
        number, row, column, weight, zeros, key = change.groups()
        weights = numbers(example.weights[weight])
        weights[int(row) - 1, int(column) - 1] = float(number)
        place = keys_of(problem, example).index(key)
        for paper, is_off in (
            (paper_of(problem, example), False),
            (paper_of(problem, example, **{weight: weights}), True),
        ):
            assert (np.nansum(paper.values[paper.order[place][1]][:, int(zeros) - 1]) == 0) == is_off

    def test_bar_of_a_narrow_window_does_not_cover_the_marked_line(self, opened: Any):
        size = opened.get_window_size()
        opened.set_window_size(500, 900)
        try:
            for block in ("start", "end"):
                covered = opened.execute_script(
                    """const line = document.querySelector("#torch_loop .code .line[data-eq]");
                    line.style.scrollMarginBlock = "4rem";
                    line.scrollIntoView({block: arguments[0], behavior: "instant"});
                    line.dispatchEvent(new Event("pointerover", {bubbles: true}));
                    const [a, b] = [line, document.querySelector(".bar")].map(each => each.getBoundingClientRect());
                    return [b.height, a.top < b.bottom && b.top < a.bottom]""",
                    block,
                )
                assert covered[0] > 0
                assert not covered[1]
        finally:
            opened.set_window_size(size["width"], size["height"])

    def test_graph_of_a_long_loop_is_shown_in_part(self, opened: Any):
        assert Panel(opened, "torch_loop").all(".picture svg.part")
        assert not Panel(opened, "torch_autograd").all(".picture svg.part")
