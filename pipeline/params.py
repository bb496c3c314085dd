"""params.yaml, typed and strict: what it may hold, and a clear sentence for what it may not."""

import difflib
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import UserError

PARAMS = Path("params.yaml")


def _number(value: Any) -> Any:
    """`1e-3`, which YAML 1.1 reads as a string for want of a dot, is the number that it looks like; 1 is 1.0."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return float(value) if type(value) is int else value


Float = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
PositiveFloat = Annotated[Float, Field(gt=0)]
Size = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TwoLayer(Section):
    inputs: Size
    hidden: Size
    outputs: Size


class Recurrent(TwoLayer):
    min_length: Size
    max_length: Size

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.min_length > self.max_length:
            raise UserError(
                f"{PARAMS}: a min_length of {self.min_length} is over its max_length of {self.max_length}. "
                "Lower the one or raise the other."
            )
        return self


class TwoLayerData(TwoLayer):
    train_examples: Size
    test_examples: Size


class RecurrentData(Recurrent):
    train_examples: Size
    test_examples: Size


class TwoLayerCase(TwoLayer):
    batch_size: Size


class RecurrentCase(Recurrent):
    batch_size: Size


class Data(Section):
    target: Literal["teacher", "random"]
    noise: Annotated[Float, Field(ge=0)]
    two_layer: TwoLayerData
    recurrent: RecurrentData


class Schedule(Section):
    batch_size: Size
    steps: Size


class Train(Section):
    learning_rate: PositiveFloat
    checkpoint_seconds: Annotated[Float, Field(ge=0)]
    two_layer: Schedule
    recurrent: Schedule

    def of(self, problem: str) -> Schedule:
        return getattr(self, problem)


class Tolerances(Section):
    gradient: PositiveFloat
    loss_curve: PositiveFloat
    predictions: PositiveFloat


class Parity(Section):
    float32: Tolerances
    float64: Tolerances


class Benchmark(Section):
    processes: Annotated[int, Field(ge=2)]
    rounds: Size
    turn_seconds: PositiveFloat
    two_layer: Annotated[list[TwoLayerCase], Field(min_length=1)]
    recurrent: Annotated[list[RecurrentCase], Field(min_length=1)]

    def of(self, problem: str) -> list[Any]:
        return getattr(self, problem)


class Params(Section):
    """The whole of params.yaml; the keys are explained there."""

    seed: Annotated[int, Field(ge=0)]
    dtype: Literal["float32", "float64"]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    threads: Literal["auto"] | Size
    precision: Literal["highest", "tf32"]
    deterministic: bool
    implementations: Annotated[dict[str, Literal["two_layer", "recurrent"]], Field(min_length=1)]
    data: Data
    train: Train
    parity: Parity
    benchmark: Benchmark

    def problem_of(self, name: str) -> str:
        """The problem of an implementation. Raises UserError when params.yaml does not list it."""
        if name not in self.implementations:
            raise UserError(
                f"{name} is not in {PARAMS} under implementations; listed there: {', '.join(self.implementations)}."
            )
        return self.implementations[name]

    def sizes(self, problem: str) -> dict[str, int]:
        """The sizes of a step of the training, as a case of the benchmark has them."""
        data = getattr(self.data, problem).model_dump(exclude={"train_examples", "test_examples"})
        return {"batch_size": self.train.of(problem).batch_size, **data}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for problem in ("two_layer", "recurrent"):
            batch_size, examples = self.train.of(problem).batch_size, getattr(self.data, problem).train_examples
            if batch_size > examples:
                raise UserError(
                    f"{PARAMS}: train.{problem}.batch_size is {batch_size}, but there are only {examples} training "
                    f"examples (data.{problem}.train_examples). Lower the one or raise the other."
                )
        for name, problem in self.implementations.items():
            if not Path(f"pipeline/{problem}/{name}.py").is_file():
                known = sorted(path.stem for path in Path(f"pipeline/{problem}").glob("[!_]*.py"))
                raise UserError(
                    f"{PARAMS}: implementations.{name}: there is no pipeline/{problem}/{name}.py. "
                    f"Write it, or name one of {', '.join(known)}."
                )
        return self


def load_params(path: Path = PARAMS) -> Params:
    """What params.yaml says.

    Raises UserError when the file is missing, is not YAML, or holds an unknown key, a wrong type or a wrong value.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing. `git checkout {path}` brings the default back.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}. Correct that place.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold `key: value` lines; `git checkout {path}` brings the default back.")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        # Each branch of a union has its own error, and they make the same sentence.
        raise UserError("\n".join(dict.fromkeys(_sentence(path, detail) for detail in error.errors()))) from None


def _sentence(path: Path, detail: Any) -> str:
    # A union's branches and dict keys add a last element of their own to the location: `threads.int`.
    location = [str(part) for part in detail["loc"]]
    if location[0] == "threads":
        return f"{path}: threads is {detail['input']!r}; it must be auto or a whole number of at least 1."
    key, found = ".".join(location), detail["input"]
    if detail["type"] == "extra_forbidden":
        allowed = list(_section(location[:-1]).model_fields)
        close = difflib.get_close_matches(location[-1], allowed, 1)
        remedy = f"Did you mean {close[0]}?" if close else f"Known there: {', '.join(allowed)}."
        return f"{path}: unknown key {key}. {remedy}"
    if detail["type"] == "missing":
        return f"{path}: the key {key} is missing. `git diff {path}` shows what was taken out."
    if found is None or found in ({}, []):
        return f"{path}: {key} is empty. It must have a value; `git diff {path}` shows what was taken out."
    advice = detail["msg"].removeprefix("Input ").replace("a valid integer", "a whole number").replace("valid ", "")
    if location[0] == "device":
        advice = "should be auto, cpu, cuda or cuda:N"
    if isinstance(found, str) and detail["type"] in ("float_type", "int_type"):
        with suppress(ValueError):
            advice += f", and this is text: write {float(found):g} without quotes"
    return f"{path}: {key} is {found!r}; it {advice}."


def _section(location: list[str]) -> type[BaseModel]:
    section: Any = Params
    for key in location:
        section = get_args(section)[0] if key.isdigit() else section.model_fields[key].annotation
    return section
