"""`make test-faults`: after a kill at a random moment, one `dvc repro` restores the results.

FAULTS is the number of kills. SEED, which is printed, seeds every random choice; CI draws a new one.
"""

import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, Clone, mounted
from running import ALIKE, NUMPY, end_started, processes_in, start, wait_until  # noqa: F401 (a fixture)

pytestmark = pytest.mark.faults

KILLS = int(os.environ.get("FAULTS", "20"))
SEED = int(os.environ.get("SEED", str(random.SystemRandom().randrange(10**6))))
FOLDERS = ("data", "reference", "models", "results", "parity")  # the files of report/ depend on what was measured
# Outputs that hold timings, or depend on them: `results/NAME` holds timing.json.
TIMED = ("report", "lessons", "summary", "state", "results/benchmark", "results/numpy")
ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root may mount")


@pytest.fixture
def draw() -> random.Random:
    print(f"seed {SEED}")
    return random.Random(SEED)


def names(clone: Clone) -> set[str]:
    return {str(path.relative_to(clone.path)) for folder in FOLDERS for path in (clone.path / folder).rglob("*")} | {
        str(path.relative_to(clone.path)) for path in clone.path.glob("*") if path.name != "mlflow.db-journal"
    }


def locked(clone: Clone) -> dict[str, dict[str, str]]:
    """The md5 in dvc.lock of each stage and output that is equal from run to run."""
    stages = yaml.safe_load((clone.path / "dvc.lock").read_text())["stages"]
    md5s = {stage: {out["path"]: out["md5"] for out in entry.get("outs", [])} for stage, entry in stages.items()}
    return {
        stage: {path: md5 for path, md5 in outs.items() if not path.startswith(TIMED)} for stage, outs in md5s.items()
    }


State = tuple[dict[str, bytes], set[str], dict[str, dict[str, str]]]


def state(clone: Clone) -> State:
    return clone.digests(*ALIKE), names(clone), locked(clone)


def check(clone: Clone, before: State, why: str) -> None:
    """After the kill, one `dvc repro`: it succeeds, and all results are unchanged."""
    wait_until(lambda: not processes_in(clone))
    done = clone.run("dvc", "repro")
    assert "Traceback" not in done.stderr, why + done.stderr
    wait_until(lambda: not processes_in(clone))
    assert state(clone) == before, why
    assert not list((clone.path / "report").glob(".*")), why
    assert not list((clone.path / ".dvc/cache/files").rglob("*.tmp")), why
    assert clone.stages_run("dvc", "repro") == [], why
    with closing(sqlite3.connect(clone.path / "mlflow.db")) as store:
        assert store.execute("SELECT count(*) FROM runs WHERE status = 'RUNNING'").fetchone() == (0,), why
        twice = (
            "SELECT value FROM tags NATURAL JOIN runs WHERE key = 'state' AND status = 'FINISHED' "
            "GROUP BY value HAVING count(*) > 1"
        )
        assert store.execute(twice).fetchall() == [], why


@pytest.fixture(scope="module")
def clone(make_clone: Callable[..., Clone]) -> Clone:
    clone = make_clone(NUMPY, benchmark=True)
    lesson = (clone.path / f"pipeline/lessons/two_layer/{NUMPY}.py").read_text()
    (clone.path / "pipeline/lessons/two_layer/numpy_again.py").write_text(lesson)
    clone.write_params(clone.params() | {"implementations": {NUMPY: "two_layer", "numpy_again": "two_layer"}})
    clone.run("dvc", "repro")
    return clone


def kill(clone: Clone, process: subprocess.Popen, victim: str, draw: random.Random) -> None:
    with suppress(ProcessLookupError):
        if victim == "group":
            os.killpg(process.pid, signal.SIGKILL)
        elif victim == "dvc":
            process.kill()
        else:
            stages = sorted(pid for pid, command in processes_in(clone).items() if "-m stages." in command)
            os.kill(draw.choice(stages or [process.pid]), signal.SIGKILL)
    process.wait()


def test_one_repro_restores_the_state_after_a_kill_on_the_host(clone: Clone, draw: random.Random):
    before, began = state(clone), time.monotonic()
    clone.run("dvc", "repro", "-f")
    whole = time.monotonic() - began
    hits = {"in time": 0, "too late": 0, "dvc.lock was damaged": 0}
    for number in range(KILLS):
        victim, tracking = draw.choice(["group", "dvc", "stage"]), draw.random() < 0.2
        delay = draw.uniform(0, 3) if tracking else draw.uniform(0, 1.1 * whole)
        process = start(clone, "dvc", "repro", "-f", output=subprocess.DEVNULL)
        if tracking:  # during the logging in MLflow
            wait_until(lambda: "stages.track" in str(processes_in(clone)), 600)
        with suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        hits["in time" if process.poll() is None else "too late"] += 1
        kill(clone, process, victim, draw)
        with suppress(OSError):
            hits["dvc.lock was damaged"] += not (clone.path / "dvc.lock").read_text().endswith("\n")
        check(clone, before, f"seed {SEED}, kill {number + 1}: {victim} after {delay:.2f} s")
    print(f"seed {SEED}: {KILLS} kills within {whole:.0f} s of a run: {hits}")


@contextmanager
def container(clone: Clone, name: str) -> Iterator[subprocess.Popen]:
    command = ["docker", "run", "--rm", "--init", "--name", name, "--network", "none", "--read-only"]
    command += ["--tmpfs", "/tmp:exec,mode=1777", "--env", "TINI_KILL_PROCESS_GROUP=1"]
    command += ["--volume", f"{clone.path}:/workspace", image(), "dvc", "repro", "-f"]
    process = start(clone, *command, output=subprocess.DEVNULL)
    try:
        yield process
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)
        process.wait()


def image() -> str:
    """The name of this checkout's cpu image; empty if it was not built."""
    if not shutil.which("docker"):
        return ""
    script = "docker image ls --format '{{.Repository}}' $(docker compose config --images cpu | grep -- '-cpu$')"
    command = ["bash", "-o", "pipefail", "-c", script]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.strip()


@pytest.mark.skipif(not image(), reason="needs Docker and the cpu image: docker compose build cpu")
def test_one_repro_restores_the_state_after_killed_containers(clone: Clone, draw: random.Random):
    clone.run("dvc", "repro")
    before, in_time, kills = state(clone), 0, max(1, KILLS // 5)
    for number in range(kills):
        name, delay = f"faults-{os.getpid()}-{number}", draw.uniform(0, 25)
        with container(clone, name) as process:
            with suppress(subprocess.TimeoutExpired):
                process.wait(delay)
            in_time += process.poll() is None
            subprocess.run(["docker", "kill", name], capture_output=True, check=False)
        check(clone, before, f"seed {SEED}, container {number + 1} after {delay:.2f} s")
    print(f"seed {SEED}: {kills} containers killed, {in_time} of them in time")


# The same faults, planted at the places where they were found.


def test_truncated_dvc_lock_is_complete_after_one_repro(clone: Clone, draw: random.Random):
    """Truncated at random places, and after a line of each kind, which leaves valid YAML."""
    clone.run("dvc", "repro")
    path = clone.path / "dvc.lock"
    whole, lock = path.read_text(), locked(clone)
    lengths = [0, *(draw.randrange(1, len(whole) - 1) for _ in range(max(3, KILLS // 5)))]
    lines = [
        match.end()
        for key in ("- path", "  hash", "  md5", "  size", "deps", "outs")
        for match in [draw.choice(list(re.finditer(rf"^ *{key}:.*\n", whole, re.MULTILINE)))]
    ]
    for length in (*lengths, *lines):
        path.write_text(whole[:length])
        done = clone.run("dvc", "repro")
        assert path.read_text().count("cmd: ") == whole.count("cmd: "), length
        assert locked(clone) == lock, length
        if not whole[:length].endswith("\n"):
            assert "WARNING: dvc.lock was damaged" in done.stderr, length


def test_flipped_bit_in_the_cache_is_reported_or_repaired(clone: Clone):
    clone.run("dvc", "repro")
    md5 = locked(clone)["reference@two_layer"]["reference/two_layer.safetensors"]
    cached = clone.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    before = clone.digests(*ALIKE)
    cached.chmod(0o644)
    content = bytearray(cached.read_bytes())
    content[len(content) // 2] ^= 1
    cached.write_bytes(content)
    (clone.path / "reference/two_layer.safetensors").unlink()
    done = clone.run("dvc", "repro", succeeds=None)
    if done.returncode:  # the stage that reads it names it, with the remedy
        assert "two_layer.safetensors" in done.stderr
        assert "dvc repro" in done.stderr
        clone.run("rm", "-f", str(cached), "reference/two_layer.safetensors")
        clone.run("dvc", "repro")
    assert clone.digests(*ALIKE) == before


def test_deleted_results_are_restored_without_running_a_stage(clone: Clone):
    clone.run("dvc", "repro")
    before, files = clone.digests(*ALIKE), names(clone)
    shutil.rmtree(clone.path / "results")
    assert clone.stages_run("dvc", "repro") == []
    assert (clone.digests(*ALIKE), names(clone)) == (before, files)


def test_clock_that_jumps_back_leaves_results_unchanged(clone: Clone):
    """Every file is dated tomorrow, as after a wrong clock."""
    clone.run("dvc", "repro")
    before, tomorrow = clone.digests(*ALIKE), time.time() + 86400
    for name in names(clone) | {"dvc.lock", ".dvc/tmp/dvc.lock", "mlruns/receipts.json"}:
        os.utime(clone.path / name, (tomorrow, tomorrow))
    assert clone.stages_run("dvc", "repro") == []
    clone.run("dvc", "repro", "-f", f"train@{NUMPY}")
    assert clone.digests(*ALIKE) == before


@pytest.fixture(scope="module")
def small(make_clone: Callable[..., Clone]) -> Clone:
    """Its cache holds one run."""
    clone = make_clone(NUMPY)
    clone.run("dvc", "repro")
    return clone


@ROOT
@pytest.mark.parametrize("full", [".dvc/cache", "results", "models"])
def test_full_disk_is_reported_and_one_repro_restores_the_results(small: Clone, full: str, tmp_path: Path):
    before, folder, params, larger = small.digests(*ALIKE), small.path / full, small.params(), small.params()
    larger["problems"]["two_layer"]["data"]["hidden"] = 800
    larger["problems"]["two_layer"]["train"]["steps"] = 3000
    larger["train"]["learning_rate"] = 1e-4
    shutil.copytree(folder, tmp_path / "copy")
    with mounted("-t", "tmpfs", "-o", "size=16m", "tmpfs", folder):
        shutil.copytree(tmp_path / "copy", folder, dirs_exist_ok=True)
        filler = folder / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**12))
        small.write_params(larger)
        message = small.run("dvc", "repro", succeeds=False).stderr
        assert re.search("No space left on device|No possible cache link types", message)  # the latter is DVC's
        filler.unlink()
        small.run("dvc", "repro")
        small.write_params(params)
        small.run("dvc", "repro")
        assert small.digests(*ALIKE) == before
    small.run("dvc", "repro")


@ROOT
def test_read_only_store_gives_a_warning_and_is_filled_later(clone: Clone, tmp_path: Path):
    clone.run("dvc", "repro")
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(clone.path / "mlflow.db", store)
    receipts = clone.path / "mlruns/receipts.json"
    receipts.unlink()
    with mounted("--bind", store, store):
        subprocess.run(["mount", "-o", "remount,ro,bind", store], check=True)
        clone.write_params(clone.params() | {"seed": 5})
        done = clone.run("dvc", "repro", env={"MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db"})
        assert "WARNING: MLflow at sqlite" in done.stderr
        assert "readonly" in done.stderr
    done = clone.run("dvc", "repro", env={"MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db"})
    assert "MLflow shows 2 results" in done.stdout
    clone.write_params(clone.params() | {"seed": 0})


@ROOT
@pytest.mark.parametrize("folder", ["results", "models", "data"])
def test_read_only_folder_is_reported(small: Clone, folder: str):
    before, path = small.digests(*ALIKE), small.path / folder
    small.edit("params.yaml", "seed: 0", "seed: 1")
    with mounted("--bind", path, path):
        subprocess.run(["mount", "-o", "remount,ro,bind", path], check=True)
        assert "Read-only file system" in small.run("dvc", "repro", succeeds=False).stderr
        small.edit("params.yaml", "seed: 1", "seed: 0")
    small.run("dvc", "repro")
    assert small.digests(*ALIKE) == before
