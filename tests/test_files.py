"""Files that stages leave: whole or as before, and checked for all that can be wrong when they are read."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import records
from pipeline.errors import UserError
from pipeline.tensors import read_tensors, write_tensors

WEIGHTS = {"w1": np.arange(6, dtype=np.float32).reshape(2, 3), "w2": np.ones((3, 1), np.float64)}
SHAPES = {"w1": (2, 3), "w2": (3, 1)}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def test_tensors_come_back_as_they_were_and_the_bytes_repeat():
    write_tensors(Path("a/weights.safetensors"), WEIGHTS)
    write_tensors(Path("b/weights.safetensors"), dict(reversed(WEIGHTS.items())))
    assert Path("a/weights.safetensors").read_bytes() == Path("b/weights.safetensors").read_bytes()
    for key, array in read_tensors(Path("a/weights.safetensors"), SHAPES).items():
        np.testing.assert_array_equal(array, WEIGHTS[key])
        assert array.dtype == WEIGHTS[key].dtype


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        ("missing", "is missing"),
        ("truncated", "is damaged"),
        ("bit", "its checksum does not match"),
        ("shape", "where {'w1': (2, 3), 'w2': (3, 1)} is wanted"),
        ("nan", "w1 holds 1 values not finite"),
    ],
)
def test_harmed_weights_are_refused(harm: str, sentence: str):
    path = Path("weights.safetensors")
    weights = {key: array.copy() for key, array in WEIGHTS.items()}
    if harm == "nan":
        weights["w1"][0, 0] = np.nan
    if harm == "shape":
        weights["w1"] = weights["w1"].T
    write_tensors(path, weights)
    content = path.read_bytes()
    if harm == "missing":
        path.unlink()
    if harm == "truncated":
        path.write_bytes(content[:-8])
    if harm == "bit":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError) as error:
        read_tensors(path, SHAPES)
    assert sentence in str(error.value)
    assert "dvc repro" in str(error.value)


def test_a_failed_write_leaves_the_file_as_it_was():
    path = Path("results/a.json")
    records.write_json(path, {"value": 1})
    with pytest.raises(ValueError, match="Out of range"):
        records.write_json(path, {"value": float("nan")})
    with pytest.raises(TypeError):
        records.write_bytes(path, "text")  # pyright: ignore[reportArgumentType]
    assert records.read_json(path) == {"value": 1}
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(("content", "sentence"), [(None, "is missing"), ('{"a": 1', "is damaged")])
def test_json_that_is_not_there_or_not_whole(content: str | None, sentence: str):
    if content:
        Path("a.json").write_text(content)
    with pytest.raises(UserError, match=sentence):
        records.read_json(Path("a.json"))


def test_history_comes_back_to_the_bit():
    losses = [float(np.float32(1) / np.float32(3)), 1e-300, 7.0]
    records.write_history("a", losses)
    assert records.read_history("a") == losses
    assert records.result_file("a", "history.csv").read_text().startswith("step,train_loss\n0,")
    assert records.read_json(records.result_file("a", "metrics.json")) == {"train_loss": 7.0, "steps": 3}


@pytest.mark.parametrize("content", ["", "step,loss\n0,1\n", "step,train_loss\n0,x\n", "step,train_loss\n0\n"])
def test_a_damaged_history(content: str):
    path = records.result_file("a", "history.csv")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        records.read_history("a")
