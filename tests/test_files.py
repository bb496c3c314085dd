"""Result files are written completely or not at all, and checked when they are read."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import files
from pipeline.array_files import read_arrays, write_arrays
from pipeline.errors import UserError
from pipeline.results import Metrics

WEIGHTS = {"w1": np.arange(6, dtype=np.float32).reshape(2, 3), "w2": np.ones((3, 1), np.float64)}
SHAPES = {"w1": (2, 3), "w2": (3, 1)}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def test_written_arrays_are_read_unchanged_and_their_bytes_repeat():
    write_arrays(Path("a/weights.safetensors"), WEIGHTS)
    write_arrays(Path("b/weights.safetensors"), dict(reversed(WEIGHTS.items())))
    assert Path("a/weights.safetensors").read_bytes() == Path("b/weights.safetensors").read_bytes()
    for key, array in read_arrays(Path("a/weights.safetensors"), SHAPES).items():
        np.testing.assert_array_equal(array, WEIGHTS[key])
        assert array.dtype == WEIGHTS[key].dtype


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("missing", "is missing"),
        ("truncated", "is damaged"),
        ("bit", "its checksum does not match"),
        ("shape", "but {'w1': (2, 3), 'w2': (3, 1)} is needed"),
        ("nan", "w1 holds 1 values that are not finite"),
    ],
)
def test_damaged_weights_are_refused(damage: str, sentence: str):
    path = Path("weights.safetensors")
    weights = {key: array.copy() for key, array in WEIGHTS.items()}
    if damage == "nan":
        weights["w1"][0, 0] = np.nan
    if damage == "shape":
        weights["w1"] = weights["w1"].T
    write_arrays(path, weights)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    if damage == "truncated":
        path.write_bytes(content[:-8])
    if damage == "bit":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError) as error:
        read_arrays(path, SHAPES)
    assert sentence in str(error.value)
    assert "dvc repro" in str(error.value)


def test_failed_write_leaves_the_file_unchanged():
    path = Path("results/a.json")
    files.write_json(path, {"value": 1})
    with pytest.raises(ValueError, match="Out of range"):
        files.write_json(path, {"value": float("nan")})
    with pytest.raises(TypeError):
        files.write_bytes(path, "text")  # pyright: ignore[reportArgumentType]
    assert files.read_json(path) == {"value": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(("content", "sentence"), [(None, "is missing"), ('{"a": 1', "is damaged")])
def test_missing_or_truncated_json_is_refused(content: str | None, sentence: str):
    if content:
        Path("a.json").write_text(content)
    with pytest.raises(UserError, match=sentence):
        files.read_json(Path("a.json"))


def test_written_history_is_read_bit_for_bit():
    losses = [float(np.float32(1) / np.float32(3)), 1e-300, 7.0]
    path = files.result_file("a", "history.csv")
    files.write_rows(path, "step,train_loss", zip(range(0, 9, 4), losses, strict=True))
    assert files.read_history("a") == ([0, 4, 8], losses)
    assert path.read_text().startswith("step,train_loss\n0,")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"train_loss": 1.0}', "steps: Field required"),
        ('{"train_loss": "1.0", "steps": 3}', "train_loss: Input should be a valid number"),
        ('{"train_loss": 1.0, "steps": 3, "more": 4}', "more: Extra inputs are not permitted"),
    ],
)
def test_result_with_wrong_fields_is_refused(content: str, sentence: str):
    Path("metrics.json").write_text(content)
    with pytest.raises(UserError, match=rf"metrics\.json is damaged \({sentence}.*dvc repro"):
        Metrics.read(Path("metrics.json"))


def test_written_result_is_read_unchanged():
    Metrics(train_loss=0.1, steps=3).write(Path("metrics.json"))
    assert Metrics.read(Path("metrics.json")) == Metrics(train_loss=0.1, steps=3)


@pytest.mark.parametrize("content", ["", "step,loss\n0,1\n", "step,train_loss\n0,x\n", "step,train_loss\n0\n"])
def test_damaged_history_is_refused(content: str):
    path = files.result_file("a", "history.csv")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        files.read_history("a")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "is missing"), ("target,prediction\n", "is damaged"), ("target,prediction\n1.0,nan\n", "is damaged")],
)
def test_missing_or_damaged_predictions_are_refused(content: str | None, sentence: str):
    path = files.predictions_file("a")
    if content:
        path.parent.mkdir(parents=True)
        path.write_text(content)
    with pytest.raises(UserError, match=f"{sentence}.*dvc repro evaluate"):
        files.read_predictions("a")
