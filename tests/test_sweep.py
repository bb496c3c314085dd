"""A sweep with real processes: each queued experiment is done once, even after kills, with the results of a serial
run."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import pytest
from conftest import Clone, mounted
from running import NUMPY, end_started, kill_group, output_until, start_command, wait_until  # noqa: F401 (a fixture)

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The ``noload``", "ignore:.*Any type hint is inferred"),
]

WEIGHTS = f"models/{NUMPY}/weights.safetensors"
WHOLE = ("--num-cpus", "1", "--resources", '{"node": 1}')
# A training that takes seconds because of its sizes: many steps would all be logged in MLflow.
LONG = tuple(
    f"{key}={value}"
    for key, value in {
        "problems.two_layer.data.inputs": 1000,
        "problems.two_layer.data.hidden": 400,
        "problems.two_layer.train.steps": 1500,
        "train.learning_rate": 0.001,
    }.items()
)
UNREACHABLE = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}


@pytest.fixture(autouse=True)
def _fresh_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gives nodes their own temporary folder, which caches data between experiments."""
    with tempfile.TemporaryDirectory(prefix="sw", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield


@pytest.fixture
def clone(make_clone: Callable[..., Clone]) -> Clone:
    """One implementation, committed."""
    clone = make_clone(NUMPY)
    clone.commit()
    return clone


def queue(clone: Clone, *overrides: str, name: str = "") -> None:
    named = ["-n", name] if name else []
    clone.run("dvc", "exp", "run", "--queue", *named, *(word for override in overrides for word in ("-S", override)))


def sweep(clone: Clone, *arguments: str, succeeds: bool = True, env: dict[str, str] | None = None) -> str:
    done = clone.run(sys.executable, "-m", "commands", "sweep", *arguments, succeeds=succeeds, env=env)
    return done.stdout + done.stderr


def experiments(clone: Clone) -> dict[str, str]:
    """The revision of each experiment by name."""
    refs = clone.run("git", "for-each-ref", "--format=%(refname:lstrip=4) %(objectname)", "refs/exps/??/*/*").stdout
    return {name: commit for name, _, commit in (line.partition(" ") for line in refs.splitlines()) if "/" not in name}


def logged(clone: Clone, role: str = "pipeline") -> list[str]:
    """The names of MLflow's runs."""
    mlflow.set_tracking_uri(f"sqlite:///{clone.path / 'mlflow.db'}")
    runs = mlflow.search_runs(experiment_names=["seven-ways"], filter_string=f"tags.role = '{role}'")
    return sorted(runs["tags.mlflow.runName"])


@contextmanager
def cluster(
    *nodes: tuple[str, ...], environments: tuple[dict[str, str], ...] = ({}, {}), port: int = 6389
) -> Iterator[tuple[dict[str, str], list[subprocess.Popen[str]]]]:
    """Ray nodes as processes of this machine, each with resources of its own; the first is the head. Gives what a
    sweep's environment needs to find it, and the processes."""
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    # A dead node is noticed after seconds.
    environment |= {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}
    port += 10 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    address, processes = f"127.0.0.1:{port}", []

    def head_answers() -> bool:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return True
        return False

    try:
        for number, resources in enumerate(nodes):
            block = ["--block", *resources]
            head = ["--head", "--port", str(port), "--include-dashboard", "false", "--disable-usage-stats"]
            process = subprocess.Popen(
                [Path(sys.executable).parent / "ray", "start", *(["--address", address] if number else head), *block],
                env=environment | environments[number],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            processes.append(process)
            wait_until(head_answers)  # the others start while it goes on starting
        for process in processes:
            output_until(process, "Ray runtime started")
        yield {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}, processes
    finally:
        for process in processes:
            kill_group(process)


def test_queued_experiments_give_the_results_of_serial_runs(clone: Clone):
    """On this machine without a cluster; one diverges and fails."""
    queue(clone, "train.learning_rate=0.05,0.02")
    queue(clone, "train.learning_rate=1e9", name="diverging")
    output = sweep(clone, succeeds=False)
    assert re.search(r"diverging: FAILED on \S+: .* the loss is inf at step", output), output
    done = experiments(clone)
    assert len(done) == 2
    assert "No experiment tasks in the queue" in clone.run("dvc", "queue", "status").stdout
    assert logged(clone) == sorted(done)
    assert logged(clone, "failure") == ["diverging"]
    table = clone.run("dvc", "exp", "show", "--csv").stdout
    for name in done:
        assert re.search(rf"{name},.*\d\.\d+", table), table
        clone.run("git", "stash", "-q")
        clone.run("dvc", "exp", "apply", name)
        swept = (clone.path / WEIGHTS).read_bytes()
        clone.run("dvc", "repro", "-f", f"train@{NUMPY}")
        assert (clone.path / WEIGHTS).read_bytes() == swept, name
        clone.run("git", "checkout", "-q", ".")
    assert "Nothing is queued" in sweep(clone)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU")
def test_shares_of_a_node_get_one_cpu_each_and_no_benchmark(clone: Clone):
    queue(clone, "seed=1,2", *LONG)
    output = sweep(clone, "--share", "1")
    first = output.index(": done on ")
    assert len(set(re.findall(r"^(\S+), \S+: train@", output[:first], re.MULTILINE))) == 2, "not side by side"
    clone.run("dvc", "exp", "apply", next(iter(experiments(clone))))
    timing = (clone.path / f"results/{NUMPY}/timing.json").read_text()
    assert '"threads": 1' in timing
    assert ', shared"' in timing


def test_experiments_of_a_killed_node_are_run_again(clone: Clone):
    queue(clone, "seed=1,2", *LONG)
    with cluster(WHOLE, WHOLE) as (environment, nodes):
        process = start_command(clone, "sweep", env=environment)
        output = output_until(process, f"train@{NUMPY}") + output_until(process, f"train@{NUMPY}")
        os.killpg(nodes[1].pid, signal.SIGKILL)
        output += process.communicate(timeout=400)[0]
    assert process.returncode == 0, output
    assert len(experiments(clone)) == len(logged(clone)) == output.count(": done on ") == 2, output


def test_sweep_waits_for_a_node_that_joins_late_and_refuses_without_one(clone: Clone):
    queue(clone, "seed=1")
    with cluster(("--num-cpus", "0")) as (environment, _):
        assert "ERROR: No node of the Ray cluster runs whole experiments. Start one with" in sweep(
            clone, env=environment, succeeds=False
        )
        process = start_command(clone, "sweep", env=environment)
        output = output_until(process, "Waiting for nodes to join the Ray cluster")
        command = [Path(sys.executable).parent / "ray", "start", "--address", environment["RAY_ADDRESS"], *WHOLE]
        with subprocess.Popen(
            [*command, "--block"], env=os.environ | environment, stdout=subprocess.DEVNULL, start_new_session=True
        ) as node:
            output += process.communicate(timeout=400)[0]
            kill_group(node)
    assert process.returncode == 0, output
    assert len(experiments(clone)) == 1


def test_killed_head_is_reported_and_finished_experiments_are_kept(clone: Clone):
    queue(clone, "seed=1")
    queue(clone, "seed=2", *LONG)
    with cluster(WHOLE, ("--num-cpus", "0")) as (environment, nodes):
        process = start_command(clone, "sweep", env=environment)
        output_until(process, "1 of 2 done")
        os.killpg(nodes[0].pid, signal.SIGKILL)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    message = r"^ERROR: The head of the Ray cluster at \S+ is gone .*for the rest\.$"
    assert re.search(message, output, re.MULTILINE)
    assert "Traceback" not in output
    assert len(experiments(clone)) == 1
    with cluster(WHOLE) as (environment, _):
        sweep(clone, env=environment)
    assert len(experiments(clone)) == len(logged(clone)) == 2


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount")
def test_full_disk_moves_the_experiment_to_another_node(clone: Clone, tmp_path: Path):
    queue(clone, "seed=1")
    with mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path):
        environments = ({"TMPDIR": str(tmp_path), "RAY_TMPDIR": os.environ["TMPDIR"]}, {})  # Ray's own files elsewhere
        with cluster(WHOLE, ("--num-cpus", "0"), environments=environments) as (environment, _):
            output = sweep(clone, succeeds=False, env=environment)
            assert re.search(r"FAILED on \S+: no node has room for it on its disk\. It stays queued", output), output
        queue(clone, "seed=2,3")  # the first has stayed queued
        with cluster(WHOLE, WHOLE, environments=environments) as (environment, _):
            output = sweep(clone, env=environment)
    moved = re.findall(r"^(\S+): the disk of \S+ is full; it goes to another node", output, re.MULTILINE)
    assert moved
    assert len(moved) == len(set(moved)), output  # each moves once: there is one other node
    assert len(experiments(clone)) == 3


def test_gpu_experiment_sees_one_gpu_and_cpu_experiment_sees_none(clone: Clone):
    """Two GPUs as Ray counts them. The environment of a stage shows which of them it would see."""
    sees = "import os\nprint('SEES', os.environ['CUDA_VISIBLE_DEVICES'])\n"
    clone.edit("stages/generate.py", "if __name__", f"{sees}if __name__")
    clone.commit()
    for number, device in enumerate(("auto", "auto", "cpu")):
        queue(clone, f"device={device}", f"seed={number}", name=f"{device}-{number}")
    with cluster(("--num-cpus", "2", "--num-gpus", "2")) as (environment, _):
        sweep(clone, "--share", "1", "generate@two_layer", env=environment)
    logs = (clone.path / ".dvc/tmp/sweep").glob("*.log")
    seen = {path.stem: re.findall("^SEES (.*)$", path.read_text(), re.MULTILINE) for path in logs}
    assert sorted([seen["auto-0"], seen["auto-1"]]) == [["0"], ["1"]]
    assert seen["cpu-2"] == [""]


def test_sweep_of_chosen_stages_generates_shared_data_once_per_node(clone: Clone):
    queue(clone, "train.learning_rate=0.05,0.02", name="rate")
    with cluster(WHOLE) as (environment, _):
        sweep(clone, f"train@{NUMPY}", env=environment)
    logs = [path.read_text() for path in (clone.path / ".dvc/tmp/sweep").glob("*.log")]
    assert len(logs) == 2
    assert sum("Running stage 'generate@two_layer'" in log for log in logs) == 1
    revision = next(iter(experiments(clone).values()))
    assert "evaluate:" not in clone.run("git", "show", f"{revision}:dvc.lock").stdout
    assert not (clone.path / "mlflow.db").exists()  # MLflow shows whole states
    clone.run("git", "checkout", revision, "--", "dvc.lock")
    clone.run("dvc", "checkout", f"models/{NUMPY}")
    assert (clone.path / WEIGHTS).stat().st_size


def test_objects_are_sent_through_the_dvc_remote(clone: Clone, tmp_path: Path):
    clone.run("dvc", "remote", "add", "-d", "here", str(tmp_path / "remote"))
    clone.commit()
    queue(clone, "seed=3")
    sweep(clone)
    (name,) = experiments(clone)
    assert len(list((tmp_path / "remote").rglob("*/*/??/*"))) > 5
    clone.run("dvc", "exp", "apply", name)
    assert (clone.path / WEIGHTS).stat().st_size


def test_terminal_shows_a_row_for_each_experiment_and_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from pipeline.sweep.display import Display

    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with Display(2) as display:
        display.show("one", "here", "generate@two_layer")
        display.show("one", "here", "train@numpy_arrays")
        display.live.refresh()
        display.end("two", "done on there in 3 s")
    output = capsys.readouterr().out
    assert re.search(r"one +here +train@numpy_arrays", output)
    assert "generate@two_layer" not in output
    assert "two: done on there in 3 s" in output
    assert "1/2" in output


@pytest.mark.parametrize("where", ["terminal", "destructor"])
def test_ctrl_c_keeps_finished_experiments(clone: Clone, where: str):
    if where == "destructor":  # Python prints a KeyboardInterrupt that is raised there, and goes on
        press = "import os\n\n\nclass Press:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGINT)\n"
        driver = "pipeline/sweep/driver.py"
        clone.edit(driver, "import signal\n", f"import signal\n{press}\n")
        clone.edit(driver, "        self.done.append(", "        Press()\n        self.done.append(")
    queue(clone, "seed=1")
    queue(clone, "seed=2,3", *LONG)
    process = start_command(clone, "sweep")
    output = output_until(process, "1 of 3 done")
    if where == "terminal":
        os.killpg(process.pid, signal.SIGINT)
    output += process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert "Stopped: 1 of 3 are done" in output
    assert "Traceback" not in output
    assert len(experiments(clone)) == 1
    assert clone.run("dvc", "queue", "status").stdout.count("Queued") == 2
    left = subprocess.run(["pgrep", "-f", str(clone.path)], capture_output=True, text=True, check=False).stdout
    assert not left, left


def test_next_sweep_continues_after_a_kill_and_logs_missing_runs(clone: Clone):
    queue(clone, "seed=1,2,3")
    process = start_command(clone, "sweep")
    output_until(process, "1 of 3 done")
    kill_group(process)
    assert 1 <= len(experiments(clone)) < 3
    assert "WARNING: MLflow at http://127.0.0.1:9" in sweep(clone, env=UNREACHABLE)
    assert len(experiments(clone)) == 3
    for _ in range(2):
        sweep(clone)
        assert logged(clone) == sorted(experiments(clone))


def test_damaged_object_is_refused(clone: Clone, monkeypatch: pytest.MonkeyPatch):
    from pipeline.sweep import import_results, node
    from pipeline.sweep.queue import Experiment

    monkeypatch.chdir(clone.path)
    outcome = node.Outcome(True, "here", "", 1.0, "", objects=(("ab" + "0" * 30, b"another content"),))
    with pytest.raises(import_results.DamagedError, match=r"the object ab0+ was damaged during transfer"):
        import_results.import_results(Experiment("x", "0" * 40, "0" * 40), outcome)
    assert not (clone.path / ".dvc/cache/files/md5/ab").exists()
