"""A sweep, with real processes: what is queued comes home once, whatever is killed, as a serial run would leave it."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import pytest
from conftest import Clone, mounted, outside_variables

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The ``noload``", "ignore:.*Any type hint is inferred"),
]

NUMPY = "numpy_arrays"
BIN = Path(sys.executable).parent
WEIGHTS = f"models/{NUMPY}/weights.safetensors"


SWEEPS: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _fresh_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gives nodes a temporary folder of their own, which caches data between experiments, and ends a sweep that a
    failed test leaves running."""
    with tempfile.TemporaryDirectory(prefix="sw") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield
        while SWEEPS:
            sweep = SWEEPS.pop()
            if sweep.poll() is None:
                os.killpg(sweep.pid, signal.SIGKILL)
                sweep.communicate()


@pytest.fixture
def clone(make_clone: Callable[..., Clone]) -> Clone:
    """One implementation and no benchmark, committed; queue() adds experiments."""
    clone = make_clone(NUMPY)
    params = clone.params()
    clone.write_params(params | {"benchmark": params["benchmark"] | {"processes": 0}})
    clone.run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qam", "small")
    return clone


def queue(clone: Clone, *overrides: str, name: str = "") -> None:
    named = ["-n", name] if name else []
    clone.run("dvc", "exp", "run", "--queue", *named, *(word for each in overrides for word in ("-S", each)))


def start(clone: Clone, **environment: str) -> subprocess.Popen[str]:
    sweep = subprocess.Popen(
        [sys.executable, "-m", "commands.sweep"],
        cwd=clone.path,
        env=outside_variables() | {"PATH": f"{BIN}:{os.environ['PATH']}"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    SWEEPS.append(sweep)
    return sweep


def said_until(process: subprocess.Popen[str], pattern: str) -> str:
    """What it prints up to a line that matches."""
    said = ""
    for line in process.stdout or ():
        said += line
        if re.search(pattern, line):
            return said
    raise AssertionError(f"it ended without saying {pattern}:\n{said}")


def experiments(clone: Clone) -> dict[str, str]:
    """The revision of each experiment by name."""
    refs = clone.run("git", "for-each-ref", "--format=%(refname:lstrip=4) %(objectname)", "refs/exps/??/*/*").stdout
    return {
        name: revision for name, _, revision in (line.partition(" ") for line in refs.splitlines()) if "/" not in name
    }


def shown(clone: Clone) -> list[str]:
    mlflow.set_tracking_uri(f"sqlite:///{clone.path / 'mlflow.db'}")
    runs = mlflow.search_runs(experiment_names=["seven-ways"], filter_string="tags.role = 'pipeline'")
    return sorted(runs["tags.mlflow.runName"])


def queued(clone: Clone) -> str:
    return clone.run("dvc", "queue", "status").stdout


WHOLE = ("--num-cpus", "1", "--resources", '{"node": 1}')


@contextmanager
def cluster(
    *nodes: tuple[str, ...], environments: tuple[dict[str, str], ...] = ({}, {})
) -> Iterator[tuple[dict[str, str], list[subprocess.Popen[str]]]]:
    """Ray nodes as processes of this machine, each with resources of its own; the first is the head. Gives what a
    sweep's environment needs to find it, and the processes."""
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    # A dead node is noticed after seconds.
    environment |= {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}
    port = 6389 + 10 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    address, processes = f"127.0.0.1:{port}", []
    try:
        for number, resources in enumerate(nodes):
            head = ["--head", "--port", str(port), "--include-dashboard", "false", "--disable-usage-stats"]
            place = ["--address", address] if number else head
            process = subprocess.Popen(
                [BIN / "ray", "start", *place, "--block", *resources],
                env=environment | environments[number],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            processes.append(process)
            said_until(process, "Ray runtime started")
        yield {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}, processes
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in processes:
            process.wait()
            if process.stdout:  # not read to its end: a child of Ray's may still hold it
                process.stdout.close()


def test_what_is_queued_comes_home_as_it_would_serially(clone: Clone):
    """On this machine without a cluster; one diverges, and is said to have failed."""
    queue(clone, "train.learning_rate=0.05,0.02")
    queue(clone, "train.learning_rate=1e9", name="diverging")
    done = clone.run(sys.executable, "-m", "commands.sweep", succeeds=None)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"diverging: FAILED on \S+: .* the loss is inf at step", done.stdout), done.stdout
    found = experiments(clone)
    assert len(found) == 2
    assert "No experiment tasks in the queue" in queued(clone)
    assert shown(clone) == sorted(found)
    failures = mlflow.search_runs(experiment_names=["seven-ways"], filter_string="tags.role = 'failure'")
    assert list(failures["status"]) == ["FAILED"]
    table = clone.run("dvc", "exp", "show", "--csv").stdout
    for name, revision in found.items():
        assert re.search(rf"{name},.*\d\.\d+", table), table
        clone.run("git", "stash", "-q")
        clone.run("dvc", "exp", "apply", name)
        swept = (clone.path / WEIGHTS).read_bytes()
        clone.run("dvc", "repro", "-f", f"train@{NUMPY}")
        assert (clone.path / WEIGHTS).read_bytes() == swept, revision
        clone.run("git", "checkout", "-q", ".")
    assert "Nothing is queued" in clone.run(sys.executable, "-m", "commands.sweep").stdout


def test_shares_of_a_node_have_a_cpu_each_and_no_benchmark(clone: Clone):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one CPU")
    queue(clone, "seed=1,2")
    said = clone.run(sys.executable, "-m", "commands.sweep", "1").stdout
    first = said.index(": done on ")
    assert len(set(re.findall(r"^(\S+), \S+: train@", said[:first], re.MULTILINE))) == 2, (
        "they did not run side by side"
    )
    clone.run("dvc", "exp", "apply", next(iter(experiments(clone))))
    timing = clone.path / f"results/{NUMPY}/timing.json"
    assert '"threads": 1' in timing.read_text()
    assert ', shared"' in timing.read_text()


LONG = (f"train.two_layer.steps={10**5}", "train.learning_rate=0.001")


def test_a_killed_node_loses_nothing(clone: Clone):
    queue(clone, "seed=1,2", *LONG)
    with cluster(WHOLE, WHOLE) as (environment, nodes):
        sweep = start(clone, **environment)
        said = said_until(sweep, f"train@{NUMPY}") + said_until(sweep, f"train@{NUMPY}")
        os.killpg(nodes[1].pid, signal.SIGKILL)
        said += sweep.communicate(timeout=400)[0]
    assert sweep.returncode == 0, said
    assert len(experiments(clone)) == 2, said
    assert len(shown(clone)) == 2
    assert said.count(": done on ") == 2


def test_a_killed_head_is_a_sentence_and_what_is_done_is_kept(clone: Clone):
    queue(clone, "seed=1")
    queue(clone, "seed=2", *LONG)
    with cluster(WHOLE, ("--num-cpus", "0")) as (environment, nodes):
        sweep = start(clone, **environment)
        said = said_until(sweep, "1 of 2 done")
        os.killpg(nodes[0].pid, signal.SIGKILL)
        said += sweep.communicate(timeout=60)[0]
    assert sweep.returncode == 1
    assert re.search(
        r"^ERROR: the head of the Ray cluster at \S+ is gone .*goes on with the rest\.$", said, re.MULTILINE
    )
    assert "Traceback" not in said
    assert len(experiments(clone)) == 1
    with cluster(WHOLE) as (environment, _):
        clone.run(sys.executable, "-m", "commands.sweep", env=environment)
    assert len(experiments(clone)) == 2
    assert len(shown(clone)) == 2


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount")
def test_a_node_whose_disk_is_full_passes_its_experiment_on(clone: Clone, tmp_path: Path):
    queue(clone, "seed=1")
    with mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path):
        environments = ({"TMPDIR": str(tmp_path), "RAY_TMPDIR": os.environ["TMPDIR"]}, {})  # Ray's own files elsewhere
        with cluster(WHOLE, ("--num-cpus", "0"), environments=environments) as (environment, _):
            sweep = start(clone, **environment)
            said = sweep.communicate(timeout=100)[0]
            assert re.search(r"FAILED on \S+: no node has room for it on its disk", said), said
        queue(clone, "seed=1,2,3")
        with cluster(WHOLE, WHOLE, environments=environments) as (environment, _):
            said = start(clone, **environment).communicate(timeout=200)[0]
    moved = re.findall(r"^(\S+): the disk of \S+ is full; it goes to another node", said, re.MULTILINE)
    assert moved
    assert len(moved) == len(set(moved)), said  # each moves once: there is one other node
    assert len(experiments(clone)) == 3


def test_a_gpu_for_each_experiment_and_none_for_one_on_the_cpu(clone: Clone):
    """Two GPUs as Ray counts them. Which of them a stage would see is in its environment."""
    clone.edit(
        "stages/generate.py", "def main(", "import os\nprint('SEES', os.environ['CUDA_VISIBLE_DEVICES'])\n\n\ndef main("
    )
    clone.run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qam", "says what it sees")
    for number, device in enumerate(("auto", "auto", "cpu")):
        queue(clone, f"device={device}", f"seed={number}", name=f"{device}-{number}")
    with cluster(("--num-cpus", "2", "--num-gpus", "2")) as (environment, _):
        clone.run(sys.executable, "-m", "commands.sweep", "1", "generate@two_layer", env=environment)
    seen = {
        path.stem: re.findall("^SEES (.*)$", path.read_text(), re.MULTILINE)
        for path in (clone.path / ".dvc/tmp/sweep").glob("*.log")
    }
    assert sorted([seen["auto-0"], seen["auto-1"]]) == [["0"], ["1"]]
    assert seen["cpu-2"] == [""]


def test_some_stages_alone(clone: Clone):
    queue(clone, "seed=3")
    clone.run(sys.executable, "-m", "commands.sweep", "", f"train@{NUMPY}")
    (revision,) = experiments(clone).values()
    assert f"evaluate@{NUMPY}:" not in clone.run("git", "show", f"{revision}:dvc.lock").stdout
    assert not (clone.path / "mlflow.db").exists()  # MLflow shows whole states
    clone.run("git", "checkout", revision, "--", "dvc.lock")
    clone.run("dvc", "checkout", f"models/{NUMPY}")
    assert (clone.path / WEIGHTS).stat().st_size


def test_what_experiments_share_is_made_once_a_node(clone: Clone):
    queue(clone, "train.learning_rate=0.05,0.02", name="rate")
    with cluster(WHOLE) as (environment, _):
        clone.run(sys.executable, "-m", "commands.sweep", env=environment)
    logs = [path.read_text() for path in (clone.path / ".dvc/tmp/sweep").glob("*.log")]
    assert len(logs) == 2
    assert sum("Running stage 'generate@two_layer'" in log for log in logs) == 1


def test_objects_travel_by_the_dvc_remote_where_there_is_one(clone: Clone, tmp_path: Path):
    clone.run("dvc", "remote", "add", "-d", "here", str(tmp_path / "remote"))
    clone.run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qam", "a remote")
    queue(clone, "seed=3")
    clone.run(sys.executable, "-m", "commands.sweep")
    (name,) = experiments(clone)
    assert len(list((tmp_path / "remote").rglob("*/*/??/*"))) > 5
    clone.run("dvc", "exp", "apply", name)
    assert (clone.path / WEIGHTS).stat().st_size


def test_on_a_terminal_a_row_is_rewritten_and_a_bar_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from pipeline.sweep.display import Display

    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with Display(2) as display:
        display.say("one", "here", "generate@two_layer")
        display.say("one", "here", "train@numpy_arrays")
        display.live.refresh()
        display.end("two", "done on there in 3 s")
    said = capsys.readouterr().out
    assert re.search(r"one +here +train@numpy_arrays", said)
    assert "generate@two_layer" not in said
    assert "two: done on there in 3 s" in said
    assert "1/2" in said


@pytest.mark.parametrize("where", ["terminal", "destructor"])
def test_ctrl_c_keeps_what_is_done(clone: Clone, where: str):
    if where == "destructor":  # Python prints a KeyboardInterrupt that is raised there, and goes on
        press = "import os\n\n\nclass Press:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGINT)\n"
        clone.edit("pipeline/sweep/driver.py", "import signal\n", f"import signal\n{press}\n")
        clone.edit(
            "pipeline/sweep/driver.py", "        self.home.append(", "        Press()\n        self.home.append("
        )
    queue(clone, "seed=1")
    queue(clone, "seed=2,3", *LONG)
    sweep = start(clone)
    said = said_until(sweep, "1 of 3 done")
    if where == "terminal":
        os.killpg(sweep.pid, signal.SIGINT)
    said += sweep.communicate(timeout=60)[0]
    assert sweep.returncode == 130
    assert "Stopped: 1 of 3 are done" in said
    assert "Traceback" not in said
    assert len(experiments(clone)) == 1
    assert clone.run("dvc", "queue", "status").stdout.count("Queued") == 2
    left = subprocess.run(["pgrep", "-f", str(clone.path)], capture_output=True, text=True, check=False).stdout
    assert not left, left


def test_a_killed_sweep_goes_on_with_the_rest(clone: Clone):
    queue(clone, "seed=1,2,3")
    sweep = start(clone)
    said_until(sweep, "1 of 3 done")
    os.killpg(sweep.pid, signal.SIGKILL)
    sweep.communicate()
    assert 1 <= len(experiments(clone)) < 3
    clone.run(sys.executable, "-m", "commands.sweep")
    assert len(experiments(clone)) == 3
    assert len(shown(clone)) == 3


def test_an_unreachable_server_is_told_afterwards(clone: Clone):
    queue(clone, "seed=1,2")
    nobody = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = clone.run(sys.executable, "-m", "commands.sweep", env=nobody)
    assert "WARNING: MLflow at http://127.0.0.1:9" in done.stderr
    assert len(experiments(clone)) == 2
    clone.run(sys.executable, "-m", "commands.sweep")
    clone.run(sys.executable, "-m", "commands.sweep")
    assert shown(clone) == sorted(experiments(clone))


def test_what_has_changed_on_its_way_does_not_count(clone: Clone, monkeypatch: pytest.MonkeyPatch):
    from pipeline.sweep import import_results, node
    from pipeline.sweep.queue import Queued

    monkeypatch.chdir(clone.path)
    outcome = node.Outcome("x", True, "here", "", 1.0, "", objects=_tar("ab/" + "0" * 30, b"another content"))
    with pytest.raises(import_results.ArrivalError, match=r"the object ab0+ has changed on its way"):
        import_results.take_in(Queued("x", "0" * 40, "0" * 40), outcome)
    assert not (clone.path / ".dvc/cache/files/md5/ab").exists()


def _tar(name: str, content: bytes) -> bytes:
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
