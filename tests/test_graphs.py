"""The graphs of the lessons' steps: what they contain, and that their pictures can be read."""

import importlib.util
import random
import re
import sys
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import browser
import numpy as np
import pytest
from conftest import HOST, LESSONS, REPOSITORY, Lesson

from pipeline import files
from pipeline.contract import Weights, load_problem
from pipeline.errors import UserError
from pipeline.graphs.graph import (
    Example,
    Graph,
    Node,
    Structure,
    read_example,
    read_graphs,
    read_structure,
    write_graphs,
)
from pipeline.graphs.on_paper import graph_of_equations
from pipeline.graphs.record import LENGTHS, record_graphs, record_structure, recorded_locals
from pipeline.lessons_page import drawing, layout
from pipeline.runtimes import Loop, load_runtime, open_implementation

NO_EXAMPLE = Example(0.1, batch={}, weights={}, placed={}, states={}, values=[])
RECORDED = [name for name in LESSONS if name not in ("numpy_arrays", "torch_tensors")]


def graphs_of(name: str, dtype: str = "float32") -> list[Graph]:
    return record_graphs(name, LESSONS[name], open_implementation(name, LESSONS[name], HOST).create, dtype)


@pytest.fixture(scope="module")
def graphs() -> dict[str, list[Graph]]:
    """Of each lesson, and of the equations of each problem."""
    on_paper = {
        problem: [graph_of_equations(load_problem(problem).__doc__ or "", problem)] for problem in LESSONS.values()
    }
    return {name: graphs_of(name) for name in RECORDED} | on_paper


DRAWN = [*RECORDED, *dict.fromkeys(LESSONS.values())]


def nodes(graph: Graph, **attributes: Any) -> list[Node]:
    return [node for node in graph.nodes if all(getattr(node, key) == value for key, value in attributes.items())]


def node(graph: Graph, **attributes: Any) -> Node:
    (only,) = nodes(graph, **attributes)
    return only


def taken(graph: Graph, target: Node) -> list[tuple[str, str]]:
    """The names of a node's sources, or their labels where they have none, and the shapes."""
    by_id = {node.id: node for node in graph.nodes}
    sources = [(by_id[edge.source], edge.shape) for edge in graph.edges if edge.target == target.id and not edge.again]
    return [(source.name or source.label, shape) for source, shape in sources]


def again(graph: Graph) -> list[tuple[str, str]]:
    names = {node.id: node.name or node.label for node in graph.nodes}
    return [(names[edge.source], names[edge.target]) for edge in graph.edges if edge.again]


# Contents of the graphs.


@pytest.mark.parametrize("name", ["numpy_arrays", "torch_tensors"])
def test_lesson_without_a_recorded_graph_shows_the_graph_of_its_equations(graphs: Any, name: str):
    (graph,) = graphs_of(name)
    assert graph.title == "On paper: nothing is recorded"
    assert not graph.recorded
    assert (graph.nodes, graph.edges) == (graphs["two_layer"][0].nodes, graphs["two_layer"][0].edges)


def test_each_equation_gives_a_node_and_edges_with_shapes(graphs: Any):
    (graph,) = graphs["two_layer"]
    by_group = {group: [item.name for item in nodes(graph, group=group)] for group in (*layout.GROUPS, "data")}
    assert by_group == {
        "forward": ["h", "h_relu", "y_pred", "loss"],
        "backward": ["grad_y_pred", "grad_w2", "grad_h_relu", "grad_h", "grad_w1"],
        "update": ["w1", "w2"],
        "data": ["w1", "w2", "x", "y"],
    }
    assert node(graph, name="grad_h").label == "grad_h_relu * (h > 0)"
    assert taken(graph, node(graph, name="h")) == [("w1", "inputs × hidden"), ("x", "N × inputs")]
    assert taken(graph, node(graph, name="grad_w2")) == [("grad_y_pred", "N × outputs"), ("h_relu", "N × hidden")]
    assert taken(graph, node(graph, name="w1", kind="operation"))[1] == ("w1", "inputs × hidden")


def test_equations_of_a_loop_have_edges_to_the_next_time_step(graphs: Any):
    (graph,) = graphs["recurrent"]
    assert again(graph) == [("h", "h"), ("grad_h", "grad_z")]
    state = node(graph, detail="h[t]")
    assert taken(graph, state) == [("h", "1 × hidden"), ("wh", "hidden × hidden"), ("z", "1 × hidden")]


def test_autograd_graph_has_the_nodes_that_autograd_recorded(graphs: Any):
    (graph,) = graphs["torch_autograd"]
    labels = ["AccumulateGrad", "AccumulateGrad", "MmBackward0", "MmBackward0", "MseLossBackward0", "ReluBackward0"]
    assert sorted(item.label for item in graph.nodes) == labels
    assert {item.name for item in nodes(graph, kind="weight")} == {"w1", "w2"}
    assert taken(graph, node(graph, name="y_pred")) == [("h_relu", "N × hidden"), ("w2", "hidden × outputs")]
    assert taken(graph, node(graph, name="loss")) == [("y_pred", "N × outputs")]


def test_torch_operations_have_the_names_used_in_code(graphs: Any):
    plain = {node.plain for name in ("torch_autograd", "torch_loop") for graph in graphs[name] for node in graph.nodes}
    assert plain - {""} == {"matmul", "relu", "mse_loss", "split", "slice", "add", "cat"}


def test_quantity_has_the_same_name_in_all_graphs_of_a_problem(graphs: Any):
    """No variable of these lessons holds h, h_relu, or the gradients between loss and weights."""
    for name in ("torch_autograd", "torch_function", "tensorflow_graph"):
        forward = [node.name for node in nodes(graphs[name][0], group="forward") if node.name]
        assert forward == ["h", "h_relu", "y_pred", "loss"], name
    backward = {node.name for node in nodes(graphs["tensorflow_graph"][0], group="backward")}
    assert backward == {"", "grad_y_pred", "grad_w2", "grad_h_relu", "grad_h", "grad_w1"}
    for name in ("torch_loop", "tensorflow_scan"):
        assert {"z", "h", "y_pred", "loss"} <= {node.name for node in graphs[name][-1].nodes}
    (scan,) = graphs["tensorflow_scan"]
    assert {"grad_y_pred", "grad_h", "grad_z"} <= {node.name for node in scan.nodes}
    assert [node.name for node in nodes(scan, label="ReluGrad")] == ["grad_z"]


def test_nodes_of_a_python_loop_have_their_time_step(graphs: Any):
    for graph, steps in zip(graphs["torch_loop"], (2, 4), strict=True):
        assert [node.time for node in nodes(graph, name="h", plain="relu")] == list(range(1, steps + 1))
        assert {node.time for node in graph.nodes} == {None, *range(1, steps + 1)}
    assert {node.time for name in ("torch_autograd", "tensorflow_scan") for node in graphs[name][0].nodes} == {None}


def test_function_of_the_lesson_is_a_node_with_its_name(graphs: Any):
    (graph,) = graphs["torch_function"]
    assert taken(graph, node(graph, label="ReLU")) == [("h", "N × hidden")]
    assert not nodes(graph, label="ReluBackward0")


def test_traced_graph_contains_the_gradient_and_the_update(graphs: Any):
    (graph,) = graphs["tensorflow_graph"]
    assert [item.name for item in nodes(graph, label="AssignSub")] == ["w1", "w2"]
    for item in nodes(graph, kind="operation"):
        assert (item.group == "backward") == item.detail.startswith("gradient_tape/"), item
    assert {"x", "y", "w1", "w2", "y_pred", "loss", "grad_w1", "grad_w2"} <= {item.name for item in graph.nodes}
    assert {item.plain for item in nodes(graph, group="update")} == {"multiply(learning_rate, ·)", "subtract in place"}
    assert taken(graph, node(graph, name="grad_w1"))[0] == ("x", "N × inputs")
    # The mask, and both factors of the gradient of mean((y_pred - y)²).
    labels = {item.label for item in graph.nodes}
    assert {"ReluGrad", "Mul(·, 2)", "RealDiv(1, N·outputs)", "Mul(learning_rate, ·)"} <= labels
    assert not labels & {"Const", "Identity", "NoOp", "Shape", "Reshape", "ReadVariableOp", "Tile"}


def test_loop_in_the_graph_is_one_node_with_its_body(graphs: Any):
    (graph,) = graphs["tensorflow_scan"]
    assert graph.title.endswith("the same for batches of up to 2 and of up to 4 time steps")
    forward, backward = nodes(graph, kind="loop")
    assert (forward.group, backward.group) == ("forward", "backward")
    for loop, products in ((forward, 1), (backward, 2)):
        body = nodes(graph, within=loop.id)
        assert sum(item.label.startswith("MatMul") for item in body) == products
        assert {item.group for item in body} == {loop.group, "data"}
        assert len({item.detail for item in body}) == len(body), "an operation stands twice"
    assert taken(graph, node(graph, within=forward.id, label="MatMul")) == [
        ("h", "N × hidden"),
        ("wh", "hidden × hidden"),
    ]
    assert again(graph)[0] == ("h", "h")
    assert node(graph, name="h", label="Relu").within == forward.id
    assert node(graph, name="grad_wh", label="AddN").within == backward.id
    # The gradient of wx is a sum over the time steps. It is part of the maths.
    assert node(graph, name="grad_wx").label == "Sum"


def test_python_loop_records_a_longer_graph_for_a_longer_batch(graphs: Any):
    for graph, steps, total in zip(graphs["torch_loop"], (2, 4), (8, 16), strict=True):
        assert graph.title.endswith(f"on a batch of 7 examples of up to {steps} time steps, {total} in all")
        assert len(nodes(graph, name="h", label="ReluBackward0")) == steps
        assert [node.label for node in nodes(graph, name="y_pred")] == ["MmBackward0"]
        assert {node.name for node in nodes(graph, kind="weight")} == {"wx", "wh", "wo"}
    # All 16 time steps of the batch at once, then 7, 5, 3 and 1 running examples: no size is taken for another one.
    longest = graphs["torch_loop"][-1]
    rows = {edge.shape.removesuffix(" × hidden") for edge in longest.edges if edge.shape.endswith(" × hidden")}
    assert rows == {"16", "N", "5", "3", "2", "1", "inputs", "hidden"}


# Dependencies of the graphs.


@pytest.mark.parametrize("name", RECORDED)
def test_graph_is_the_same_in_another_dtype_and_read_from_its_file(
    graphs: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert graphs_of(name, "float64") == graphs[name]
    monkeypatch.chdir(tmp_path)
    write_graphs(name, graphs[name], Structure(0, 0, None), NO_EXAMPLE)
    assert read_graphs(name) == graphs[name]


@pytest.mark.parametrize("read", [read_graphs, read_structure, read_example])
@pytest.mark.parametrize(
    "content", [{"graphs": [{"title": "no nodes"}], "structure": {"steps": 5}}, {}], ids=["parts", "nothing"]
)
def test_damaged_graph_file_is_named_in_the_error(
    content: Any, read: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    files.write_json(files.graph_file("torch_loop"), content)
    with pytest.raises(UserError, match=r"graphs/torch_loop\.json is damaged \(.*Delete it and run `dvc repro`"):
        read("torch_loop")


def test_graph_file_without_a_structure_still_has_its_graphs(
    graphs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_graphs("torch_loop", graphs["torch_loop"], Structure(0, 0, None), NO_EXAMPLE)
    content = files.read_json(files.graph_file("torch_loop"))
    del content["structure"]
    files.write_json(files.graph_file("torch_loop"), content)
    assert read_graphs("torch_loop") == graphs["torch_loop"]
    with pytest.raises(UserError, match=r"is damaged \(structure: .*Delete it and run `dvc repro`"):
        read_structure("torch_loop")


def test_recording_changes_neither_training_nor_global_state(lesson: Lesson):
    """The training continues as it was; random numbers and the profiler stay."""
    expected = lesson.run(lesson.placed(), 6)
    before = sys.getprofile(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    loop = lesson.placed()
    losses = lesson.run(loop, 3)
    record_graphs(lesson.name, lesson.problem, lesson.create, "float64")
    record_structure(lesson.name, lesson.problem, lesson.create, "float64")
    np.testing.assert_array_equal(np.concatenate([losses, lesson.run(loop, 3)]), expected)
    assert before == (sys.getprofile(), random.getstate(), str(np.random.get_state()))  # noqa: NPY002


def test_recorded_locals_are_those_of_the_functions_of_the_lesson(lesson: Lesson):
    loop = lesson.placed()
    with recorded_locals(loop.implementation) as variables:
        loop.implementation.step(*loop.placed[0])
    names = [name for name, _ in variables]
    if lesson.name.startswith("tensorflow"):
        assert names == []  # the step is traced already, so Python does not run it
    else:
        assert {"self", "x", "y", "y_pred", "loss"} <= set(names)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("toy_arrays", "On paper: nothing is recorded"),
        ("torch_arrays", "On paper: the step could not be recorded (ZeroDivisionError: division by zero)"),
    ],
)
def test_unknown_framework_or_failing_step_shows_the_equations(name: str, title: str):
    create: Any = lambda *_: 1 / 0  # noqa: E731
    (graph,) = record_graphs(name, "two_layer", create, "float32")
    assert (graph.title, graph.recorded) == (title, False)
    assert record_structure(name, "two_layer", create, "float32") == Structure(steps=0, lengths=0, graphs=None)


MORE = {  # one more layer, with weights w3 of its own
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
LAYER = {
    "torch_autograd": {("w3", "AccumulateGrad"), ("", "TanhBackward0")},
    "tensorflow_graph": {("w3", "Variable"), ("", "Tanh"), ("", "TanhGrad"), ("w3", "AssignSub")},
}


def edited(name: str, folder: Path, edits: list[tuple[str, str]]) -> Callable[[Weights, float], Loop]:
    """A function that makes a loop on the edited lesson."""
    text = (REPOSITORY / "pipeline/lessons" / LESSONS[name] / f"{name}.py").read_text()
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file = folder / f"{name}.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(f"changed_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    runtime = load_runtime(name)(HOST)

    def create(weights: Weights, rate: float) -> Loop:
        implementation = module.Implementation(weights, learning_rate=rate, device=runtime.device)
        return runtime.loop(implementation, weights)

    return create


@pytest.mark.parametrize("name", LAYER)
def test_one_more_layer_is_recorded_and_drawn(graphs: Any, name: str, tmp_path: Path):
    (graph,) = record_graphs(name, LESSONS[name], edited(name, tmp_path, MORE[name]), "float32")
    assert {(item.name, item.label) for item in graph.nodes} >= LAYER[name]
    assert not LAYER[name] & {(item.name, item.label) for item in graphs[name][0].nodes}
    picture, _ = drawing.svg(graph)
    for called, label in LAYER[name]:
        assert f">{called or node(graph, name=called, label=label).plain}</text>" in picture


# How many graphs a framework defines.

STEPS = len(LENGTHS)


def structure_of(name: str) -> Structure:
    return record_structure(name, LESSONS[name], open_implementation(name, LESSONS[name], HOST).create, "float32")


@pytest.fixture(scope="module")
def structures() -> dict[str, Structure]:
    return {name: structure_of(name) for name in LESSONS}


def test_number_of_graphs_of_each_lesson_is_as_documented(structures: dict[str, Structure]):
    assert {name: (structure.steps, structure.graphs) for name, structure in structures.items()} == {
        "numpy_arrays": (STEPS, 0),
        "torch_tensors": (STEPS, 0),
        "torch_autograd": (STEPS, STEPS),
        "torch_function": (STEPS, STEPS),
        "tensorflow_graph": (STEPS, 1),
        "torch_loop": (STEPS, STEPS),
        "tensorflow_scan": (STEPS, 1),
    }


def test_lengths_are_counted_only_for_the_recurrent_problem(structures: dict[str, Structure]):
    lengths = {name: STEPS if problem == "recurrent" else 0 for name, problem in LESSONS.items()}
    assert {name: structure.lengths for name, structure in structures.items()} == lengths


def test_counted_autograd_nodes_equal_the_drawn_ones(graphs: Any, structures: dict[str, Structure]):
    """Five more for each further time step. Without lengths all graphs have the same nodes."""
    for name in ("torch_autograd", "torch_function"):
        assert structures[name].graph_nodes == (len(graphs[name][0].nodes),) * STEPS
    sizes = dict(zip(LENGTHS, structures["torch_loop"].graph_nodes, strict=True))
    assert [len(graph.nodes) for graph in graphs["torch_loop"]] == [sizes[2], sizes[4]]
    assert {later - earlier for earlier, later in pairwise(sizes.values())} == {5}


@pytest.mark.parametrize("name", LESSONS)
def test_structure_is_repeatable_and_read_from_its_file(
    structures: dict[str, Structure], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert structure_of(name) == structures[name]
    monkeypatch.chdir(tmp_path)
    write_graphs(name, [], structures[name], NO_EXAMPLE)
    assert read_structure(name) == structures[name]


COUNTED = {  # a lesson, an edit of it, and the graphs that it defines then
    "a trace for each length": ("tensorflow_scan", ", input_signature=[x, ends, y])", ")", STEPS),
    "no tf.function": ("tensorflow_graph", "self.step = tf.function(self.step, input_signature=[x, y])", "", None),
    "a detached loss": ("torch_loop", "        return loss", "        return loss.detach()", STEPS),
    "a loss of data alone": ("torch_loop", "        # Forward pass.\n", "        return x.sum()\n", 0),
    "one graph again and again": (
        "torch_autograd",
        "        loss = torch.nn.functional.mse_loss(y_pred, y)\n\n        # Backward pass.\n        loss.backward()",
        "        loss = self.loss = vars(self).get('loss', torch.nn.functional.mse_loss(y_pred, y))\n"
        "        self.w1.grad, self.w2.grad = torch.zeros_like(self.w1), torch.zeros_like(self.w2)",
        1,
    ),
    "a loss that keeps results": ("numpy_arrays", "        return loss", "        return [loss, [h_relu]]", STEPS),
    "a loss that keeps data": ("numpy_arrays", "        return loss", "        return [loss, [x, self.w1]]", 0),
}


@pytest.mark.parametrize(("name", "old", "new", "expected"), COUNTED.values(), ids=COUNTED)
def test_graph_count_follows_an_edit_of_the_lesson(name: str, old: str, new: str, expected: int | None, tmp_path: Path):
    structure = record_structure(name, LESSONS[name], edited(name, tmp_path, [(old, new)]), "float32")
    assert (structure.steps, structure.graphs) == (STEPS, expected)
    assert len(structure.graph_nodes) == (expected if name.startswith("torch") else 0)


def test_xla_fuses_operations_into_fewer_instructions(structures: dict[str, Structure]):
    """Before: five products, relu and its gradient, three operations of the loss, four of its gradient, and four of the
    update. After: at least the products. How many more depends on the CPU."""
    structure = structures["tensorflow_graph"]
    assert structure.operations_before == 18
    assert structure.operations_after is not None
    assert 5 <= structure.operations_after < 18
    others = [other for name, other in structures.items() if name != "tensorflow_graph"]
    assert {(other.operations_before, other.operations_after) for other in others} == {(None, None)}


def test_one_more_layer_adds_its_operations(structures: dict[str, Structure], tmp_path: Path):
    """Three products, tanh and its gradient, and two operations of the update."""
    name = "tensorflow_graph"
    structure = record_structure(name, LESSONS[name], edited(name, tmp_path, MORE[name]), "float32")
    assert structure.operations_before == 18 + 7
    assert (structure.operations_after or 0) >= (structures[name].operations_after or 0) + 3


def test_step_that_xla_cannot_compile_has_no_instructions(tmp_path: Path):
    name, text = "tensorflow_graph", "tf.strings.to_number(tf.strings.as_string(loss))"
    create = edited(name, tmp_path, [("return loss", f"return {text}")])
    structure = record_structure(name, LESSONS[name], create, "float32")
    assert (structure.graphs, structure.operations_before, structure.operations_after) == (1, 18 + 2, None)


def test_instructions_are_read_from_the_entry_computation():
    from pipeline.graphs.tensorflow import instructions

    program = """HloModule step, is_scheduled=true

%fused_computation (param_0: f32[7,19]) -> f32[7,19] {
  %param_0 = f32[7,19]{1,0} parameter(0)
  ROOT %maximum.1 = f32[7,19]{1,0} maximum(%param_0, %param_0)
}

ENTRY %step.2 (arg0.1: f32[7,23], arg1.1: f32[23,19]) -> (f32[7,19]) {
  %arg0.1 = f32[7,23]{1,0} parameter(0), metadata={op_name="XLA_Args"}
  %matmul.2 = f32[7,19]{1,0} dot(%arg0.1, %arg1.1), lhs_contracting_dims={1}, metadata={op_name="call(x) = y (z)"}
  %while.9 = (s32[], f32[7,100]{1,0}, /*index=5*/f32[4]{0}) while(%tuple.85), condition=%cond, body=%body
  %get-tuple-element.8 = s32[] get-tuple-element(%while.9), index=0
  ROOT %fusion = f32[7,19]{1,0} fusion(%matmul.2), kind=kLoop, calls=%fused_computation
}

"""
    assert instructions(program) == ["parameter", "dot", "while", "get-tuple-element", "fusion"]


# The pictures.


def pictures(picture: layout.Picture) -> list[layout.Picture]:
    return [picture, *(inner for inside in picture.inside.values() for inner in pictures(inside))]


def overlap(one: layout.Box, other: layout.Box) -> bool:
    return one.x < other.x + other.width and other.x < one.x + one.width and one.y < other.low and other.y < one.low


def curve(points: list[layout.Point]) -> list[tuple[float, float]]:
    """Points on the Bézier curves of a line."""
    curve_points = []
    for index in range(0, len(points) - 1, 3):
        start, one, two, end = np.array(points[index : index + 4])
        for t in np.linspace(0, 1, 25):
            x, y = (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * one + 3 * (1 - t) * t**2 * two + t**3 * end
            curve_points.append((float(x), float(y)))
    return curve_points


@pytest.mark.parametrize("name", DRAWN)
def test_boxes_do_not_overlap_and_lines_cross_no_node(graphs: Any, name: str):
    for picture in (picture for graph in graphs[name] for picture in pictures(layout.arrange(graph))):
        boxes = [*(box for _, box in picture.nodes), *(box for _, box in picture.shapes)]
        for one, other in combinations(boxes, 2):
            assert not overlap(one, other), (one, other)
        for box in boxes:
            assert min(box.x, box.y, picture.width - box.x - box.width, picture.height - box.low) >= 0, box
        inner = [layout.Box(box.x + 2, box.y + 2, box.width - 4, box.height - 4) for box in boxes]
        for line in picture.lines:
            for x, y in curve(line.points):
                assert not [box for box in inner if overlap(layout.Box(x, y, 0.1, 0.1), box)], line


@pytest.mark.parametrize("name", DRAWN)
def test_bands_are_in_order_and_contain_their_nodes(graphs: Any, name: str):
    for picture in (layout.arrange(graph) for graph in graphs[name]):
        assert list(picture.bands) == [group for group in layout.GROUPS if group in picture.bands]
        for above, below in pairwise(picture.bands.values()):
            assert above.low <= below.y
        for node, box in picture.nodes:
            bands = [group for group, band in picture.bands.items() if overlap(box, band)]
            assert len(bands) == 1
            assert node.group in (*bands, "data")


@pytest.mark.parametrize("name", DRAWN)
def test_every_node_and_edge_is_drawn(graphs: Any, name: str):
    for graph in graphs[name]:
        text, width = drawing.svg(graph)
        assert len(text) < 100_000
        assert drawing.svg(graph) == (text, width)
        assert not re.search(r"\d\.\d\d", text), "coordinates are rounded"
        root = ElementTree.fromstring(text)  # noqa: S314 (our own)
        assert (root.get("role"), root.get("width"), next(iter(root)).text) == ("img", str(width), graph.title)
        assert not [element for element in root.iter() if element.get("id")]
        drawn = [(element.get("data-name"), (element.get("class") or "").split()) for element in root.iter()]
        for group in layout.GROUPS:
            names = [str(called) for called, classes in drawn if {"node", group} <= set(classes)]
            assert sorted(names) == sorted(node.name for node in nodes(graph, group=group))
        assert sum(classes == ["head"] for _, classes in drawn) == len(graph.edges)
        shapes = {element.text for element in root.iter() if element.get("class") == "shape"} - {layout.LEGEND}
        assert shapes == {edge.shape for edge in graph.edges if edge.shape and not edge.again}


@pytest.mark.browser
@pytest.mark.skipif(bool(browser.is_missing()), reason=browser.is_missing())
def test_texts_of_nodes_fit_their_boxes_in_a_browser(graphs: Any, tmp_path: Path):
    page = tmp_path / "page.html"
    svgs = "".join(drawing.svg(graph)[0] for name in DRAWN for graph in graphs[name])
    page.write_text(f"<!doctype html><meta charset=utf-8><style>{drawing.STYLE}</style>{svgs}")
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
