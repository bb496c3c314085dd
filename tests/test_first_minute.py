"""A fresh clone has the dvc.lock of another machine and an empty cache. If its first run is interrupted, killed or
fails, it ends with one sentence, because there is nothing to restore."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Clone
from running import NUMPY, end_started, kill_group, processes_in, start, wait_until  # noqa: F401 (a fixture)

pytestmark = pytest.mark.environments

OUTPUTS = {
    "environment": ["environment.json", "benchmark_plan.json"],
    "generate@two_layer": ["data/two_layer"],
    "reference@two_layer": ["reference/two_layer.safetensors"],
    f"train@{NUMPY}": [f"models/{NUMPY}", f"results/{NUMPY}"],
    "evaluate": ["parity", "results/curves", "results/predictions", "results/fits"],
    "compare": ["results/parity.json"],
    "graphs": ["graphs"],
    "benchmark": ["results/benchmark.csv", "results/benchmark.json"],
    "report": ["report.html", "lessons.html", "summary.json", "report"],
    "track": ["state.json"],
    "gate": [],
}
FAULTS = """
import os, signal
from pipeline.errors import UserError

ENDS = {
    "interrupted": lambda: os.killpg(0, signal.SIGINT),  # as Ctrl-C in a terminal: DVC and the stage
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
}

def run(main, **options):
    from pipeline.running.stage import run

    def faulty(*arguments):
        if os.environ.get("DVC_STAGE") == os.environ.get("FAULTY"):
            ENDS[os.environ["FAULT"]]() if os.environ["FAULT"] in ENDS else None
            raise UserError("This was planted.")
        main(*arguments)

    run(faulty, **options)
"""


STATUS = {"interrupted": 130, "killed": -9, "failed": 1}


@pytest.fixture(scope="module")
def finished_clone(make_clone: Callable[..., Clone]) -> Clone:
    """A clone with the dependencies of every stage, another machine's dvc.lock, and no cache."""
    clone = make_clone(NUMPY)
    clone.run("dvc", "repro")
    (clone.path / "stages/__init__.py").write_text(FAULTS)
    clone.run("rm", "-rf", ".dvc/cache", ".dvc/tmp", "mlruns", "mlflow.db")
    write_lock(clone)
    return clone


def write_lock(clone: Clone) -> None:
    """Write a dvc.lock whose outputs are in no cache."""
    file = {"hash": "md5", "md5": "0123456789abcdef" * 2, "size": 1}
    folder = file | {"md5": f"{file['md5']}.dir", "nfiles": 1}
    stages = {
        stage: {
            "cmd": f"python -m stages.{stage.replace('@', ' ')}",
            "outs": [{"path": path} | (file if "." in path else folder) for path in paths],
        }
        for stage, paths in OUTPUTS.items()
    }
    (clone.path / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))


@pytest.mark.parametrize("fault", STATUS)
@pytest.mark.parametrize("stage", OUTPUTS)
def test_fault_in_a_fresh_clone_gives_one_error(finished_clone: Clone, tmp_path: Path, stage: str, fault: str):
    clone = Clone(tmp_path / "project")
    shutil.copytree(finished_clone.path, clone.path, symlinks=True)
    process = start(clone, "dvc", "repro", "-s", stage, env={"FAULTY": stage, "FAULT": fault})
    output, _ = process.communicate(timeout=60)
    command = f"python -m stages.{stage.replace('@', ' ')}"
    expected = [f"Running stage '{stage}':", f"> {command}"]
    expected += ["ERROR: This was planted."] if fault == "failed" else []
    expected += [
        f"ERROR: failed to reproduce '{stage}': failed to run: {command}, exited with {STATUS[fault]}",
    ]
    assert output.splitlines() == expected
    assert process.returncode
    kept = ("environment", "track")  # DVC removes none of their outputs
    assert all((clone.path / path).exists() == (stage in kept) for path in OUTPUTS[stage])
    assert not list(clone.path.rglob("*.part"))


def test_run_after_a_killed_first_run_succeeds(make_clone: Callable[..., Clone]):
    clone = make_clone(NUMPY)
    write_lock(clone)
    clone.set("problems.two_layer.train.steps", 100_000_000)
    (clone.path / ".venv").symlink_to(sys.prefix)
    process = start(clone, "make", "repro")
    wait_until(lambda: "stages.reference" in str(processes_in(clone)))
    time.sleep(1)  # Python itself has started
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert "Traceback" not in output
    assert "exited with 130" in output
    assert process.returncode == -signal.SIGINT  # a shell reports it as 130
    process = start(clone, "dvc", "repro")
    wait_until(lambda: "stages.reference" in str(processes_in(clone)))
    kill_group(process)
    clone.set("problems.two_layer.train.steps", 30)
    clone.run("dvc", "repro")
    assert clone.stages_run("dvc", "repro") == []
