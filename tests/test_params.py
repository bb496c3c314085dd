"""The valid content of params.yaml, and a sentence for each kind of invalid content."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY
from dvc.utils.serialize import parse_yaml

from pipeline.errors import UserError
from pipeline.params import _StrictLoader, load_params


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)


def loaded(tmp_path: Path, key: str, value: Any) -> Any:
    content = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    section = content
    *sections, last = key.split("/")
    for name in sections:
        section = section[name]
    section[last] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_params(path)


def test_default_params_are_valid():
    assert load_params().implementations


def test_number_that_yaml_reads_as_text_is_accepted(tmp_path: Path):
    path = tmp_path / "params.yaml"
    text = (REPOSITORY / "params.yaml").read_text()
    path.write_text(text.replace("learning_rate: 0.2 ", "learning_rate: 1e-3 "))
    assert yaml.safe_load(path.read_text())["train"]["learning_rate"] == "1e-3", "PyYAML reads numbers otherwise now"
    assert load_params(path).train.learning_rate == 0.001
    assert loaded(tmp_path, "train/learning_rate", 1).train.learning_rate == 1.0


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("train/learning_rat", 0.1, "unknown key train.learning_rat. Did you mean learning_rate?"),
        ("problems/two_layer/data/depth", 3, "unknown key problems.two_layer.data.depth. Known there: inputs"),
        ("train/learning_rate", "fast", "train.learning_rate is 'fast'; it should be a number."),
        ("train/learning_rate", -0.1, "train.learning_rate is -0.1; it should be greater than 0"),
        ("train/learning_rate", float("nan"), "train.learning_rate is nan; it should be a finite number"),
        ("train/learning_rate", True, "train.learning_rate is True; it should be a number"),
        (
            "problems/two_layer/train/steps",
            0,
            "problems.two_layer.train.steps is 0; it should be greater than or equal to 1",
        ),
        ("problems/two_layer/train/steps", 1.5, "problems.two_layer.train.steps is 1.5; it should be a whole number"),
        ("problems/two_layer/train/steps", "10", "and this is text: write 10 without quotes"),
        ("problems/recurrent/data/max_length", 0, "problems.recurrent.data.max_length is 0"),
        ("problems/recurrent/train", None, "problems.recurrent.train is empty"),
        ("implementations", {}, "implementations is empty"),
        ("implementations", [], "implementations is empty"),
        (
            "implementations",
            {"numpy_array": "two_layer"},
            "implementations.numpy_array: there is no pipeline/lessons/two_layer/",
        ),
        (
            "implementations",
            {"numpy_arrays": "three_layer"},
            "there is no pipeline/problems/three_layer.py. Write it, or name one of recurrent, two_layer",
        ),
        ("problems/two_layer/train/batch_size", 10**6, "a batch_size of 1000000 is more than the 6400 train_examples"),
        ("device", "gpu", "device is 'gpu'; it should be auto, cpu, cuda or cuda:N"),
        ("threads", 0, "threads is 0; it must be auto or a whole number"),
        ("dtype", "float16", "dtype is 'float16'; it should be 'float32' or 'float64'"),
        ("seed", -1, "seed is -1"),
    ],
)
def test_invalid_value_is_refused_with_a_sentence(tmp_path: Path, key: str, value: Any, sentence: str):
    with pytest.raises(UserError) as error:
        loaded(tmp_path, key, value)
    assert sentence in str(error.value)
    assert str(error.value).startswith(("params.yaml", str(tmp_path)))
    assert "\n" not in str(error.value)


def test_missing_key_is_named_in_the_error(tmp_path: Path):
    content = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    del content["train"]["learning_rate"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"the key train\.learning_rate is missing"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "scalar",
    [
        "1e-3",
        "1E5",
        "010",
        "-010",
        "00",
        "0o10",
        "0x1F",
        "0b1",
        "yes",
        "no",
        "on",
        "off",
        "true",
        "True",
        "y",
        "1:30",
        "1_000",
        "1_0.5",
        "2026-01-01",
        "1.",
        ".5",
        "07.5",
        "+1",
        "-0",
        "0",
        "~",
        "null",
        ".inf",
        ".nan",
        "1e400",
        "1.0E-13",
        "2026-01-01T00:00:00Z",
        "text",
    ],
)
def test_scalar_is_read_as_dvc_reads_it_or_as_text(scalar: str):
    value = yaml.load(f"key: {scalar}\n", _StrictLoader)["key"]  # noqa: S506 (a safe one)
    dvc = parse_yaml(f"key: {scalar}\n", "params.yaml")["key"]
    assert repr(value) == repr(dvc) or value == scalar


@pytest.mark.parametrize("scalar", ["010", "0o10", "1_000", "1:30", "yes", "2026-01-01"])
def test_scalar_that_yaml_readers_disagree_on_is_refused(tmp_path: Path, scalar: str):
    text = (REPOSITORY / "params.yaml").read_text()
    assert "seed: 0 " in text
    (tmp_path / "params.yaml").write_text(text.replace("seed: 0 ", f"seed: {scalar} "))
    with pytest.raises(UserError, match=f"seed is '{scalar}'"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("train: [1, 2", "is not valid YAML"), ("just text", "must hold `key: value` lines"), ("", "must hold")],
)
def test_invalid_yaml_is_refused(tmp_path: Path, content: str, sentence: str):
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(UserError, match=sentence):
        load_params(tmp_path / "params.yaml")


def test_missing_params_file_gives_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="is missing"):
        load_params(tmp_path / "params.yaml")
