"""Every lesson against the contract and the problem's reference, in float64 unless a test says otherwise."""

import numpy as np
import pytest
from conftest import LESSONS, SIZES, Lesson

from pipeline.contract import load_problem
from pipeline.evaluation import gradient_of


def test_all_seven_are_here():
    assert len(LESSONS) == 7


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradient_is_the_references(lesson: Lesson, dtype: str):
    lesson = Lesson(lesson.name, lesson.problem, dtype)
    gradients = gradient_of(lesson.create, lesson.initial, lesson.batches)
    _, reference = lesson.reference()
    for key, gradient in reference.items():
        error = np.linalg.norm(gradients[key] - gradient) / np.linalg.norm(gradient)
        assert error < {"float32": 2e-6, "float64": 1e-14}[dtype], key


def test_training_is_gradient_descent_round_and_round_the_block(lesson: Lesson):
    implementation = lesson.create(learning_rate=0.1)
    implementation.load(lesson.batches)
    losses = lesson.train(implementation, 3, 3, 1)
    weights = lesson.initial
    for step, loss in enumerate(losses):
        reference, gradients = lesson.reference(weights, step % 3)
        assert loss == pytest.approx(reference, rel=1e-12)
        weights = {key: weights[key] - 0.1 * gradients[key] for key in weights}
    for key, weight in implementation.weights().items():
        np.testing.assert_allclose(weight, weights[key], rtol=1e-11, atol=1e-13)


def test_steps_do_not_depend_on_how_calls_divide_them(lesson: Lesson):
    once, often = lesson.create(), lesson.create()
    once.load(lesson.batches)
    often.load(lesson.batches)
    losses = lesson.train(once, 0, 3, 3)
    np.testing.assert_array_equal(lesson.train(often, 1, 3, 2), losses)
    for key, weight in once.weights().items():
        np.testing.assert_array_equal(often.weights()[key], weight)


def test_a_new_block_starts_with_its_first_batch(lesson: Lesson):
    implementation = lesson.create()
    implementation.load(lesson.batches)
    implementation.train(2)
    implementation.load({key: array[1:] for key, array in lesson.batches.items()})
    expected, _ = lesson.reference(implementation.weights(), 1)
    assert lesson.train(implementation, 1)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_predictions_weights_and_losses_have_the_dtype_and_shape_of_the_contract(lesson: Lesson, dtype: str):
    lesson = Lesson(lesson.name, lesson.problem, dtype)
    implementation = lesson.create()
    implementation.load(lesson.batches)
    losses, predictions = lesson.train(implementation, 3), implementation.predict(*lesson.inputs())
    assert (losses.shape, losses.dtype) == ((3,), dtype)
    assert (predictions.shape, predictions.dtype) == ((8, SIZES.outputs), dtype)
    assert {key: (array.shape, array.dtype) for key, array in implementation.weights().items()} == {
        key: (array.shape, array.dtype) for key, array in lesson.initial.items()
    }
    reference = load_problem(lesson.problem).predict(implementation.weights(), *lesson.inputs())
    np.testing.assert_allclose(predictions, reference, rtol=1e-4, atol=1e-5)


def test_weights_are_copies_and_the_initial_ones_are_left_alone(lesson: Lesson):
    before = {key: array.copy() for key, array in lesson.initial.items()}
    implementation = lesson.create()
    implementation.load(lesson.batches)
    implementation.train(1)
    taken = implementation.weights()
    kept = {key: array.copy() for key, array in taken.items()}
    implementation.train(1)
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
    gradients = gradient_of(lesson.create, initial, lesson.batches)
    assert (gradients[first][:, 0] == 0).all()
    assert (gradients[first][:, 1] != 0).any()
    assert (gradients[last][0] == 0).all()


@pytest.fixture(params=[name for name, problem in LESSONS.items() if problem == "recurrent"])
def recurrent(request: pytest.FixtureRequest) -> Lesson:
    return Lesson(request.param, "recurrent", "float64")


def test_padding_does_not_matter_be_it_nan(recurrent: Lesson):
    padded = dict(recurrent.batches)
    padded["x"] = padded["x"].copy()
    padded["x"][np.arange(SIZES.max_length) >= padded["lengths"][..., None]] = np.nan
    losses, predictions, weights = [], [], []
    for batches in (recurrent.batches, padded):
        implementation = recurrent.create()
        implementation.load(batches)
        losses.append(recurrent.train(implementation, 3))
        predictions.append(implementation.predict(batches["x"][0], batches["lengths"][0]))
        weights.append(implementation.weights())
    np.testing.assert_array_equal(*losses)
    np.testing.assert_array_equal(*predictions)
    for key in weights[0]:
        np.testing.assert_array_equal(weights[0][key], weights[1][key])


@pytest.mark.parametrize("length", range(1, SIZES.max_length + 1))
def test_every_length(recurrent: Lesson, length: int):
    recurrent.batches["lengths"] = np.full_like(recurrent.batches["lengths"], length)
    recurrent.batches["lengths"][:, 3] = 1  # and one that is done at once
    gradients = gradient_of(recurrent.create, recurrent.initial, recurrent.batches)
    _, reference = recurrent.reference()
    for key, gradient in reference.items():
        np.testing.assert_allclose(gradients[key], gradient, rtol=1e-9, atol=1e-12)
