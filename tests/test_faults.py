"""`make test-faults`: whatever is killed, and whenever, one `dvc repro` later everything is as if nothing had been.

FAULTS is how many kills there are, SEED where they fall; CI makes fewer, on another seed each time.
"""

import os
import random
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
from conftest import DVC, Clone, mounted, outside_variables

pytestmark = pytest.mark.faults

KILLS = int(os.environ.get("FAULTS", "20"))
SEED = int(os.environ.get("SEED", str(random.SystemRandom().randrange(10**6))))
NUMPY = "numpy_arrays"
# What two runs leave alike. Timings are not alike, nor what depends on them.
ALIKE = ("data/**/*.*", "reference/*", "models/**/*.*", "results/*/[ghme]*.*", "results/curves/*", "parity/*")
FOLDERS = ("data", "reference", "models", "results", "parity")  # in report/ it depends on what was measured


def started(clone: Clone, *command: str) -> subprocess.Popen[bytes]:
    path = f"{DVC.parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        command,
        cwd=clone.path,
        env=outside_variables() | {"PATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def inside(clone: Clone) -> dict[int, str]:
    """The processes that work in a clone, and their commands."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cwd").readlink() == clone.path and (command := (folder / "cmdline").read_bytes()):
                found[int(folder.name)] = command.replace(b"\0", b" ").decode()
    return found


def await_none(clone: Clone, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while left := inside(clone):
        assert time.monotonic() < deadline, f"still there after {seconds} s: {left}"
        time.sleep(0.05)


def wait_for(clone: Clone, what: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and not any(what in command for command in inside(clone).values()):
        time.sleep(0.02)


def names(clone: Clone) -> set[str]:
    return {str(path.relative_to(clone.path)) for folder in FOLDERS for path in (clone.path / folder).rglob("*")} | {
        str(path.relative_to(clone.path)) for path in clone.path.glob("*") if path.name != "mlflow.db-journal"
    }


def locked(clone: Clone) -> dict[str, dict[str, str]]:
    """By stage and output, the md5 of dvc.lock; of what is alike from run to run."""
    stages = yaml.safe_load((clone.path / "dvc.lock").read_text())["stages"]
    return {
        stage: {out["path"]: out["md5"] for out in entry.get("outs", []) if not_timed(out["path"])}
        for stage, entry in stages.items()
    }


def not_timed(path: str) -> bool:
    return not path.endswith("timing.json") and not path.startswith(
        ("report", "lessons", "summary", "results/benchmark")
    )


def check(clone: Clone, before: dict[str, bytes], files: set[str], lock: dict[str, dict[str, str]], why: str) -> None:
    """After the kill, one `dvc repro`: it succeeds, and all is as it was before."""
    await_none(clone)
    done = clone.run("dvc", "repro")
    assert "Traceback" not in done.stderr, why + done.stderr
    await_none(clone)
    assert clone.digests(*ALIKE) == before, why
    assert names(clone) == files, why
    assert not list((clone.path / "report").glob(".*")), why
    assert locked(clone) == lock, why
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
    clone = make_clone(NUMPY)
    lesson = (clone.path / f"pipeline/lessons/two_layer/{NUMPY}.py").read_text()
    (clone.path / "pipeline/lessons/two_layer/numpy_again.py").write_text(lesson)
    clone.write_params(clone.params() | {"implementations": {NUMPY: "two_layer", "numpy_again": "two_layer"}})
    clone.run("dvc", "repro")
    return clone


def kill(clone: Clone, process: subprocess.Popen[bytes], victim: str) -> None:
    with suppress(ProcessLookupError):
        if victim == "group":
            os.killpg(process.pid, signal.SIGKILL)
        elif victim == "dvc":
            process.kill()
        else:
            stages = [pid for pid, command in inside(clone).items() if "-m stages." in command]
            os.kill(random.choice(stages) if stages else process.pid, signal.SIGKILL)
    process.wait()


def test_kills_on_the_host(clone: Clone):
    draw = random.Random(SEED)
    before, files, lock = clone.digests(*ALIKE), names(clone), locked(clone)
    start = time.monotonic()
    clone.run("dvc", "repro", "-f")
    whole = time.monotonic() - start
    hit = {"in time": 0, "too late": 0, "dvc.lock was damaged": 0}
    for number in range(KILLS):
        victim = draw.choice(["group", "dvc", "stage"])
        process = started(clone, str(DVC), "repro", "-f")
        if draw.random() < 0.2:  # while MLflow is written to
            wait_for(clone, "stages.track", process)
            delay = draw.uniform(0, 3)
        else:
            delay = draw.uniform(0, 1.1 * whole)
        with suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        hit["in time" if process.poll() is None else "too late"] += 1
        kill(clone, process, victim)
        why = f"seed {SEED}, kill {number + 1}: {victim} after {delay:.2f} s"
        with suppress(OSError):
            yaml_ends = (clone.path / "dvc.lock").read_text().endswith("\n")
            hit["dvc.lock was damaged"] += not yaml_ends
        check(clone, before, files, lock, why)
    print(f"seed {SEED}: {KILLS} kills within {whole:.0f} s of a run: {hit}")


@contextmanager
def container(clone: Clone, name: str) -> Iterator[subprocess.Popen[bytes]]:
    command = ["docker", "run", "--rm", "--init", "--name", name, "--network", "none", "--read-only"]
    command += ["--tmpfs", "/tmp:exec,mode=1777", "--env", "TINI_KILL_PROCESS_GROUP=1"]
    command += ["--volume", f"{clone.path}:/workspace", "seven-ways-cpu", "dvc", "repro", "-f"]
    process = started(clone, *command)
    try:
        yield process
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)
        process.wait()


def images() -> str:
    if not shutil.which("docker"):
        return ""
    command = ["docker", "image", "ls", "--quiet", "seven-ways-cpu"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.mark.skipif(not images(), reason="needs Docker and the cpu image: docker compose build cpu")
def test_kills_of_containers(clone: Clone):
    draw = random.Random(SEED)
    clone.run("dvc", "repro")
    before, files, lock = clone.digests(*ALIKE), names(clone), locked(clone)
    in_time, kills = 0, max(1, KILLS // 5)
    for number in range(kills):
        name = f"faults-{os.getpid()}-{number}"
        with container(clone, name) as process:
            delay = draw.uniform(0, 25)
            with suppress(subprocess.TimeoutExpired):
                process.wait(delay)
            in_time += process.poll() is None
            subprocess.run(["docker", "kill", name], capture_output=True, check=False)
        check(clone, before, files, lock, f"seed {SEED}, container {number + 1} after {delay:.2f} s")
    print(f"seed {SEED}: {kills} containers killed, {in_time} of them in time")


# The same faults, planted where they were found.


def test_a_dvc_lock_that_is_cut_short_anywhere(clone: Clone):
    clone.run("dvc", "repro")
    path = clone.path / "dvc.lock"
    whole, lock = path.read_text(), locked(clone)
    draw = random.Random(SEED)
    for length in (0, *sorted(draw.randrange(1, len(whole) - 1) for _ in range(max(3, KILLS // 5)))):
        path.write_text(whole[:length])
        done = clone.run("dvc", "repro")
        assert clone.path.joinpath("dvc.lock").read_text().count("cmd: ") == whole.count("cmd: "), length
        assert locked(clone) == lock, length
        if not whole[:length].endswith("\n"):
            assert "WARNING: dvc.lock was damaged" in done.stderr, length


def test_a_cache_object_with_a_flipped_bit(clone: Clone):
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
    if done.returncode:  # named by the stage that reads it, with what helps
        assert "two_layer.safetensors" in done.stderr
        assert "dvc repro" in done.stderr
        clone.run("rm", "-f", str(cached), "reference/two_layer.safetensors")
        clone.run("dvc", "repro")
    assert clone.digests(*ALIKE) == before


def test_results_deleted_by_hand(clone: Clone):
    clone.run("dvc", "repro")
    before, files = clone.digests(*ALIKE), names(clone)
    shutil.rmtree(clone.path / "results")
    assert clone.stages_run("dvc", "repro") == []
    assert (clone.digests(*ALIKE), names(clone)) == (before, files)


def test_a_clock_that_jumps_back(clone: Clone):
    """Every file is from tomorrow, as after a clock that was wrong."""
    clone.run("dvc", "repro")
    before, tomorrow = clone.digests(*ALIKE), time.time() + 86400
    for name in names(clone) | {"dvc.lock", ".dvc/tmp/dvc.lock", "mlruns/receipts.json"}:
        os.utime(clone.path / name, (tomorrow, tomorrow))
    assert clone.stages_run("dvc", "repro") == []
    clone.run("dvc", "repro", "-f", f"train@{NUMPY}")
    assert clone.digests(*ALIKE) == before


ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root may mount")


@ROOT
@pytest.mark.parametrize("full", [".dvc/cache", "results", "models"])
def test_a_full_disk(make_clone: Callable[..., Clone], full: str):
    clone = make_clone(NUMPY)
    clone.run("dvc", "repro")
    before = clone.digests(*ALIKE)
    folder, copy = clone.path / full, clone.path.with_name("copy")
    shutil.copytree(folder, copy)
    with mounted("-t", "tmpfs", "-o", "size=16m", "tmpfs", folder):
        shutil.copytree(copy, folder, dirs_exist_ok=True)
        filler = folder / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**12))
        small = clone.params()
        sizes = small["data"]["two_layer"] | {"hidden": 800}
        steps = small["train"]["two_layer"] | {"steps": 3000}
        larger = {
            "data": small["data"] | {"two_layer": sizes},
            "train": small["train"] | {"two_layer": steps, "learning_rate": 1e-4},
        }
        clone.write_params(small | larger)
        said = clone.run("dvc", "repro", succeeds=False).stderr
        assert "No space left on device" in said or "No possible cache link types" in said  # DVC's, where it is DVC's
        filler.unlink()
        clone.run("dvc", "repro")
        clone.write_params(small)
        clone.run("dvc", "repro")
        assert clone.digests(*ALIKE) == before


@ROOT
def test_a_store_that_cannot_be_written(clone: Clone, tmp_path: Path):
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
def test_what_cannot_be_written(make_clone: Callable[..., Clone], folder: str):
    clone = make_clone(NUMPY)
    clone.run("dvc", "repro")
    before, path = clone.digests(*ALIKE), clone.path / folder
    clone.edit("params.yaml", "seed: 0", "seed: 1")
    with mounted("--bind", path, path):
        subprocess.run(["mount", "-o", "remount,ro,bind", path], check=True)
        assert "Read-only file system" in clone.run("dvc", "repro", succeeds=False).stderr
        clone.edit("params.yaml", "seed: 1", "seed: 0")
    clone.run("dvc", "repro")
    assert clone.digests(*ALIKE) == before
