"""The random data: what they depend on, how they are read, and that changed files are refused."""

from pathlib import Path

import numpy as np
import pytest
from conftest import dataset

from pipeline.errors import UserError
from pipeline.problems import PROBLEMS
from pipeline.training import data


def files(problem: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("data", problem).iterdir()}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_only_the_same_seed_gives_the_same_bytes(problem: str):
    dataset(problem)
    first = files(problem)
    dataset(problem)
    assert files(problem) == first
    dataset(problem, seed=1)
    assert all(files(problem)[name] != first[name] for name in first)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(("number", "larger"), [(100, 1500), (1500, 2500)])
def test_more_training_examples_leave_the_other_data_unchanged(problem: str, number: int, larger: int):
    few, before = dataset(problem, train_examples=number), files(problem)
    first = {key: np.array(array) for key, array in few.train.items()}
    many, after = dataset(problem, train_examples=larger), files(problem)
    for key, array in first.items():
        np.testing.assert_array_equal(many.train[key][:number], array)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"manifest.json", *(f"train_{key}.npy" for key in first)}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_float64_data_equal_the_float32_data(problem: str):
    single = dataset(problem)
    arrays = {key: np.array(array) for key, array in single.train.items()} | dict(single.initial)
    double = dataset(problem, dtype="float64")
    for key, array in (double.train | dict(double.initial)).items():
        assert array.dtype == (np.int64 if key == "lengths" else np.float64)
        np.testing.assert_array_equal(array, arrays[key])


def test_random_targets_are_standard_normal():
    y = dataset("two_layer", target="random", noise=0.0, train_examples=5000).train["y"]
    assert np.mean(y) == pytest.approx(0, abs=0.05)
    assert np.std(y) == pytest.approx(1, abs=0.05)


def test_chunks_contain_every_whole_batch_once(monkeypatch: pytest.MonkeyPatch):
    whole_set = dataset("recurrent", train_examples=100)
    whole = whole_set.read(whole_set.chunks(16)[0], 16)
    assert whole["x"].shape == (6, 16, 5, 4)
    monkeypatch.setattr(data, "CHUNK_BYTES", 3 * 16 * (5 * 4 * 4 + 8 + 3 * 4))
    chunks = whole_set.chunks(16)
    assert chunks == [slice(0, 48), slice(48, 96)]
    for key, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([whole_set.read(chunk, 16)[key] for chunk in chunks]), array)


@pytest.mark.parametrize("file", ["train_x.npy", "test_y.npy", "initial.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_damaged_data_file_is_named_in_the_error(file: str, damage: str):
    dataset("two_layer")
    path = Path("data/two_layer", file)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-8] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{file} (is missing|was changed after).*dvc repro") as error:
        data.DataSet("two_layer")
    assert len(str(error.value).splitlines()) == 1


def test_missing_data_give_an_error():
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        data.DataSet("two_layer")


def test_interrupted_generation_keeps_the_previous_data(monkeypatch: pytest.MonkeyPatch):
    dataset("two_layer")
    before = files("two_layer")

    def interrupted(path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.files.sha256", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dataset("two_layer", seed=1)
    assert files("two_layer") == before
    assert [path.name for path in Path("data").iterdir()] == ["two_layer"]
