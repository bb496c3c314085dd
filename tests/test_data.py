"""The random data: what it depends on, how it is read, and that a file which is not what was generated is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY

from pipeline.errors import UserError
from pipeline.params import Data
from pipeline.training import data

PROBLEMS = ("two_layer", "recurrent")


def generate(problem: str, *, seed: int = 0, dtype: str = "float32", **changes: Any) -> data.DataSet:
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in TINY["data"].items()}
    for key, value in changes.items():
        if key in content:
            content[key] = value
        else:
            content[problem][key] = value
    data.generate(problem, Data.model_validate(content), seed=seed, dtype=dtype)
    return data.DataSet(problem)


def files(problem: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("data", problem).iterdir()}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(problem: str):
    generate(problem)
    first = files(problem)
    generate(problem)
    assert files(problem) == first
    generate(problem, seed=1)
    assert all(files(problem)[name] != first[name] for name in first)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_more_training_examples_change_neither_the_first_ones_nor_the_rest(problem: str):
    few, test = generate(problem, train_examples=1500), files(problem)
    first = {key: np.array(array) for key, array in few.train.items()}
    many = generate(problem, train_examples=2500)
    for key, array in first.items():
        np.testing.assert_array_equal(many.train[key][:1024], array[:1024])  # whole draws
    for name in ("test_x.npy", "test_y.npy", "initial.safetensors"):
        assert files(problem)[name] == test[name]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_float64_works_on_the_numbers_of_float32(problem: str):
    single = generate(problem)
    arrays = {key: np.array(array) for key, array in single.train.items()} | dict(single.initial)
    double = generate(problem, dtype="float64")
    for key, array in (double.train | dict(double.initial)).items():
        assert array.dtype == (np.int64 if key == "lengths" else np.float64)
        np.testing.assert_array_equal(array, arrays[key])


def test_random_targets_are_noise_alone():
    y = generate("two_layer", target="random", noise=0.0, train_examples=5000).train["y"]
    assert np.mean(y) == pytest.approx(0, abs=0.05)
    assert np.std(y) == pytest.approx(1, abs=0.05)


def test_chunks_hold_every_whole_batch_once(monkeypatch: pytest.MonkeyPatch):
    dataset = generate("recurrent", train_examples=100)
    whole = dataset.read(dataset.chunks(16)[0], 16)
    assert whole["x"].shape == (6, 16, 5, 4)
    monkeypatch.setattr(data, "CHUNK_BYTES", 3 * 16 * (5 * 4 * 4 + 8 + 3 * 4))
    chunks = dataset.chunks(16)
    assert chunks == [slice(0, 48), slice(48, 96)]
    for key, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([dataset.read(chunk, 16)[key] for chunk in chunks]), array)


@pytest.mark.parametrize("file", ["train_x.npy", "test_y.npy", "initial.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_a_damaged_file_is_named(file: str, damage: str):
    generate("two_layer")
    path = Path("data/two_layer", file)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-8] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{file} is (missing|not what was generated).*dvc repro") as error:
        data.DataSet("two_layer")
    assert len(str(error.value).splitlines()) == 1


def test_no_data_at_all():
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        data.DataSet("two_layer")


def test_an_interrupted_generation_leaves_the_last_good_data(monkeypatch: pytest.MonkeyPatch):
    generate("two_layer")
    before = files("two_layer")

    def interrupted(path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "_sha256", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate("two_layer", seed=1)
    assert files("two_layer") == before
    assert [path.name for path in Path("data").iterdir()] == ["two_layer"]
