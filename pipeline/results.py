"""The content of the JSON files that stages write: a model for each file. (environment.json is `Environment` in
pipeline/environment.py, and graphs/NAME.json is a model in pipeline/graphs.) Only the models' `write` and `read` access
these files. `read` raises UserError when the file is missing, damaged, or of another version.
"""

import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import files
from pipeline.errors import UserError
from pipeline.measures import Measures, Tolerances


class Result(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def write(self, path: Path) -> None:
        files.write_json(path, self.model_dump())

    @classmethod
    def read(cls, path: Path) -> Self:
        try:
            return cls.model_validate_json(json.dumps(files.read_json(path)))
        except ValidationError as error:
            detail = error.errors()[0]
            reason = f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
            raise UserError(f"{path} is damaged ({reason}). Delete it and run `dvc repro`.") from None


class Provenance(Result):
    """The machine, the time and the commit of a measurement."""

    device: str
    device_name: str
    cpu_name: str
    threads: int
    precision: str
    deterministic: bool
    python: str
    versions: dict[str, str]
    variables: dict[str, str]  # the environment variables that may change the last bits of a result
    measured_at: str  # ISO 8601, UTC
    measured_on: str  # the host's name
    run_began: str  # when the first stage of this `dvc repro` began
    commit: str


class Conditions(Result):
    """What else the machine did while a process of a benchmark measured."""

    cpus_of_other_processes: float  # an average, of the CPUs that the process may use
    stolen_cpus: float  # an average, of the CPUs that the host of a virtual machine took
    gpu: dict[str, Any] | None  # pipeline/benchmark/monitor.py


class BenchmarkProvenance(Provenance):
    """results/benchmark.json."""

    cpus: int  # that a process may use
    processes: list[Conditions]  # by the number of the process
    stopped: str  # why no further process was started


class Timing(Provenance):
    """results/NAME/timing.json: what a training took."""

    breakdown_seconds: dict[str, float]  # by the lines of TIME_BREAKDOWN; they add up to wall_seconds
    wall_seconds: float  # since the process started
    step_seconds_median: float
    step_seconds_p95: float
    examples_per_second: float
    peak_memory_bytes: int
    captured_graphs: int
    replayed_steps: int
    continued_at: list[int]  # the steps at which a killed training went on

    @property
    def replays(self) -> str:
        """A sentence on the steps that were replays of CUDA graphs; empty where none was."""
        steps, graphs = self.replayed_steps, self.captured_graphs
        return f"{steps:,} steps were replays of {graphs:,} CUDA graphs" if steps else ""


class Metrics(Result):
    """results/NAME/metrics.json."""

    train_loss: float  # of the last step
    steps: int


class Evaluation(Result):
    """parity/NAME.json. Losses are means over the test set; R² is 1 - loss / loss of the best constant prediction."""

    initial_test_loss: float
    test_loss: float
    test_r2: float
    parity: Measures
    outputs_md5: str  # of the outputs.safetensors that was judged, as dvc.lock has it


class FirstWrong(Result):
    """The first mistake in a lesson that fails the parity check (pipeline/parity/explain.py)."""

    sentence: str
    quantity: str  # empty where no quantity of a step differs
    line: int | None  # of the lesson's file


class Judged(Evaluation):
    problem: str
    failed: list[str]  # the measures that are over their tolerance
    first_wrong: FirstWrong | None = None  # of one that failed


class ParityReport(Result):
    """results/parity.json: every implementation, and whether it is within the tolerances."""

    passed: bool
    dtype: str
    tolerances: Tolerances
    implementations: dict[str, Judged]


class Summary(Result):
    """summary.json: the numbers by which `dvc exp show` compares states. `worst_parity` is over all implementations."""

    held_out_loss: dict[str, float]  # by problem, the highest
    worst_parity: Measures
    step_microseconds: dict[str, float]
    claims_that_hold: int
