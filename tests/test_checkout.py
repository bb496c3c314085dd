"""One run at a time on a checkout, whatever starts it; and what a killed one leaves is put right by the next."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import DVC, Clone, outside_variables

from pipeline import checkout

pytestmark = pytest.mark.faults

NUMPY = "numpy_arrays"
ALIKE = ("data/**/*.*", "reference/*", "models/**/*.*", "results/*/[ghme]*.*", "results/curves/*", "parity/*")
LONG = 100_000_000  # steps that nobody waits for


@pytest.fixture(scope="module")
def clone(make_clone: Callable[..., Clone]) -> Clone:
    clone = make_clone(NUMPY)
    (clone.path / ".venv").symlink_to(sys.prefix)  # for `make repro`
    (clone.path / ".git/info/exclude").write_text("/.venv\n")
    clone.run("git", "config", "user.name", "test")
    clone.run("git", "config", "user.email", "test@localhost")
    clone.run("git", "commit", "-qam", "params")
    clone.run("dvc", "repro")
    clone.run("git", "add", "-A")
    clone.run("git", "commit", "-qm", "results")
    return clone


@pytest.fixture
def started(clone: Clone) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command in the clone; whatever is still running afterwards is killed."""
    processes = []

    def start(*command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(DVC) if command[0] == "dvc" else command[0], *command[1:]],
            cwd=clone.path,
            env=outside_variables() | {"PATH": f"{DVC.parent}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until(happens: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def holder(clone: Clone) -> str:
    """The command that has the checkout to itself, if there is one."""
    with (clone.path / checkout.RUN_LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return checkout.holder(lock)
    return ""


def stage_of(clone: Clone) -> int | None:
    """The process of the stage under way."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cwd").readlink() == clone.path and b"stages.train" in (folder / "cmdline").read_bytes():
                return int(folder.name)
    return None


def set_steps(clone: Clone, steps: int) -> None:
    params = clone.params()
    clone.write_params(params | {"train": params["train"] | {"two_layer": {"batch_size": 16, "steps": steps}}})


def test_the_later_of_two_runs_waits_and_says_for_whom(clone: Clone, started: Callable):
    before = clone.digests(*ALIKE)
    first = started("dvc", "repro", "-f")
    wait_until(lambda: "dvc repro" in holder(clone))
    second, third = started("make", "repro"), started("dvc", "repro")
    for process in (first, second, third):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        if process is not first:
            assert "Waiting until `dvc repro` " in said
            assert "under way since " in said
    assert clone.digests(*ALIKE) == before
    assert clone.stages_run("dvc", "repro") == []


def test_an_experiment_waits_and_a_run_waits_for_an_experiment(clone: Clone, started: Callable):
    before = clone.digests(*ALIKE)
    first = started("dvc", "repro", "-f")
    wait_until(lambda: "dvc repro" in holder(clone))
    second = started("dvc", "exp", "run", "-n", "beside", "-S", "train.learning_rate=0.01")
    assert first.wait(120) == 0, first.communicate()[1]
    wait_until(lambda: "dvc exp run" in holder(clone))
    third = started("dvc", "repro")
    for process in (second, third):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert "Waiting until" in said
    assert "beside" in clone.run("dvc", "exp", "list", "--name-only").stdout
    clone.run("git", "checkout", "-q", ".")
    clone.run("dvc", "repro")
    assert clone.digests(*ALIKE) == before


def test_queued_and_temporary_experiments_run_beside_each_other(clone: Clone, started: Callable):
    for rate in ("0.02", "0.03"):
        clone.run("dvc", "exp", "run", "--queue", "-n", f"queued-{rate[2:]}", "-S", f"train.learning_rate={rate}")
    clone.run("dvc", "queue", "start", "-j", "1")
    beside = started("dvc", "repro", "-f")
    temporary = started("dvc", "exp", "run", "--temp", "-n", "temporary", "-S", "train.learning_rate=0.04")
    for process in (beside, temporary):
        _, said = process.communicate(timeout=180)
        assert process.returncode == 0, said
    wait_until(lambda: "queued-03" in clone.run("dvc", "exp", "list", "--name-only").stdout, 120)
    assert {"queued-02", "queued-03", "temporary"} <= set(clone.run("dvc", "exp", "list", "--name-only").stdout.split())
    clone.run("dvc", "queue", "stop", "--kill", succeeds=None)
    assert clone.stages_run("dvc", "repro") == []


def test_a_stage_by_hand_is_refused_while_a_run_is_under_way(clone: Clone, started: Callable):
    set_steps(clone, LONG)
    try:
        started("dvc", "repro", f"train@{NUMPY}")
        wait_until(lambda: stage_of(clone))
        done = clone.run(sys.executable, "-m", "stages.train", NUMPY, succeeds=False)
        assert done.stderr.startswith("ERROR: `dvc repro` ")
        assert "is using this checkout. Wait until it has ended, then run again." in done.stderr
        done = clone.run(sys.executable, "-P", "-m", "dvc", "repro", succeeds=False)  # DVC without this project's start
        assert "is using this checkout" in done.stderr or "is busy, it is being blocked by" in done.stderr
        assert stage_of(clone), "the run under way was broken"
    finally:
        set_steps(clone, 30)


def test_a_stage_ends_with_its_dvc_and_the_next_run_waits_for_that(clone: Clone, started: Callable):
    clone.run("dvc", "repro")
    before = clone.digests(*ALIKE)
    set_steps(clone, LONG)
    process = started("dvc", "repro", f"train@{NUMPY}")
    wait_until(lambda: stage_of(clone))
    process.kill()
    process.wait()
    set_steps(clone, 30)
    clone.run("dvc", "repro")
    assert stage_of(clone) is None
    assert clone.digests(*ALIKE) == before


def test_a_killed_training_goes_on(clone: Clone, started: Callable):
    """As an unbroken one, to the last bit; and its metadata say where it was broken."""
    steps = 60_000
    set_steps(clone, steps)
    unbroken = {}
    for broken in (False, True):
        if broken:
            clone.run("rm", "-rf", ".dvc/cache/runs", "models", "results")
            params = clone.params()
            clone.write_params(params | {"train": params["train"] | {"checkpoint_seconds": 0.2}})
            process = started("dvc", "repro", "-f", f"train@{NUMPY}")
            wait_until(lambda: list((clone.path / ".dvc/tmp/checkpoints").glob(f"train@{NUMPY}-*")))
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        said = clone.run("dvc", "repro", "-f", f"train@{NUMPY}").stdout
        found = clone.digests("models/**/*.*", f"results/{NUMPY}/[ghm]*.*")
        timing = json.loads((clone.path / f"results/{NUMPY}/timing.json").read_text())
        if not broken:
            unbroken = found
            assert timing["continued_at"] == []
    assert f"train@{NUMPY}: going on at step " in said
    assert 0 < timing["continued_at"][0] < steps
    assert found == unbroken
    assert not list((clone.path / ".dvc/tmp/checkpoints").iterdir()), (
        "a checkpoint is left of a training that has ended"
    )
    clone.run("git", "checkout", "-q", "params.yaml")
    clone.run("dvc", "repro")


def test_locks_of_the_dead_are_cleared_and_those_of_the_living_stay(clone: Clone):
    rwlock = clone.path / checkout.RWLOCK
    dead = {"pid": 4194303, "cmd": "dvc repro"}
    somebody_else = {"pid": 1, "cmd": "dvc repro"}  # as after a container, whose numbers start again
    path = str(clone.path / "environment.json")
    rwlock.write_text(json.dumps({"write": {path: somebody_else}, "read": {str(clone.path / "params.yaml"): [dead]}}))
    clone.run("dvc", "repro")
    rwlock.write_text('{"write": {"')  # cut short
    clone.run("dvc", "repro")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "dvc"]) as living:
        held = {"write": {path: {"pid": living.pid, "cmd": "dvc checkout"}}}
        rwlock.write_text(json.dumps(held))
        assert f"PID {living.pid}" in clone.run("dvc", "repro", succeeds=False).stderr
        assert json.loads(rwlock.read_text())["write"] == held["write"]
        living.kill()
    clone.run("dvc", "repro")


@pytest.mark.parametrize("ends", ["cmd: py", "    deps:\n", "", "no schema: 1\n", "<<<<<<< HEAD\n"])
def test_a_damaged_dvc_lock_is_brought_back(clone: Clone, ends: str):
    path = clone.path / "dvc.lock"
    clone.run("dvc", "repro")
    whole = path.read_text()
    path.write_text(whole[: whole.index(ends)] + ends if ends and ends in whole else ends)
    damaged = path.read_text()
    done = clone.run("dvc", "repro")
    assert "WARNING: dvc.lock was damaged: " in done.stderr
    assert "that of the last stage that was started is there again" in done.stderr
    assert (clone.path / checkout.DAMAGED).read_text() == damaged
    assert path.read_text() == whole
    assert "Running stage 'train" not in done.stdout


def test_a_damaged_dvc_lock_of_a_fresh_clone_is_the_commits(clone: Clone):
    clone.run("dvc", "repro")
    path, last_good = clone.path / "dvc.lock", clone.path / checkout.LAST_GOOD
    path.write_text(path.read_text()[:500])
    last_good.unlink()
    done = clone.run("dvc", "repro")
    assert "that of the last commit is there again" in done.stderr
    assert clone.stages_run("dvc", "repro") == []


def test_a_dvc_lock_that_was_changed_is_not_a_damaged_one(clone: Clone):
    """As after `git checkout` of another commit's, or a stage of the user's own whose output is no file."""
    clone.run("dvc", "repro")
    path = clone.path / "dvc.lock"
    path.write_text(path.read_text().replace("seed: 0", "seed: 7"))
    assert "damaged" not in clone.run("dvc", "repro").stderr
    assert checkout.damage_of(path.read_text()) is None
    assert checkout.damage_of("schema: '2.0'\nstages:\n  own:\n    cmd: x\n    outs:\n    - path: s3://x\n") is None


def test_which_commands_wait():
    assert checkout.command_of(["repro", "-f"]) == "repro"
    assert checkout.command_of(["-v", "--cd", "elsewhere", "exp", "run", "-S", "a=1"]) == "exp run"
    assert checkout.command_of(["experiments", "show"]) == "exp show"
    assert checkout.command_of(["--version"]) == ""
    assert {"repro", "exp run", "checkout"} <= checkout.CHANGING
    assert not {"status", "metrics show", "exp show", "queue start", "plots"} & checkout.CHANGING
