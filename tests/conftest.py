"""Shared fixtures: small problems in memory, and small pipelines in fresh clones."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fake_cuda import cuda  # noqa: F401 (a fixture)
from stores import project, send  # noqa: F401 (fixtures)

from pipeline.contract import Array, Weights, load_implementation, load_problem
from pipeline.environment import Environment
from pipeline.problems import PROBLEMS
from pipeline.running.processes import environment_for_another_run
from pipeline.runtimes import Loop, open_implementation

if TYPE_CHECKING:
    from pipeline.results import BenchmarkProvenance
    from pipeline.training.data import DataSet

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # background jobs ignore SIGINT, and processes that tests start would inherit that
REPOSITORY = Path(__file__).parent.parent
DVC = Path(sys.executable).parent / "dvc"  # the same as in the project's environments: one run at a time
SIZES = SimpleNamespace(inputs=7, hidden=5, outputs=3, min_length=1, max_length=6)
LESSONS = {
    path.stem: problem
    for problem in reversed(PROBLEMS)  # in the order of params.yaml
    for path in sorted((REPOSITORY / "pipeline/lessons" / problem).glob("[!_]*.py"))
}
HOST = Environment(
    device="cpu",
    device_name="the CPU",
    cpu_name="the CPU",
    driver=None,
    threads=2,
    precision="highest",
    deterministic=True,
    python="3.11",
    versions={"numpy": np.__version__},
)


@dataclass
class Lesson:
    """An implementation on small random data: B = 3 batches of N = 8 examples."""

    name: str
    problem: str
    dtype: str
    environment: Environment = HOST
    initial: dict[str, Array] = field(init=False)
    chunk: dict[str, Array] = field(init=False)

    def __post_init__(self) -> None:
        module, generator = load_problem(self.problem), np.random.default_rng(5)
        self.initial = {key: array.astype(self.dtype) for key, array in module.draw_weights(SIZES, generator).items()}
        inputs = module.draw_inputs(SIZES, 24, generator)
        arrays = inputs | {"y": module.draw_targets(SIZES, inputs, None, 0.1, generator)}
        self.chunk = {
            key: (array if key == "lengths" else array.astype(self.dtype)).reshape(3, 8, *array.shape[1:])
            for key, array in arrays.items()
        }

    def create(self, initial: Weights | None = None, learning_rate: float = 0.1) -> Loop:
        opened = open_implementation(self.name, self.problem, self.environment)
        return opened.create(initial or self.initial, learning_rate)

    def loop(self, kind: Any) -> Any:
        """A loop of the given kind on the implementation, on the chunk."""
        implementation = load_implementation(self.problem, self.name)
        loop = kind(implementation(self.initial, learning_rate=0.1, device="cpu"), self.initial, "cpu")
        loop.place({key: array.copy() for key, array in self.chunk.items()})
        return loop

    def placed(self) -> Loop:
        """A loop on the chunk, ready for its first step."""
        loop = self.create()
        loop.place(self.chunk)
        loop.compile()
        return loop

    def run(self, loop: Loop, *calls: int) -> Array:
        """The losses of `calls` calls of `run`, each with `steps` steps."""
        return np.concatenate([loop.to_host(loop.run(steps)) for steps in calls])

    def inputs(self, batch: int = 0) -> list[Array]:
        return [array[batch] for key, array in self.chunk.items() if key != "y"]

    def predict_reference(self, weights: Weights) -> Array:
        return load_problem(self.problem).predict(weights, *self.inputs())

    def reference(self, weights: Any = None, batch: int = 0) -> tuple[float, dict[str, Array]]:
        arrays = [array[batch] for array in self.chunk.values()]
        return load_problem(self.problem).loss_and_gradients(weights or self.initial, *arrays)


@pytest.fixture(params=LESSONS.items(), ids=list(LESSONS))
def lesson(request: pytest.FixtureRequest) -> Lesson:
    name, problem = request.param
    return Lesson(name, problem, "float64")


TINY = {
    "train": {"learning_rate": 0.05, "checkpoint_seconds": 30},
    "benchmark": {"processes": 2, "rounds": 2, "turn_seconds": 0.002, "seconds": 1},
    "problems": {
        "two_layer": {
            "data": {"inputs": 20, "hidden": 8, "outputs": 3, "train_examples": 96, "test_examples": 32},
            "train": {"batch_size": 16, "steps": 30},
            "benchmark": [
                {"batch_size": 4, "inputs": 8, "hidden": 4, "outputs": 2},
                {"batch_size": 16, "inputs": 20, "hidden": 8, "outputs": 3},
            ],
        },
        "recurrent": {
            "data": {
                "inputs": 4,
                "hidden": 6,
                "outputs": 3,
                "min_length": 1,
                "max_length": 5,
                "train_examples": 96,
                "test_examples": 32,
            },
            "train": {"batch_size": 16, "steps": 30},
            "benchmark": [
                {"batch_size": 8, "inputs": 4, "hidden": 6, "outputs": 3, "min_length": 3, "max_length": 3},
                {"batch_size": 8, "inputs": 4, "hidden": 6, "outputs": 3, "min_length": 1, "max_length": 6},
                {"batch_size": 8, "inputs": 4, "hidden": 6, "outputs": 3, "min_length": 6, "max_length": 6},
                {"batch_size": 16, "inputs": 4, "hidden": 6, "outputs": 3, "min_length": 1, "max_length": 5},
            ],
        },
    },
}


def quiet(device: str = "cpu", **changes: Any) -> "BenchmarkProvenance":
    """The provenance of a benchmark on a quiet machine."""
    from pipeline.results import BenchmarkProvenance

    at = "2026-01-02T03:04:05.678+00:00"
    facts: dict[str, Any] = {key: value for key, value in vars(HOST).items() if key != "driver"} | {"device": device}
    facts |= {"variables": {}, "measured_at": at, "measured_on": "host", "run_began": at, "commit": "abc1234"}
    return BenchmarkProvenance(**facts | {"cpus": 2, "processes": [], "stopped": "the test had enough"} | changes)


def dataset(
    problem: str, *, seed: int = 0, dtype: str = "float32", target: str = "teacher", noise: float = 0.1, **sizes: int
) -> "DataSet":
    """The data of a problem at tiny sizes, drawn into the current folder."""
    from pipeline.params import Data
    from pipeline.training.data import DataSet
    from pipeline.training.generate import generate

    section = TINY["problems"][problem]["data"] | sizes
    data = Data.model_validate({"target": target, "noise": noise})
    generate(problem, data, SimpleNamespace(**section), seed=seed, dtype=dtype)
    return DataSet(problem)


def outside_variables() -> dict[str, str]:
    """This process's environment without the variables that a stage, PyTorch's runtime, a tracking server or Make
    sets."""
    foreign = ("MAKE", "MFLAGS", "ARGS", "PYTHON", "CUBLAS_WORKSPACE_CONFIG")
    return {key: value for key, value in environment_for_another_run().items() if not key.startswith(foreign)}


@dataclass
class Clone:
    """A clone of this checkout with its uncommitted changes. Commands run in it with a user's environment."""

    path: Path

    def run(
        self, *command: str, succeeds: bool | None = True, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        program = [str(DVC), *command[1:]] if command[0] == "dvc" else list(command)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            program,
            cwd=self.path,
            env=outside_variables() | {"PATH": path} | (env or {}),
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert succeeds is None or (done.returncode == 0) == succeeds, done.stdout + done.stderr
        assert succeeds or "Traceback" not in done.stderr, done.stderr
        return done

    def stages_run(self, *command: str) -> list[str]:
        """The stages that a command ran, without those that always run."""
        output = self.run(*command).stdout
        ran = [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]
        return [stage for stage in ran if stage not in ("environment", "track", "gate")]

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "as it is now")

    def params(self) -> dict[str, Any]:
        import yaml  # imported here, because the tests for a GPU also run with only torch, NumPy and pytest

        return yaml.safe_load((self.path / "params.yaml").read_text())

    def write_params(self, content: dict[str, Any]) -> None:
        import yaml

        (self.path / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def set(self, key: str, value: Any) -> None:
        """A value of params.yaml, by the key's dotted name."""
        params = section = self.params()
        *sections, last = key.split(".")
        for name in sections:
            section = section[name]
        section[last] = value
        self.write_params(params)

    def edit(self, file: str, old: str, new: str) -> None:
        text = (self.path / file).read_text()
        assert old in text, f"{file} no longer holds {old!r}"
        (self.path / file).write_text(text.replace(old, new))

    def digests(self, *patterns: str) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.path)): path.read_bytes()
            for pattern in patterns
            for path in sorted(self.path.glob(pattern))
            if path.is_file()
        }


@pytest.fixture(scope="session")
def make_clone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Clone]:
    """make_clone(*names): a fresh clone whose small params list these names; without names its params are unchanged.
    Small params leave the benchmark out, which imports every framework twice, unless `benchmark` asks for it.
    """

    def make(*names: str, benchmark: bool = False) -> Clone:
        path = tmp_path_factory.mktemp("clone") / "project"
        path.mkdir()
        files = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for file in files:
            if (REPOSITORY / file).is_file() and file != "dvc.lock":
                (path / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPOSITORY / file, path / file)
        clone = Clone(path)
        clone.run("git", "init", "-q")
        clone.commit()
        if names:
            implementations = {name: LESSONS[name] for name in names}
            clone.write_params(clone.params() | TINY | {"implementations": implementations})
            if not benchmark:
                clone.set("benchmark.processes", 0)
        return clone

    return make


@pytest.fixture(scope="session")
def finished_pipeline(make_clone: Callable[..., Clone], tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """All lessons at tiny sizes after one `dvc repro`, made once for all processes of a test session. Tests must not
    change it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each process has its own folder in the folder of the session
        shared = shared.parent
    clone = Clone(shared / "finished")
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not clone.path.exists():
            made = make_clone(*LESSONS, benchmark=True)
            made.run("dvc", "repro")
            made.path.rename(clone.path)
    return clone


@pytest.fixture
def finished(finished_pipeline: Clone, tmp_path: Path) -> Clone:
    """A copy of `finished_pipeline` to change, with DVC's cache and without an MLflow store."""
    path = tmp_path / "project"
    shutil.copytree(finished_pipeline.path, path, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlruns"))
    return Clone(path)


@contextmanager
def mounted(*command: str | Path) -> Iterator[None]:
    """Mounts a file system at the last argument of `command`. The test is skipped where nothing can be mounted."""
    done = subprocess.run(["mount", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", command[-1]], check=True)
