"""A checkout has one run at a time, and a run repairs what a killed run left."""

import fcntl
import json
import subprocess
import sys
from collections.abc import Callable

import pytest
from conftest import Clone
from running import ALIKE, NUMPY, end_started, kill_group, stage_of, start, wait_until  # noqa: F401 (a fixture)

from pipeline.running import checkout, locks

pytestmark = pytest.mark.faults

LONG = 100_000_000  # too many steps to wait for


@pytest.fixture(scope="module")
def clone(make_clone: Callable[..., Clone]) -> Clone:
    clone = make_clone(NUMPY)
    (clone.path / ".venv").symlink_to(sys.prefix)  # for `make repro`
    (clone.path / ".git/info/exclude").write_text("/.venv\n")
    for key in ("user.name", "user.email"):
        clone.run("git", "config", key, "test@localhost")
    clone.run("dvc", "repro")
    clone.commit()
    return clone


def holder(clone: Clone) -> str:
    """The command that holds the lock of the checkout, if there is one."""
    with (clone.path / checkout.RUN_LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return locks.holder(lock)
    return ""


def set_train(clone: Clone, steps: int, **train: float) -> None:
    clone.set("problems.two_layer.train.steps", steps)
    clone.set("train", clone.params()["train"] | train)


def outputs(*processes: subprocess.Popen) -> list[str]:
    outputs = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return outputs


def experiments(clone: Clone) -> set[str]:
    return set(clone.run("dvc", "exp", "list", "--name-only").stdout.split())


def test_later_runs_and_experiments_wait_and_name_the_running_command(clone: Clone):
    before = clone.digests(*ALIKE)
    first = start(clone, "dvc", "repro", "-f")
    wait_until(lambda: "dvc repro" in holder(clone))
    later = start(clone, "make", "repro"), start(clone, "dvc", "repro")
    for output in outputs(first, *later)[1:]:
        assert "Waiting until `dvc repro` " in output
        assert "under way since " in output
    assert clone.digests(*ALIKE) == before
    first = start(clone, "dvc", "repro", "-f")
    wait_until(lambda: "dvc repro" in holder(clone))
    second = start(clone, "dvc", "exp", "run", "-n", "beside", "-S", "train.learning_rate=0.01")
    outputs(first)
    wait_until(lambda: "dvc exp run" in holder(clone))
    assert all("Waiting until" in output for output in outputs(second, start(clone, "dvc", "repro")))
    assert "beside" in experiments(clone)
    clone.run("git", "checkout", "-q", ".")
    clone.run("dvc", "repro")
    assert clone.digests(*ALIKE) == before


def test_queued_and_temporary_experiments_run_in_parallel(clone: Clone):
    for rate in ("0.02", "0.03"):
        clone.run("dvc", "exp", "run", "--queue", "-n", f"queued-{rate[2:]}", "-S", f"train.learning_rate={rate}")
    clone.run("dvc", "queue", "start", "-j", "1")
    temporary = "dvc", "exp", "run", "--temp", "-n", "temporary", "-S", "train.learning_rate=0.04"
    outputs(start(clone, "dvc", "repro", "-f"), start(clone, *temporary))
    wait_until(lambda: {"queued-02", "queued-03", "temporary"} <= experiments(clone), 120)
    clone.run("dvc", "queue", "stop", "--kill", succeeds=None)
    assert clone.stages_run("dvc", "repro") == []


def test_stage_started_by_hand_is_refused_during_a_run(clone: Clone):
    set_train(clone, LONG)
    try:
        start(clone, "dvc", "repro", f"train@{NUMPY}")
        wait_until(lambda: stage_of(clone))
        done = clone.run(sys.executable, "-m", "stages.train", NUMPY, succeeds=False)
        assert done.stderr.startswith("ERROR: `dvc repro` ")
        assert "is using this checkout. Wait until it has ended, then run again." in done.stderr
        done = clone.run(
            sys.executable, "-P", "-m", "dvc", "repro", succeeds=False
        )  # DVC without this project's wrapper
        assert "is using this checkout" in done.stderr or "is busy, it is being blocked by" in done.stderr
        assert stage_of(clone), "the running stage was broken"
    finally:
        set_train(clone, 30)


def test_stage_of_a_killed_dvc_ends_before_the_next_run_starts(clone: Clone):
    clone.run("dvc", "repro")
    before = clone.digests(*ALIKE)
    set_train(clone, LONG)
    process = start(clone, "dvc", "repro", f"train@{NUMPY}")
    wait_until(lambda: stage_of(clone))
    process.kill()
    process.wait()
    set_train(clone, 30)
    clone.run("dvc", "repro")
    assert stage_of(clone) is None
    assert clone.digests(*ALIKE) == before


def test_killed_training_continues_and_gives_the_same_bits(clone: Clone):
    steps, checkpoints = 60_000, clone.path / ".dvc/tmp/checkpoints"

    def trained() -> tuple[str, dict[str, bytes], list[int]]:
        output = clone.run("dvc", "repro", "-f", f"train@{NUMPY}").stdout
        timing = json.loads((clone.path / f"results/{NUMPY}/timing.json").read_text())
        return output, clone.digests("models/**/*.*", f"results/{NUMPY}/[ghm]*.*"), timing["continued_at"]

    set_train(clone, steps)
    _, unbroken, continued_at = trained()
    assert continued_at == []
    clone.run("rm", "-rf", ".dvc/cache/runs", "models", "results")
    set_train(clone, steps, checkpoint_seconds=0.2)
    process = start(clone, "dvc", "repro", "-f", f"train@{NUMPY}")
    wait_until(lambda: list(checkpoints.glob(f"train@{NUMPY}-*")))
    kill_group(process)
    output, broken, continued_at = trained()
    assert f"train@{NUMPY}: going on at step " in output
    assert 0 < continued_at[0] < steps
    assert broken == unbroken
    assert not list(checkpoints.iterdir()), "a checkpoint is left of a training that has ended"
    clone.run("git", "checkout", "-q", "params.yaml")
    clone.run("dvc", "repro")


def test_rwlock_is_removed_unless_its_dvc_is_running(clone: Clone):
    rwlock, path = clone.path / checkout.RWLOCK, str(clone.path / "environment.json")
    other = {"pid": 1, "cmd": "dvc repro"}  # after a container, whose process ids may be those of other processes here
    dead = {"pid": 4194303, "cmd": "dvc repro"}
    for content in (json.dumps({"write": {path: other}, "read": {path: [dead]}}), '{"write": {"', ""):
        rwlock.write_text(content)
        clone.run("dvc", "repro")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "dvc"]) as running:
        held = {"write": {path: {"pid": running.pid, "cmd": "dvc checkout"}}}
        rwlock.write_text(json.dumps(held))
        assert f"PID {running.pid}" in clone.run("dvc", "repro", succeeds=False).stderr
        assert json.loads(rwlock.read_text())["write"] == held["write"]
        running.kill()
    clone.run("dvc", "repro")


@pytest.mark.parametrize("end", ["cmd: py", "    deps:\n", "", "no schema: 1\n", "<<<<<<< HEAD\n"])
def test_damaged_dvc_lock_is_restored_from_the_last_stage(clone: Clone, end: str):
    path = clone.path / "dvc.lock"
    clone.run("dvc", "repro")
    whole = path.read_text()
    damaged = whole[: whole.index(end)] + end if end and end in whole else end
    path.write_text(damaged)
    done = clone.run("dvc", "repro")
    assert "WARNING: dvc.lock was damaged: " in done.stderr
    assert "that of the last stage that was started is restored" in done.stderr
    assert (clone.path / checkout.DAMAGED).read_text() == damaged
    assert path.read_text() == whole
    assert "Running stage 'train" not in done.stdout


def test_damaged_dvc_lock_of_a_fresh_clone_is_restored_from_the_commit(clone: Clone):
    clone.run("dvc", "repro")
    path = clone.path / "dvc.lock"
    path.write_text(path.read_text()[:500])
    (clone.path / checkout.LAST_GOOD).unlink()
    assert "that of the last commit is restored" in clone.run("dvc", "repro").stderr
    assert clone.stages_run("dvc", "repro") == []


def test_changed_dvc_lock_is_not_taken_for_damaged(clone: Clone):
    """For example after `git checkout` of another commit, or with a stage without an output file."""
    clone.run("dvc", "repro")
    path = clone.path / "dvc.lock"
    path.write_text(path.read_text().replace("seed: 0", "seed: 7"))
    assert "damaged" not in clone.run("dvc", "repro").stderr
    assert checkout.damage_of(path.read_text()) is None
    assert checkout.damage_of("schema: '2.0'\nstages:\n  own:\n    cmd: x\n    outs:\n    - path: s3://x\n") is None


def test_only_commands_that_change_the_working_tree_wait():
    assert checkout.command_of(["repro", "-f"]) == "repro"
    assert checkout.command_of(["-v", "--cd", "elsewhere", "exp", "run", "-S", "a=1"]) == "exp run"
    assert checkout.command_of(["experiments", "show"]) == "exp show"
    assert checkout.command_of(["--version"]) == ""
    assert {"repro", "exp run", "checkout"} <= checkout.CHANGING
    assert not {"status", "metrics show", "exp show", "queue start", "plots"} & checkout.CHANGING
