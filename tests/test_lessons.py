"""Every lesson against the contract and the problem's reference, in float64 unless a test says otherwise."""

import ast
import difflib
from typing import Any

import numpy as np
import pytest
from conftest import LESSONS, REPOSITORY, SIZES, Lesson

from pipeline.contract import load_problem
from pipeline.training.outputs import gradient_of

ORDER = ("numpy_arrays", "torch_tensors", "torch_autograd", "torch_function", "tensorflow_graph")
MOST_LINES = {"two_layer": 50, "recurrent": 65}


def source(name: str) -> str:
    return (REPOSITORY / "pipeline/lessons" / LESSONS[name] / f"{name}.py").read_text()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradient_equals_that_of_the_reference(lesson: Lesson, dtype: str):
    lesson = Lesson(lesson.name, lesson.problem, dtype)
    gradients = gradient_of(lesson.create, lesson.initial, lesson.chunk)
    _, reference = lesson.reference()
    for key, gradient in reference.items():
        error = np.linalg.norm(gradients[key] - gradient) / np.linalg.norm(gradient)
        assert error < {"float32": 2e-6, "float64": 1e-14}[dtype], key


def test_training_equals_gradient_descent_over_several_epochs(lesson: Lesson):
    loop = lesson.placed()
    losses = lesson.run(loop, 3, 3, 1)
    weights = lesson.initial
    for step, loss in enumerate(losses):
        reference, gradients = lesson.reference(weights, step % 3)
        assert loss == pytest.approx(reference, rel=1e-12)
        weights = {key: weights[key] - 0.1 * gradients[key] for key in weights}
    for key, weight in loop.weights().items():
        np.testing.assert_allclose(weight, weights[key], rtol=1e-11, atol=1e-13)


def test_steps_do_not_depend_on_how_calls_divide_them(lesson: Lesson):
    once, often = lesson.placed(), lesson.placed()
    losses = lesson.run(once, 7)
    np.testing.assert_array_equal(lesson.run(often, 1, 0, 4, 2), losses)
    for key, weight in once.weights().items():
        np.testing.assert_array_equal(often.weights()[key], weight)


def test_600_steps_in_one_call_equal_two_calls_of_300(lesson: Lesson):
    loop = lesson.placed()
    losses = lesson.run(loop, 600)
    assert losses.shape == (600,)
    assert loop.next == 0
    np.testing.assert_array_equal(losses, lesson.run(lesson.placed(), 300, 300))


def test_new_chunk_starts_with_its_first_batch(lesson: Lesson):
    loop = lesson.placed()
    loop.run(2)
    loop.place({key: array[1:] for key, array in lesson.chunk.items()})
    expected, _ = lesson.reference(loop.weights(), 1)
    assert lesson.run(loop, 1)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_predictions_weights_and_losses_have_the_dtype_and_shape_of_the_contract(lesson: Lesson, dtype: str):
    lesson = Lesson(lesson.name, lesson.problem, dtype)
    loop = lesson.placed()
    losses, predictions = lesson.run(loop, 3), loop.predict(*lesson.inputs())
    assert (losses.shape, losses.dtype) == ((3,), dtype)
    assert (predictions.shape, predictions.dtype) == ((8, SIZES.outputs), dtype)
    assert {key: (array.shape, array.dtype) for key, array in loop.weights().items()} == {
        key: (array.shape, array.dtype) for key, array in lesson.initial.items()
    }
    reference = load_problem(lesson.problem).predict(loop.weights(), *lesson.inputs())
    np.testing.assert_allclose(predictions, reference, rtol=1e-4, atol=1e-5)
    single = loop.predict(*(array[:1] for array in lesson.inputs()))
    np.testing.assert_allclose(single, reference[:1], rtol=1e-4, atol=1e-5)
    assert single.shape == (1, SIZES.outputs)


def test_weights_are_copies_and_initial_weights_stay_unchanged(lesson: Lesson):
    before = {key: array.copy() for key, array in lesson.initial.items()}
    loop = lesson.placed()
    loop.run(1)
    taken = loop.weights()
    kept = {key: array.copy() for key, array in taken.items()}
    loop.run(1)
    for key, array in before.items():
        np.testing.assert_array_equal(lesson.initial[key], array)
        np.testing.assert_array_equal(taken[key], kept[key])


def test_relu_has_derivative_0_at_exactly_0(lesson: Lesson):
    first, last = next(iter(lesson.initial)), list(lesson.initial)[-1]
    initial = dict(lesson.initial)
    initial[first] = initial[first].copy()
    initial[first][:, 0] = 0  # the first hidden unit's argument is 0 for every example
    if "wh" in initial:
        initial["wh"] = initial["wh"].copy()
        initial["wh"][:, 0] = 0
    gradients = gradient_of(lesson.create, initial, lesson.chunk)
    assert (gradients[first][:, 0] == 0).all()
    assert (gradients[first][:, 1] != 0).any()
    assert (gradients[last][0] == 0).all()


@pytest.fixture(params=[name for name, problem in LESSONS.items() if problem == "recurrent"])
def recurrent(request: pytest.FixtureRequest) -> Lesson:
    return Lesson(request.param, "recurrent", "float64")


def test_nan_padding_changes_no_result(recurrent: Lesson):
    padded = dict(recurrent.chunk)
    padded["x"] = padded["x"].copy()
    padded["x"][np.arange(SIZES.max_length) >= padded["lengths"][..., None]] = np.nan
    losses, predictions, weights = [], [], []
    for chunk in (recurrent.chunk, padded):
        loop = recurrent.create()
        loop.place(chunk)
        losses.append(recurrent.run(loop, 3))
        predictions.append(loop.predict(chunk["x"][0], chunk["lengths"][0]))
        weights.append(loop.weights())
    np.testing.assert_array_equal(*losses)
    np.testing.assert_array_equal(*predictions)
    for key in weights[0]:
        np.testing.assert_array_equal(weights[0][key], weights[1][key])


@pytest.mark.parametrize("length", range(1, SIZES.max_length + 1))
def test_gradient_equals_the_reference_at_every_length(recurrent: Lesson, length: int):
    recurrent.chunk["lengths"] = np.full_like(recurrent.chunk["lengths"], length)
    recurrent.chunk["lengths"][:, 3] = 1  # and one that ends at once
    gradients = gradient_of(recurrent.create, recurrent.initial, recurrent.chunk)
    _, reference = recurrent.reference()
    for key, gradient in reference.items():
        np.testing.assert_allclose(gradients[key], gradient, rtol=1e-9, atol=1e-12)


# The text of the lessons.


def without_docstring(text: str) -> list[str]:
    end = ast.parse(text).body[0].end_lineno or 0
    return text.splitlines()[end:]


@pytest.mark.parametrize(("one", "next_one", "most"), list(zip(ORDER, ORDER[1:], (20, 18, 22, 36), strict=False)))
def test_neighbouring_lessons_differ_in_few_lines(one: str, next_one: str, most: int):
    lines = difflib.ndiff(without_docstring(source(one)), without_docstring(source(next_one)))
    added = sum(line.startswith("+ ") for line in lines)
    print(f"{one} → {next_one}: {added} lines added, at most {most}")
    assert added <= most


@pytest.mark.parametrize("name", LESSONS)
def test_lesson_is_short_and_has_no_loop_over_steps(name: str):
    text = source(name)
    assert len(text.splitlines()) <= MOST_LINES.get(LESSONS[name], 50)
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert len(docstring.split()) > 30
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    (lesson,) = (node for node in classes if node.name == "Implementation")
    methods = {node.name: node for node in lesson.body if isinstance(node, ast.FunctionDef)}
    assert {"__init__", "place", "step", "predict"} <= methods.keys()
    step = methods["step"]
    lines = ast.get_source_segment(text, step) or ""
    assert sum(1 for line in lines.splitlines()[1:] if line.strip() and not line.strip().startswith("#")) <= 20
    assert not [node for node in ast.walk(step) if isinstance(node, ast.For | ast.While)], "a loop over steps"
    keywords = {keyword.arg for node in ast.walk(step) if isinstance(node, ast.Call) for keyword in node.keywords}
    assert "out" not in keywords
    # One name for one quantity: only weights are assigned twice, in their update.
    names = [
        target.id
        for node in ast.walk(step)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    assert len(names) == len(set(names))


# Graphs that are defined once, and graphs that depend on the lengths.


@pytest.mark.parametrize("name", [name for name in LESSONS if name.startswith("tensorflow")])
def test_graph_is_traced_once(name: str):
    lesson = Lesson(name, LESSONS[name], "float64")
    loop: Any = lesson.placed()
    for longest in (1, 4, 6):
        chunk = dict(lesson.chunk)
        if "lengths" in chunk:
            chunk["x"] = chunk["x"][:, :, :longest]
            chunk["lengths"] = np.minimum(chunk["lengths"], longest)
        loop.place(chunk)
        lesson.run(loop, 2, 5)
    assert loop.implementation.step.experimental_get_tracing_count() == 1
    assert loop.graph.experimental_get_tracing_count() == 1


def test_work_of_the_python_loop_is_proportional_to_the_sum_of_lengths():
    torch = pytest.importorskip("torch")
    lesson = Lesson("torch_loop", "recurrent", "float64")
    loop: Any = lesson.create()
    rows = []
    for lengths in ([6] * 8, [6, 1, 1, 1, 1, 1, 1, 1], [3] * 8):
        lesson.chunk["lengths"] = np.array([lengths] * 3)
        loop.place(lesson.chunk)
        with torch.profiler.profile(record_shapes=True) as profile:
            loop.run(1)
        shapes = [event.input_shapes for event in profile.events() if event.name == "aten::mm"]
        rows.append(sum(left[0] for left, right in shapes if right == [5, 5] and left[1] == 5))
    # h @ wh in the forward pass and grad @ whᵀ in the backward pass have a row for each example that is still running.
    assert rows[0] > 3 * rows[1]
    assert rows[0] > 1.5 * rows[2]
