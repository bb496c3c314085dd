"""The float64 reference against finite differences, and the random data that a problem draws."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SIZES

from pipeline.contract import Array, load_problem
from pipeline.problems import PROBLEMS
from pipeline.quantities.equations import equation_in
from pipeline.quantities.paper import Paper


def example(problem: str, count: int = 6) -> tuple[dict[str, Array], list[Array]]:
    module, generator = load_problem(problem), np.random.default_rng(11)
    weights = {key: array.astype(np.float64) for key, array in module.draw_weights(SIZES, generator).items()}
    inputs = module.draw_inputs(SIZES, count, generator)
    batch = [array if array.dtype == np.int64 else array.astype(np.float64) for array in inputs.values()]
    return weights, [*batch, module.draw_targets(SIZES, inputs, None, 0.1, generator).astype(np.float64)]


def difference(loss: Callable[[], float], array: Array, index: tuple[int, ...], ahead: float, back: float) -> float:
    """(loss at + ahead − loss at − back) / (ahead + back), one element of `array` moved."""
    value = array[index]
    array[index] = value + ahead
    above = loss()
    array[index] = value - back
    below = loss()
    array[index] = value
    return (above - below) / (ahead + back)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_gradient_equals_finite_differences(problem: str):
    module = load_problem(problem)
    weights, batch = example(problem)
    _, gradients = module.loss_and_gradients(weights, *batch)
    for key, gradient in gradients.items():
        for index in np.ndindex(gradient.shape):
            numeric = difference(lambda: module.loss_and_gradients(weights, *batch)[0], weights[key], index, 1e-6, 1e-6)
            assert gradient[index] == pytest.approx(numeric, rel=1e-6, abs=1e-8), (key, index)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_relu_has_derivative_0_at_0(problem: str):
    module = load_problem(problem)
    weights, batch = example(problem, count=1)
    batch[0][...] = np.abs(batch[0])  # so that a smaller weight takes the argument of relu below 0
    if problem == "recurrent":
        batch[1][...] = 1
    key = next(iter(weights))
    weights[key][:, 0] = 0
    _, gradients = module.loss_and_gradients(weights, *batch)
    for row in range(SIZES.inputs):
        loss = lambda: module.loss_and_gradients(weights, *batch)[0]  # noqa: E731
        off = difference(loss, weights[key], (row, 0), 0, 1e-6)
        on = difference(loss, weights[key], (row, 0), 1e-6, 0)
        assert gradients[key][row, 0] == off == 0
        assert on != 0


@pytest.mark.parametrize("problem", PROBLEMS)
def test_equations_equal_loss_and_gradients(problem: str):
    module = load_problem(problem)
    weights, (x, *lengths, y) = example(problem)
    paper = Paper(problem, weights, {"x": x, **({"lengths": lengths[0]} if lengths else {}), "y": y}, 0.1)
    loss, gradients = module.loss_and_gradients(weights, x, *lengths, y)
    assert paper.values["loss", None] == pytest.approx(loss, rel=1e-12)
    for key, gradient in gradients.items():
        np.testing.assert_allclose(paper.values[f"grad_{key}", None], gradient, rtol=1e-10, atol=1e-14)
        np.testing.assert_array_equal(paper.values[key, None], weights[key] - 0.1 * paper.values[f"grad_{key}", None])
    assert {line.name for line in paper.equations if line.part == "update"} == set(weights)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_equations_have_their_stated_shapes(problem: str):
    """Sizes are different primes here, so that no two of them are mistaken for each other."""
    module, sizes = load_problem(problem), SimpleNamespace(inputs=3, hidden=11, outputs=2, min_length=7, max_length=7)
    weights, generator = module.draw_weights(sizes, np.random.default_rng(0)), np.random.default_rng(1)
    batch = module.draw_inputs(sizes, 5, generator)
    batch["y"] = module.draw_targets(sizes, batch, None, 0.1, generator)
    paper = Paper(problem, weights, batch, 0.1)
    names = {"N": 5, "inputs": sizes.inputs, "hidden": sizes.hidden, "outputs": sizes.outputs}
    for equation, key, time in paper.order:
        of_batch = equation.shape.replace("1, ", "N, ") if "lengths" in batch else equation.shape
        shape = tuple(names[size] for size in of_batch.split(", ") if size)
        assert paper.values[key].shape == shape == paper.evaluate(equation.right, equation, time).shape, equation


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_indented_line_of_the_docstring_is_an_equation(problem: str):
    docstring = load_problem(problem).__doc__ or ""
    assert [line for line in docstring.splitlines() if line.startswith("    ") and not equation_in(line)] == []


@pytest.mark.parametrize("problem", PROBLEMS)
def test_loss_equals_the_loss_of_the_predictions(problem: str):
    module = load_problem(problem)
    weights, batch = example(problem)
    loss, _ = module.loss_and_gradients(weights, *batch)
    assert loss == pytest.approx(module.loss(module.predict(weights, *batch[:-1]), batch[-1]))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_operations_equal_those_of_the_matrix_products(problem: str):
    """With equal lengths: `operations` uses the mean length, and counts all products of a step."""
    module = load_problem(problem)
    sizes = type(SIZES)(batch_size=6, inputs=7, hidden=5, outputs=3, min_length=4, max_length=4)
    weights = module.draw_weights(sizes, np.random.default_rng(0))
    inputs = module.draw_inputs(sizes, 6, np.random.default_rng(0))
    products = module.products(weights, *inputs.values(), np.zeros((6, 3)))
    counted = sum(2 * left.shape[0] * left.shape[1] * right.shape[1] for left, right in products)
    assert module.operations(sizes) == counted


@pytest.mark.parametrize("problem", PROBLEMS)
def test_best_constant_has_the_smallest_loss_of_all_constants(problem: str):
    module, (_, batch) = load_problem(problem), example(problem, count=50)
    y = batch[-1]
    best = module.best_constant(y)
    for change in np.eye(3) * 1e-3:
        assert module.loss(np.broadcast_to(best + change, y.shape), y) > module.loss(np.broadcast_to(best, y.shape), y)


def test_recurrent_predictions_equal_a_loop_over_examples():
    module = load_problem("recurrent")
    weights, (x, lengths, _) = example("recurrent")
    for n in range(len(x)):
        h = np.zeros(SIZES.hidden)
        for t in range(lengths[n]):
            h = np.maximum(x[n, t] @ weights["wx"] + h @ weights["wh"], 0)
        np.testing.assert_allclose(module.predict(weights, x, lengths)[n], h @ weights["wo"], rtol=1e-12)


def test_lengths_are_1_to_max_length_and_padding_is_0():
    inputs = load_problem("recurrent").draw_inputs(SIZES, 1000, np.random.default_rng(0))
    assert set(inputs["lengths"]) == set(range(1, SIZES.max_length + 1))
    padding = np.arange(SIZES.max_length) >= inputs["lengths"][:, None]
    assert (inputs["x"][padding] == 0).all()
    assert (inputs["x"][~padding] != 0).all()


@pytest.mark.parametrize("problem", PROBLEMS)
def test_initial_predictions_have_a_second_moment_near_1(problem: str):
    module, generator = load_problem(problem), np.random.default_rng(0)
    sizes = type(SIZES)(inputs=200, hidden=400, outputs=50, min_length=1, max_length=20)
    weights, inputs = module.draw_weights(sizes, generator), module.draw_inputs(sizes, 200, generator)
    assert np.mean(module.predict(weights, *inputs.values()) ** 2) == pytest.approx(1, abs=0.25)
