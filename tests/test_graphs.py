"""The graphs of the lessons' steps: what is in them, and that their pictures can be read."""

import importlib.util
import json
import random
import re
import sys
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import browser
import numpy as np
import pytest
from conftest import HOST, LESSONS, REPOSITORY, Lesson

from pipeline import graphs as tracing
from pipeline.contract import Weights
from pipeline.lessons_page import drawing, layout
from pipeline.runtimes import Loop, load_runtime, open_implementation

BY_HAND = ["h", "h_relu", "y_pred", "loss", "grad_y_pred", "grad_w2", "grad_h_relu", "grad_h", "grad_w1", "w1", "w2"]


def graphs_of(name: str, dtype: str = "float32") -> list[dict[str, Any]]:
    opened = open_implementation(name, LESSONS[name], HOST)
    return tracing.trace(name, LESSONS[name], opened.create, dtype)["graphs"]


@pytest.fixture(scope="module")
def graphs() -> dict[str, list[dict[str, Any]]]:
    return {name: graphs_of(name) for name in LESSONS}


def nodes(graph: dict[str, Any], **about: Any) -> list[dict[str, Any]]:
    return [node for node in graph["nodes"] if all(node[key] == value for key, value in about.items())]


def node(graph: dict[str, Any], **about: Any) -> dict[str, Any]:
    (found,) = nodes(graph, **about)
    return found


def taken(graph: dict[str, Any], target: dict[str, Any]) -> list[tuple[str, str]]:
    """What a node takes: names, or labels where there is none, and shapes."""
    by_id = {each["id"]: each for each in graph["nodes"]}
    sources = [(by_id[edge["source"]], edge["shape"]) for edge in graph["edges"] if edge["target"] == target["id"]]
    return [(source["name"] or source["label"], shape) for source, shape in sources]


# What is in them.


@pytest.mark.parametrize("name", ["numpy_arrays", "torch_tensors"])
def test_what_is_written_by_hand_is_there_by_its_name_and_in_its_order(graphs: Any, name: str):
    (graph,) = graphs[name]
    operations = nodes(graph, kind="operation")
    assert [each["name"] for each in operations if each["name"]] == BY_HAND
    groups = [each["group"] for each in operations]
    assert groups == sorted(groups, key=["forward", "backward", "update"].index)
    assert [each["name"] for each in operations if each["group"] == "forward"][-1] == "loss"
    assert {each["name"] for each in operations if each["group"] == "update"} == {"", "w1", "w2"}
    for target, expected in {
        "h": [("x", "N × inputs"), ("w1", "inputs × hidden")],
        "grad_w2": [("h_relu", "hidden × N"), ("grad_y_pred", "N × outputs")],
        "grad_h_relu": [("grad_y_pred", "N × outputs"), ("w2", "outputs × hidden")],
    }.items():
        assert taken(graph, node(graph, name=target)) == expected
    (minus,) = [each for each in operations if each["name"] == "w1"]
    assert taken(graph, minus)[0] == ("w1", "inputs × hidden")
    assert "learning_rate" in taken(graph, minus)[1][0]


def test_the_autograd_graph_is_what_autograd_has(graphs: Any):
    (graph,) = graphs["torch_autograd"]
    labels = [each["label"] for each in graph["nodes"]]
    assert sorted(labels) == sorted(
        ["AccumulateGrad", "MmBackward0", "ReluBackward0", "AccumulateGrad", "MmBackward0", "MseLossBackward0"]
    )
    assert {each["name"] for each in nodes(graph, kind="weight")} == {"w1", "w2"}
    assert taken(graph, node(graph, name="y_pred")) == [
        ("ReluBackward0", "N × hidden"),
        ("w2", "hidden × outputs"),
    ]
    assert taken(graph, node(graph, name="loss")) == [("y_pred", "N × outputs")]


def test_a_function_of_our_own_stands_under_its_name(graphs: Any):
    (graph,) = graphs["torch_function"]
    assert taken(graph, node(graph, label="ReLU")) == [("h", "N × hidden")]
    assert not nodes(graph, label="ReluBackward0")


def test_the_traced_graph_holds_the_gradient_and_the_update(graphs: Any):
    (graph,) = graphs["tensorflow_graph"]
    assert [each["name"] for each in nodes(graph, label="AssignSub")] == ["w1", "w2"]
    assert {each["group"] for each in nodes(graph, kind="operation")} == {"forward", "backward", "update"}
    for each in nodes(graph, kind="operation"):
        assert (each["group"] == "backward") == each["detail"].startswith("gradient_tape/"), each
    names = {each["name"] for each in graph["nodes"]}
    assert {"x", "y", "w1", "w2", "y_pred", "loss", "grad_w1", "grad_w2"} <= names
    assert taken(graph, node(graph, name="grad_w1"))[0] == ("x", "N × inputs")
    # Nothing of the maths is folded away: the mask, and both factors of the gradient of mean((y_pred - y)²).
    labels = [each["label"] for each in graph["nodes"]]
    assert {"ReluGrad", "Mul(·, 2)", "Mul(1/(N·outputs), ·)", "Mul(learning_rate, ·)"} <= set(labels)
    assert not set(labels) & {"Const", "Identity", "NoOp", "Shape", "Reshape", "ReadVariableOp", "Sum"}


def test_a_loop_in_the_graph_is_one_node_with_its_body(graphs: Any):
    (graph,) = graphs["tensorflow_scan"]
    assert graph["title"].startswith("One graph for up to 2 and up to 4 time steps")
    forward, backward = nodes(graph, kind="loop")
    assert (forward["group"], backward["group"]) == ("forward", "backward")
    for loop, products in ((forward, 1), (backward, 2)):
        body = nodes(graph, within=loop["id"])
        assert sum(each["label"].startswith("MatMul") for each in body) == products
        assert {each["group"] for each in body} == {loop["group"], "data"}
    assert [taken(graph, each) for each in nodes(graph, within=forward["id"], label="MatMul")] == [
        [("h", "N × hidden"), ("wh", "hidden × hidden")]
    ]
    again = [edge for edge in graph["edges"] if edge["again"]]
    by_id = {each["id"]: each for each in graph["nodes"]}
    (state,) = [edge for edge in again if by_id[edge["source"]]["within"] == forward["id"]]
    assert (by_id[state["source"]]["label"], by_id[state["target"]]["name"]) == ("Relu", "h")
    assert node(graph, name="grad_wh")["within"] == backward["id"]
    # The gradient of wx is a sum over the time steps: that is maths, and stays.
    assert node(graph, name="grad_wx")["label"] == "Sum"


def test_a_loop_in_python_leaves_a_longer_graph_for_a_longer_batch(graphs: Any):
    short, long = graphs["torch_loop"]
    assert "2 time steps" in short["title"]
    assert "4 time steps" in long["title"]
    for graph, steps in ((short, 2), (long, 4)):
        assert len(nodes(graph, name="h", label="ReluBackward0")) == steps
        assert {each["name"] for each in nodes(graph, kind="weight")} == {"wx", "wh", "wo"}
    # All 16 time steps of the batch at once, then 7, 5, 3 and 1 running examples: no size is taken for another one.
    rows = {edge["shape"].removesuffix(" × hidden") for edge in long["edges"] if edge["shape"].endswith(" × hidden")}
    assert rows == {"16", "N", "5", "3", "2", "1", "inputs", "hidden"}


# What they depend on.


@pytest.mark.parametrize("name", LESSONS)
def test_a_graph_is_the_same_again_and_in_another_dtype(graphs: Any, name: str):
    assert graphs_of(name) == graphs[name]
    assert graphs_of(name, "float64") == graphs[name]
    assert json.loads(json.dumps(graphs[name])) == graphs[name]


def test_tracing_changes_nothing_around_it(lesson: Lesson):
    """Not the training, no random numbers, and nothing that Python calls at each line."""
    expected = lesson.run(lesson.placed(), 6)
    watcher, drawn, legacy = sys.gettrace(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    loop = lesson.placed()
    before = lesson.run(loop, 3)
    tracing.trace(lesson.name, lesson.problem, lesson.create, "float64")
    np.testing.assert_array_equal(np.concatenate([before, lesson.run(loop, 3)]), expected)
    assert sys.gettrace() is watcher
    assert random.getstate() == drawn
    assert str(np.random.get_state()) == legacy  # noqa: NPY002


def test_a_framework_that_is_not_known_has_no_graph():
    found = tracing.trace("toy_arrays", "two_layer", lambda *_: pytest.fail("run"), "float32")
    assert found == {"graphs": [], "why": "of toy no graph is read."}


MORE = {  # one more layer, of weights w3 of its own
    "numpy_arrays": [
        ("self.learning_rate =", "self.w3 = np.eye(len(self.w2), dtype=self.w2.dtype)\n        self.learning_rate ="),
        ("y_pred = h_relu @ self.w2", "h3 = h_relu @ self.w3\n        y_pred = np.tanh(h3) @ self.w2"),
        ("grad_w2 = h_relu.T @ grad_y_pred", "grad_w2 = np.tanh(h3).T @ grad_y_pred"),
        (
            "grad_h_relu = grad_y_pred @ self.w2.T",
            "grad_h3 = (grad_y_pred @ self.w2.T) * (1 - np.tanh(h3) ** 2)\n"
            "        grad_w3 = h_relu.T @ grad_h3\n        grad_h_relu = grad_h3 @ self.w3.T",
        ),
        ("        return loss", "        self.w3 -= self.learning_rate * grad_w3\n        return loss"),
    ],
    "torch_autograd": [
        (
            "self.learning_rate =",
            "self.w3 = torch.eye(len(self.w2), dtype=self.w2.dtype, requires_grad=True)\n        self.learning_rate =",
        ),
        (".relu() @ self.w2\n        loss", ".relu() @ self.w3).tanh() @ self.w2\n        loss"),
        ("y_pred = (x", "y_pred = ((x"),
    ],
    "tensorflow_graph": [
        (
            "self.learning_rate =",
            "self.w3 = tf.Variable(tf.eye(19, dtype=self.w2.dtype))\n        self.learning_rate =",
        ),
        ("y_pred = tf.nn.relu(x @ self.w1) @", "y_pred = tf.tanh(tf.nn.relu(x @ self.w1) @ self.w3) @"),
        ("grad_w1, grad_w2 =", "grad_w1, grad_w2, grad_w3 ="),
        ("[self.w1, self.w2])", "[self.w1, self.w2, self.w3])"),
        ("        return loss", "        self.w3.assign_sub(self.learning_rate * grad_w3)\n        return loss"),
    ],
}
FOUND = {
    "numpy_arrays": {
        ("h3", "matmul"),
        ("", "tanh"),
        ("grad_w3", "matmul"),
        ("grad_h3", "multiply"),
        ("w3", "subtract"),
    },
    "torch_autograd": {("w3", "AccumulateGrad"), ("", "TanhBackward0")},
    "tensorflow_graph": {("w3", "Variable"), ("", "Tanh"), ("", "TanhGrad"), ("w3", "AssignSub")},
}


def trace_source(name: str, problem: str, text: str, folder: Path) -> dict[str, Any]:
    """The graphs of an implementation that is written to a file of its own."""
    file = folder / f"{name}.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(f"changed_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    runtime = load_runtime(name)
    device = runtime.start(HOST)

    def create(weights: Weights, rate: float) -> Loop:
        return runtime.Loop(module.Implementation(weights, learning_rate=rate, device=device), weights)

    return tracing.trace(name, problem, create, "float32")


def test_a_step_that_cannot_be_traced_says_why(tmp_path: Path):
    """It uses the memory of an array, which no stand-in has."""
    text = (REPOSITORY / "pipeline/lessons/two_layer/numpy_arrays.py").read_text()
    text = text.replace("        # Forward pass.\n", "        x.__array_interface__['data']\n", 1)
    found = trace_source("numpy_arrays", "two_layer", text, tmp_path)
    assert found["graphs"] == []
    assert found["why"].startswith("its step could not be traced (AttributeError: ")


@pytest.mark.parametrize("name", MORE)
def test_one_more_layer_is_found_and_drawn(graphs: Any, name: str, tmp_path: Path):
    text = (REPOSITORY / "pipeline/lessons" / LESSONS[name] / f"{name}.py").read_text()
    for old, new in MORE[name]:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (graph,) = trace_source(name, LESSONS[name], text, tmp_path)["graphs"]
    (before,) = graphs[name]
    pairs = {(each["name"], each["label"]) for each in graph["nodes"]}
    assert pairs >= FOUND[name]
    assert not FOUND[name] & {(each["name"], each["label"]) for each in before["nodes"]}
    picture = drawing.svg(graph)
    for called, label in FOUND[name]:
        assert f">{called or label}</text>" in picture


FILLED = """
import numpy as np

class Implementation:
    def __init__(self, weights, *, learning_rate, device):
        self.wx, self.wh, self.wo = (weights[name].copy() for name in ("wx", "wh", "wo"))

    def place(self, batch):
        return batch["x"], batch["y"]

    def step(self, x, y):
        states = np.zeros((x.shape[1] + 1, len(x), len(self.wh)), x.dtype)
        for t in range(x.shape[1]):
            states[t + 1] = np.tanh(x[:, t] @ self.wx + states[t] @ self.wh)
        loss = np.linalg.norm(states[-1] @ self.wo - y)
        return loss
"""


def test_an_array_that_a_step_fills_by_and_by_is_followed(tmp_path: Path):
    short, long = trace_source("numpy_filled", "recurrent", FILLED, tmp_path)["graphs"]
    for graph, steps in ((short, 2), (long, 4)):
        assert {each["group"] for each in graph["nodes"]} == {"forward", "data"}, "the loss depends on all of it"
        written = [each for each in graph["nodes"] if each["label"].startswith("setitem")]
        assert len(written) == steps
        assert [taken(graph, each)[1] for each in written] == [("tanh", "N × hidden")] * steps
        assert taken(graph, node(graph, name="loss"))[0] == ("subtract", "N × outputs")
        drawing.svg(graph)


# How they look.


def pictures(picture: layout.Picture) -> list[layout.Picture]:
    return [picture, *(each for inside in picture.inside.values() for each in pictures(inside))]


def overlap(one: layout.Box, other: layout.Box) -> bool:
    return one.x < other.x + other.width and other.x < one.x + one.width and one.y < other.low and other.y < one.low


@pytest.mark.parametrize("name", LESSONS)
def test_nothing_overlaps(graphs: Any, name: str):
    for picture in (each for graph in graphs[name] for each in pictures(layout.arrange(graph))):
        boxes = [*picture.nodes.values(), *picture.shapes.values()]
        for one, other in combinations(boxes, 2):
            assert not overlap(one, other), (one, other)
        for box in boxes:
            assert box.x >= 0, box
            assert box.x + box.width <= picture.width, box
            assert box.y >= 0, box
            assert box.low <= picture.height, box


@pytest.mark.parametrize("name", LESSONS)
def test_bands_hold_their_own_and_nothing_else(graphs: Any, name: str):
    for picture in (layout.arrange(graph) for graph in graphs[name]):
        for one, other in combinations(picture.bands.values(), 2):
            assert not overlap(one, other)
        for key, box in picture.nodes.items():
            group = picture.of[key].get("band", picture.of[key]["group"])
            assert [each for each, band in picture.bands.items() if overlap(box, band)] == [group], picture.of[key]


@pytest.mark.parametrize("name", LESSONS)
def test_no_line_crosses_a_node_or_a_shape(graphs: Any, name: str):
    for picture in (each for graph in graphs[name] for each in pictures(layout.arrange(graph))):
        boxes = [*picture.nodes.values(), *picture.shapes.values()]
        inner = [box._replace(y=box.y + 1.5, height=box.height - 3) for box in boxes]  # lines end at their sides
        for points in [points for points, _ in picture.lines] + picture.again:
            for (x, y), (to_x, to_y) in pairwise(points):
                for part in np.linspace(0.02, 0.98, 25):
                    at = layout.Box("", x + (to_x - x) * part - 0.5, y + (to_y - y) * part - 0.5, 1, 1)
                    assert not [box for box in inner if overlap(at, box)], points


@pytest.mark.parametrize("name", LESSONS)
def test_every_node_and_edge_is_drawn(graphs: Any, name: str):
    for graph in graphs[name]:
        text = drawing.svg(graph)
        assert len(text) < 100_000
        assert text == drawing.svg(json.loads(json.dumps(graph)))
        assert not re.search(r"\d\.\d\d", text), "coordinates are rounded"
        root = ElementTree.fromstring(text)  # noqa: S314 (our own)
        assert root.get("role") == "img"
        assert next(iter(root)).text == graph["title"]
        assert not [each for each in root.iter() if each.get("id")]
        drawn = [(each.get("data-name"), (each.get("class") or "").split()) for each in root.iter()]
        for group in layout.GROUPS:
            names = [called for called, classes in drawn if {"node", group} <= set(classes)]
            assert sorted(map(str, names)) == sorted(each["name"] for each in nodes(graph, group=group))
        assert sum(classes == ["head"] for _, classes in drawn) == len(graph["edges"])
        shapes = {each.text for each in root.iter() if each.get("class") == "shape"} - {layout.LEGEND}
        assert shapes == {edge["shape"] for edge in graph["edges"] if edge["shape"] and not edge["again"]}


@pytest.mark.skipif(bool(browser.is_missing()), reason=browser.is_missing())
def test_texts_fit_in_a_real_browser(graphs: Any, tmp_path: Path):
    page = tmp_path / "page.html"
    pictures = "".join(drawing.svg(graph) for name in LESSONS for graph in graphs[name])
    page.write_text(f"<!doctype html><meta charset=utf-8><style>{drawing.STYLE}</style>{pictures}")
    outside = """
        return [...document.querySelectorAll('.node')].flatMap(node => {
            const box = node.querySelector('rect').getBoundingClientRect();
            return [...node.querySelectorAll('text')].filter(text => {
                const found = text.getBoundingClientRect();
                return found.left < box.left || found.right > box.right
                    || found.top < box.top || found.bottom > box.bottom;
            }).map(text => text.textContent);
        });
    """
    with browser.chromium() as chromium:
        chromium.get(page.as_uri())
        assert chromium.execute_script(outside) == []
        assert chromium.execute_script("return document.querySelectorAll('.node').length") > 100
