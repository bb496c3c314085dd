"""Checkpoints of long trainings. A training that was killed or interrupted resumes from its checkpoint. A checkpoint
holds the weights, the losses kept so far and the number of steps done, and a digest of everything that the training
depends on: the files, parameters and data that dvc.yaml names for its stage, and the environment. A training resumes
only if that digest is the same, so the result is bitwise that of an uninterrupted training. At the end a training
removes its checkpoint.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from pipeline.array_files import read_arrays, write_arrays
from pipeline.clock import now
from pipeline.contract import Array, Weights
from pipeline.errors import UserError
from pipeline.params import Params

FOLDER = Path(".dvc/tmp/checkpoints")  # outside of the stage's outputs, which DVC removes before it starts the stage
KEPT = 3  # of each implementation, for users who return to earlier params


class State(NamedTuple):
    weights: Weights
    losses: Array  # the losses of those of `kept_steps` that are done
    done: int
    continued_at: tuple[int, ...] = ()  # the steps at which a training was resumed


class Checkpoint:
    """The checkpoint of one training, written every `seconds`; never if that is 0."""

    def __init__(self, name: str, digest: bytes, seconds: float) -> None:
        self.name, self.digest, self.seconds = name, digest, seconds
        self.path = FOLDER / f"{name}-{digest.hex()[:16]}.safetensors"
        self.written = now()

    def load(self, initial: Weights) -> State:
        """The state from which the training goes on: the checkpoint's, or the initial state without a checkpoint."""
        start = State(initial, np.empty(0), 0)
        if not self.path.is_file():
            return start
        shapes = {f"weights.{key}": array.shape for key, array in initial.items()}
        try:
            arrays = read_arrays(self.path, shapes | dict.fromkeys(("losses", "done", "continued_at", "depends_on")))
        except UserError as error:
            print(f"WARNING: {self.name} starts from step 0: {error}", file=sys.stderr)
            return start
        if arrays["depends_on"].tobytes() != self.digest:
            print(f"WARNING: {self.name} starts from step 0: {self.path} is another training's.", file=sys.stderr)
            return start
        done = arrays["done"].item()
        print(f"{self.name}: going on at step {done:,}, from {self.path}.", flush=True)
        continued_at = (*arrays["continued_at"].tolist(), done)
        return State({key: arrays[f"weights.{key}"] for key in initial}, arrays["losses"], done, continued_at)

    @property
    def due(self) -> bool:
        return self.seconds > 0 and now() - self.written >= self.seconds

    def write(self, state: State) -> None:
        arrays = {f"weights.{key}": array for key, array in state.weights.items()}
        arrays |= {"losses": state.losses, "done": np.array([state.done])}
        arrays |= {"continued_at": np.array(state.continued_at, np.int64)}
        arrays |= {"depends_on": np.frombuffer(self.digest, np.uint8)}
        write_arrays(self.path, arrays)
        self.written = now()
        others = sorted(FOLDER.glob(f"{self.name}-*.safetensors"), key=lambda path: path.stat().st_mtime)
        for path in others[:-KEPT]:
            path.unlink()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


NONE = Checkpoint("none", b"", 0)


def checkpoint_of(stage: str, problem: str, params: Params) -> Checkpoint:
    """The checkpoint of a stage that trains, such as train@numpy_arrays."""
    schedule = params.problems[problem].train.model_dump()
    basis = {"learning_rate": params.train.learning_rate, **schedule}
    return Checkpoint(stage, depends_on(stage, problem, basis), params.train.checkpoint_seconds)


def depends_on(stage: str, problem: str, params: dict[str, object]) -> bytes:
    """A digest of what a stage depends on: its `params`, and the content of its deps in dvc.yaml."""
    group, _, key = stage.partition("@")
    deps = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"][group]["do"]["deps"]
    paths = (Path(dep.replace("${key}", key).replace("${item}", problem)) for dep in deps)
    digest = hashlib.sha256(json.dumps(params, sort_keys=True).encode())
    for path in (file for dep in paths for file in ([dep] if dep.is_file() else sorted(dep.rglob("*")))):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".npy":  # manifest.json has digests
            digest.update(f"{path} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.digest()
