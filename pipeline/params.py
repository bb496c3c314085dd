"""params.yaml, typed and strict: what it may hold, and a clear sentence for what it may not."""

import codecs
import difflib
import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import UserError

PARAMS = Path("params.yaml")
MOST_BYTES = 100_000
MOST_ERRORS = 20
MOST_THREADS = 1024


def _number(value: Any) -> Any:
    """`1e-3`, which YAML 1.1 reads as a string for want of a dot, is the number that it looks like; 1 is 1.0."""
    if type(value) is int or (isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    return value


Float = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
PositiveFloat = Annotated[Float, Field(gt=0)]
Size = Annotated[int, Field(ge=1, le=2**53)]  # what takes too much is said by experiment/demand.py
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*_[a-z0-9_]+$")]


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
    noise: Annotated[Float, Field(ge=0, le=1e6)]
    two_layer: TwoLayerData
    recurrent: RecurrentData


class Schedule(Section):
    batch_size: Size
    steps: Size


class Train(Section):
    learning_rate: PositiveFloat
    checkpoint_seconds: Annotated[Float, Field(ge=0, le=1e9)]
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
    tf32: Tolerances


class Benchmark(Section):
    processes: Literal[0] | Annotated[int, Field(ge=2, le=1000)]
    rounds: Annotated[int, Field(ge=1, le=1000)]
    turn_seconds: Annotated[PositiveFloat, Field(le=3600)]
    two_layer: Annotated[list[TwoLayerCase], Field(min_length=1)]
    recurrent: Annotated[list[RecurrentCase], Field(min_length=1)]

    def of(self, problem: str) -> list[Any]:
        return getattr(self, problem)


class Params(Section):
    """The whole of params.yaml; the keys are explained there."""

    seed: Annotated[int, Field(ge=0, lt=2**128)]
    dtype: Literal["float32", "float64"]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=MOST_THREADS)]
    precision: Literal["highest", "tf32"]
    deterministic: bool
    implementations: Annotated[dict[Name, Literal["two_layer", "recurrent"]], Field(min_length=1)]
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

    @property
    def tolerances(self) -> Tolerances:
        """What parity may differ by in the run's arithmetic."""
        return (
            self.parity.tf32
            if self.dtype == "float32" and self.precision == "tf32"
            else getattr(self.parity, self.dtype)
        )

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
            if not Path(f"pipeline/lessons/{problem}/{name}.py").is_file():
                known = sorted(path.stem for path in Path(f"pipeline/lessons/{problem}").glob("[!_]*.py"))
                raise UserError(
                    f"{PARAMS}: implementations.{name}: there is no pipeline/lessons/{problem}/{name}.py. "
                    f"Write it, or name one of {', '.join(known)}."
                )
        return self


def load_params(path: Path = PARAMS) -> Params:
    """What params.yaml says.

    Raises UserError when the file is missing, is not YAML, or holds an unknown key, a wrong type or a wrong value.
    """
    try:
        return Params.model_validate(_content(path))
    except ValidationError as error:
        # Each branch of a union has its own error, and they make the same sentence.
        sentences = list(dict.fromkeys(_sentence(path, detail) for detail in error.errors(include_url=False)))
        more = [f"{path}: {len(sentences) - MOST_ERRORS} more are wrong."] if len(sentences) > MOST_ERRORS else []
        raise UserError("\n".join(sentences[:MOST_ERRORS] + more)) from None


def _content(path: Path) -> dict[str, Any]:
    remedy = f"`git checkout {path}` brings the default back."
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing. {remedy}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. {remedy}") from None
    if content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path} begins with a byte order mark. Save it as UTF-8 without one.")
    if len(content) > MOST_BYTES:
        raise UserError(f"{path} is {len(content):,} bytes long, where {MOST_BYTES:,} should do. {remedy}")
    try:
        found = yaml.load(content.decode(), _StrictLoader)  # noqa: S506 (a safe one)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text: byte {error.start} is {content[error.start]:#x}. {remedy}"
        ) from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be read. {remedy}") from None
    except (yaml.YAMLError, ValueError) as error:  # a date that does not exist, or a number of 5,000 digits
        problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
        reason = f"{problem} (line {mark.line + 1})" if problem and mark else " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {_short(reason, 200)}. Correct that place.") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold `key: value` lines; {remedy}")
    return found


class _StrictLoader(yaml.SafeLoader):
    """YAML's plain part: no key twice, and nothing that stands for something else."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        for what, there in (("an alias", isinstance(event, yaml.AliasEvent)), ("an anchor", event.anchor)):
            if there:
                raise yaml.MarkedYAMLError(problem=f"{what} stands there; write it out", problem_mark=event.start_mark)
        if event.tag:
            raise yaml.MarkedYAMLError(problem=f"the tag {event.tag} stands there", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value} is there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _shown(value: Any) -> str:
    try:
        return _short(repr(value))
    except ValueError:  # a number of more digits than Python writes
        return "a number of thousands of digits"


def _sentence(path: Path, detail: Any) -> str:
    # A union's branches and dict keys add a last element of their own to the location: `threads.int`.
    location = [_short(str(part)) for part in detail["loc"]]
    if location[0] == "threads":
        return (
            f"{path}: threads is {_shown(detail['input'])}; it must be auto or a whole number from 1 to {MOST_THREADS}."
        )
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
    return f"{path}: {key} is {_shown(found)}; it {advice}."


def _section(location: list[str]) -> type[BaseModel]:
    section: Any = Params
    for key in location:
        section = get_args(section)[0] if key.isdigit() else section.model_fields[key].annotation
    return section
