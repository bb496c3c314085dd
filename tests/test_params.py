"""What params.yaml may hold, and the sentence for each thing that it may not."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

from pipeline.errors import UserError
from pipeline.params import load_params


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


def test_the_default_is_valid():
    assert load_params().implementations


def test_a_number_that_yaml_reads_as_text_is_the_number(tmp_path: Path):
    path = tmp_path / "params.yaml"
    text = (REPOSITORY / "params.yaml").read_text()
    path.write_text(text.replace("learning_rate: 0.2 ", "learning_rate: 1e-3 "))
    assert yaml.safe_load(path.read_text())["train"]["learning_rate"] == "1e-3"
    assert load_params(path).train.learning_rate == 0.001
    assert loaded(tmp_path, "train/learning_rate", 1).train.learning_rate == 1.0


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("train/learning_rat", 0.1, "unknown key train.learning_rat. Did you mean learning_rate?"),
        ("data/two_layer/depth", 3, "unknown key data.two_layer.depth. Known there: inputs"),
        ("train/learning_rate", "fast", "train.learning_rate is 'fast'; it should be a number."),
        ("train/learning_rate", -0.1, "train.learning_rate is -0.1; it should be greater than 0"),
        ("train/learning_rate", float("nan"), "train.learning_rate is nan; it should be a finite number"),
        ("train/learning_rate", True, "train.learning_rate is True; it should be a number"),
        ("train/two_layer/steps", 0, "train.two_layer.steps is 0; it should be greater than or equal to 1"),
        ("train/two_layer/steps", 1.5, "train.two_layer.steps is 1.5; it should be a whole number"),
        ("train/two_layer/steps", "10", "and this is text: write 10 without quotes"),
        ("data/recurrent/max_length", 0, "data.recurrent.max_length is 0"),
        ("train/recurrent", None, "train.recurrent is empty"),
        ("implementations", {}, "implementations is empty"),
        ("implementations", [], "implementations is empty"),
        (
            "implementations",
            {"numpy_array": "two_layer"},
            "implementations.numpy_array: there is no pipeline/lessons/two_layer/",
        ),
        ("implementations", {"numpy_arrays": "three_layer"}, "implementations.numpy_arrays is 'three_layer'"),
        ("train/two_layer/batch_size", 10**6, "train.two_layer.batch_size is 1000000, but there are only 6400"),
        ("device", "gpu", "device is 'gpu'; it should be auto, cpu, cuda or cuda:N"),
        ("threads", 0, "threads is 0; it must be auto or a whole number"),
        ("dtype", "float16", "dtype is 'float16'; it should be 'float32' or 'float64'"),
        ("seed", -1, "seed is -1"),
    ],
)
def test_what_it_may_not_hold(tmp_path: Path, key: str, value: Any, sentence: str):
    with pytest.raises(UserError) as error:
        loaded(tmp_path, key, value)
    assert sentence in str(error.value)
    assert str(error.value).startswith(("params.yaml", str(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named(tmp_path: Path):
    content = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    del content["train"]["learning_rate"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"the key train\.learning_rate is missing"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("train: [1, 2", "is not valid YAML"), ("just text", "must hold `key: value` lines"), ("", "must hold")],
)
def test_what_is_no_params_file(tmp_path: Path, content: str, sentence: str):
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(UserError, match=sentence):
        load_params(tmp_path / "params.yaml")


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(UserError, match="is missing"):
        load_params(tmp_path / "params.yaml")
