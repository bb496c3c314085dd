"""The model of params.yaml, typed and strict. A wrong key or value gives a sentence with the remedy."""

import codecs
import difflib
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, create_model, model_validator

from pipeline.contract import implementation_file, load_problem
from pipeline.errors import UserError
from pipeline.measures import Float, PositiveFloat, Tolerances
from pipeline.problems import PROBLEMS, Section, Size

PARAMS = Path("params.yaml")
MOST_BYTES = 100_000
MOST_ERRORS = 20
MOST_THREADS = 1024


Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*_[a-z0-9_]+$")]


class Data(Section):
    target: Literal["teacher", "random"]
    noise: Annotated[Float, Field(ge=0, le=1e6)]


class Train(Section):
    learning_rate: PositiveFloat
    checkpoint_seconds: Annotated[Float, Field(ge=0, le=1e9)]


class Parity(Section):
    float32: Tolerances
    float64: Tolerances
    tf32: Tolerances


class Benchmark(Section):
    processes: Literal[0] | Annotated[int, Field(ge=2, le=1000)]
    rounds: Annotated[int, Field(ge=1, le=1000)]
    turn_seconds: Annotated[PositiveFloat, Field(le=3600)]
    seconds: Annotated[PositiveFloat, Field(le=86_400)]


class Schedule(Section):
    batch_size: Size
    steps: Size


class ProblemParams(Section):
    """The section of a problem. `data` has the problem's sizes, train_examples and test_examples; `benchmark` holds
    sizes with a batch_size each, smallest first."""

    data: Any
    train: Schedule
    benchmark: list[Any]

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if self.train.batch_size > self.data.train_examples:
            raise UserError(
                f"{PARAMS}: a batch_size of {self.train.batch_size} is more than the {self.data.train_examples} "
                "train_examples of its problem. Lower batch_size or raise train_examples."
            )
        return self

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of a step of the training, as a case of the benchmark has them."""
        sizes = self.data.model_dump(exclude={"train_examples", "test_examples"})
        return {"batch_size": self.train.batch_size, **sizes}

    @property
    def cases(self) -> list[dict[str, int]]:
        """The sizes of the benchmark, smallest first."""
        return [{"batch_size": case.batch_size, **case.model_dump()} for case in self.benchmark]


def _section_of(problem: str) -> type[ProblemParams]:
    sizes = load_problem(problem).Sizes
    counts: dict[str, Any] = dict.fromkeys(("train_examples", "test_examples"), (Size, ...))
    data = create_model("Data", __base__=sizes, **counts)
    case = create_model("Case", __base__=sizes, batch_size=(Size, ...))
    cases: Any = Annotated[list[case], Field(min_length=1)]
    fields: dict[str, Any] = {"data": (data, ...), "benchmark": (cases, ...)}
    return create_model("ProblemParams", __base__=ProblemParams, **fields)


class _Problems(Section):
    def __getitem__(self, problem: str) -> ProblemParams:
        return getattr(self, problem)


if TYPE_CHECKING:
    Problems = _Problems
else:
    Problems = create_model("Problems", __base__=_Problems, **{name: (_section_of(name), ...) for name in PROBLEMS})


class Params(Section):
    """All of params.yaml. The comments in that file explain the keys."""

    seed: Annotated[int, Field(ge=0, lt=2**128)]
    dtype: Literal["float32", "float64"]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=MOST_THREADS)]
    precision: Literal["highest", "tf32"]
    deterministic: bool
    implementations: Annotated[dict[Name, str], Field(min_length=1)]
    data: Data
    train: Train
    parity: Parity
    benchmark: Benchmark
    problems: Problems

    @property
    def tolerances(self) -> Tolerances:
        """The tolerances for the arithmetic of the run."""
        tf32 = self.dtype == "float32" and self.precision == "tf32"
        return self.parity.tf32 if tf32 else getattr(self.parity, self.dtype)

    @property
    def used_problems(self) -> list[str]:
        """The problems of the implementations, in their order."""
        return list(dict.fromkeys(self.implementations.values()))

    def names_of(self, problem: str) -> list[str]:
        return [name for name, of in self.implementations.items() if of == problem]

    def problem_of(self, name: str) -> str:
        """The problem of an implementation. Raises UserError when params.yaml does not list it."""
        if name not in self.implementations:
            names = ", ".join(self.implementations)
            raise UserError(f"{name} is not an implementation in {PARAMS}. Name one of {names}, or add it there.")
        return self.implementations[name]

    @model_validator(mode="after")
    def _files_exist(self) -> Self:
        for name, problem in self.implementations.items():
            if problem not in PROBLEMS:
                raise UserError(
                    f"{PARAMS}: implementations.{name} is {problem!r}, and there is no pipeline/problems/{problem}.py. "
                    f"Write it, or name one of {', '.join(PROBLEMS)}."
                )
            file = implementation_file(problem, name)
            if not file.is_file():
                names = sorted(path.stem for path in file.parent.glob("[!_]*.py"))
                raise UserError(
                    f"{PARAMS}: implementations.{name}: there is no {file}. "
                    f"Write it, or name one of {', '.join(names)}."
                )
        return self


def load_params(path: Path = PARAMS) -> Params:
    """Read and check params.yaml. Raises UserError when the file is missing, is not YAML, or holds an unknown key, a
    wrong type or a wrong value.
    """
    try:
        return Params.model_validate(_content(path))
    except ValidationError as error:
        # Each branch of a union has its own error, with the same sentence.
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
        raise UserError(f"{path} is {len(content):,} bytes long, and at most {MOST_BYTES:,} are allowed. {remedy}")
    try:
        params = yaml.load(content.decode(), _StrictLoader)  # noqa: S506 (a safe one)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text: byte {error.start} is {content[error.start]:#x}. {remedy}"
        ) from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be read. {remedy}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of 5,000 digits
        problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
        reason = f"{problem} (line {mark.line + 1})" if problem and mark else " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {_short(reason, 200)}. Correct that place.") from None
    if not isinstance(params, dict):
        raise UserError(f"{path} must hold `key: value` lines. {remedy}")
    return params


class _StrictLoader(yaml.SafeLoader):
    """YAML without anchors, tags and repeated keys, with only those scalars that DVC reads in the same way.

    DVC reads the file as YAML 1.2 and PyYAML as YAML 1.1, where `yes`, `010`, `1:30` and `1_000` mean something else.
    This loader takes them as text, which no key of params.yaml allows.
    """

    yaml_implicit_resolvers: ClassVar = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            raise yaml.MarkedYAMLError(
                problem="YAML anchors are not supported here; repeat the value", problem_mark=event.start_mark
            )
        if event.tag:
            raise yaml.MarkedYAMLError(
                problem=f"the tag {event.tag} is not supported here", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        if repeated := [key for key, _ in node.value if isinstance(key.value, str) and keys.count(key.value) > 1]:
            raise yaml.MarkedYAMLError(
                problem=f"the key {repeated[1].value} is there twice", problem_mark=repeated[1].start_mark
            )
        return super().construct_mapping(node, deep)


for _kind, _pattern in {
    "bool": r"true|True|TRUE|false|False|FALSE",
    "null": r"~|null|Null|NULL|",
    "int": r"[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|(0|[1-9][0-9]*)(?=[eE]))([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}.items():
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), None)


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _shown(value: Any) -> str:
    try:
        return _short(repr(value))
    except ValueError:  # Python refuses to write a number with so many digits
        return "a number of thousands of digits"


def _sentence(path: Path, detail: Any) -> str:
    # A union's branches and dict keys add a last element to the location: `threads.int`.
    location = [_short(str(part)) for part in detail["loc"]]
    if location[0] == "threads":
        return (
            f"{path}: threads is {_shown(detail['input'])}; it must be auto or a whole number from 1 to {MOST_THREADS}."
        )
    key, value = ".".join(location), detail["input"]
    if detail["type"] == "extra_forbidden":
        allowed = list(_section(location[:-1]).model_fields)
        close = difflib.get_close_matches(location[-1], allowed, 1)
        remedy = f"Did you mean {close[0]}?" if close else f"Known there: {', '.join(allowed)}."
        return f"{path}: unknown key {key}. {remedy}"
    if detail["type"] == "missing":
        return f"{path}: the key {key} is missing. `git diff {path}` shows what was taken out."
    if value is None or value in ({}, []):
        return f"{path}: {key} is empty. It must have a value; `git diff {path}` shows what was taken out."
    advice = detail["msg"].removeprefix("Input ").replace("a valid integer", "a whole number").replace("valid ", "")
    if location[0] == "device":
        advice = "should be auto, cpu, cuda or cuda:N"
    if isinstance(value, str) and detail["type"] in ("float_type", "int_type"):
        with suppress(ValueError):
            advice += f", and this is text: write {float(value):g} without quotes"
    return f"{path}: {key} is {_shown(value)}; it {advice}."


def _section(location: list[str]) -> type[BaseModel]:
    section: Any = Params
    for key in location:
        section = get_args(section)[0] if key.isdigit() else section.model_fields[key].annotation
    return section
