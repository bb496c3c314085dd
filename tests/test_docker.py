"""The containers for real: images from the unchanged Dockerfile, jobs on small clones, runs read back over http."""

import json
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import browser
import mlflow
import pytest
from conftest import LESSONS, REPOSITORY, Clone, outside_variables
from mlflow.entities import Run

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload``", "ignore:.*Any type hint is inferred")

UID = 1234 if os.getuid() == 0 else os.getuid()  # as root the clone is given away, to a uid that no passwd file knows
PROJECT = "seven-ways-test"


def engine_is_missing() -> str:
    if shutil.which("docker") is None:
        return "docker is not installed"
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        return "docker has no Compose v2"
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        return "no Docker engine answers"
    return ""


needs_engine = pytest.mark.skipif(bool(engine_is_missing()), reason=f"containers are not tested: {engine_is_missing()}")


class Containers:
    """A clone whose commands run in containers, with a server and volume of their own."""

    def __init__(self, clone: Clone, project: str = PROJECT) -> None:
        self.clone = clone
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.env = {"COMPOSE_PROJECT_NAME": project, "MLFLOW_PORT": str(self.port)}
        # As on most users' machines: the host's environment is there too, and its Python does not run in an image.
        host = clone.path / ".venv/bin/python"
        host.parent.mkdir(parents=True)
        host.write_text("#!/bin/false\n")
        host.chmod(0o755)
        subprocess.run(["chown", "-R", f"{UID}:{UID}", clone.path], check=True)

    def run(
        self, *command: str, succeeds: bool = True, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        return self.compose("run", "--rm", "-T", *options, "cpu", *command, succeeds=succeeds)

    def compose(self, *command: str, succeeds: bool = True) -> subprocess.CompletedProcess[str]:
        return self.clone.run("docker", "compose", *command, succeeds=succeeds, env=self.env)

    def start(self, *options: str, terminal: int | None = None) -> subprocess.Popen[str]:
        """Start training numpy_arrays in a container, from `terminal` where one is given."""
        mode = [] if terminal else ["-T"]
        return subprocess.Popen(
            ["docker", "compose", "run", "--rm", *mode, *options, "cpu", "dvc", "repro", "train@numpy_arrays"],
            cwd=self.clone.path,
            env=outside_variables() | self.env,
            text=True,
            stdin=terminal or subprocess.DEVNULL,
            stdout=terminal or subprocess.PIPE,
            stderr=terminal or subprocess.PIPE,
        )

    def runs(self) -> dict[str, Run]:
        mlflow.set_tracking_uri(f"http://127.0.0.1:{self.port}")
        query = "tags.role = 'implementation'"
        found = mlflow.search_runs(experiment_names=["seven-ways"], filter_string=query, output_format="list")
        return {str(run.info.run_name): run for run in found}  # pyright: ignore[reportAttributeAccessIssue]

    def set_params(self, **changes: object) -> None:
        self.clone.write_params(self.clone.params() | changes)
        os.chown(self.clone.path / "params.yaml", UID, UID)


@pytest.fixture(scope="module")
def containers(make_clone: Callable[..., Clone]) -> Iterator[Containers]:
    """All seven on small params, run once by `docker compose run --rm cpu` with nothing built or started before."""
    containers = Containers(make_clone(*LESSONS))
    containers.compose("down", "--volumes", "--timeout", "5")
    containers.compose("build", "cpu", "mlflow")  # `run` takes an image that is there, even an old one
    containers.run()
    yield containers
    containers.compose("down", "--volumes", "--timeout", "5")


def long(containers: Containers, steps: int) -> None:
    train = containers.clone.params()["train"]
    containers.set_params(train=train | {"two_layer": train["two_layer"] | {"steps": steps}})


def training(containers: Containers, name: str = "numpy_arrays") -> bool:
    """Whether a container is in the middle of training `name`."""
    done = containers.compose("ps", "--all", "--quiet", "--status", "running")
    for container in done.stdout.split():
        top = subprocess.run(["docker", "top", container], capture_output=True, text=True, check=False).stdout
        if f"stages.train {name}" in top:
            time.sleep(1)  # Python itself has started
            return True
    return False


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@needs_engine
def test_results_are_the_users_and_the_runs_are_read_over_http(containers: Containers):
    comparison = json.loads((containers.clone.path / "results/comparison.json").read_text())
    assert comparison["passed"]
    runs = containers.runs()
    assert runs.keys() == comparison["implementations"].keys() == LESSONS.keys()
    for run in runs.values():
        assert run.info.status == "FINISHED"
        assert run.data.tags["device"] == "cpu"
        assert run.data.tags["image.digest"].startswith("sha256:")
        assert run.data.metrics["step_microseconds"] > 0
    strangers = [path for path in containers.clone.path.rglob("*") if path.lstat().st_uid != UID]
    assert not strangers


@needs_engine
def test_models_are_bitwise_those_of_the_host(containers: Containers, make_clone: Callable[..., Clone]):
    host = make_clone(*LESSONS)
    host.run("dvc", "repro")
    models = host.digests("models/**/*")
    assert len(models) == 2 * 7
    assert containers.clone.digests("models/**/*") == models


@needs_engine
def test_a_second_run_has_nothing_to_do(containers: Containers):
    done = containers.run()
    ran = [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]
    assert set(ran) == {"environment", "track"}
    assert f"MLflow shows the current results: http://127.0.0.1:{containers.port}" in done.stdout


@needs_engine
def test_a_containers_run_again_in_a_container_and_on_the_host(containers: Containers, tmp_path: Path):
    run_id = containers.runs()["numpy_arrays"].info.run_id
    assert "bitwise identical" in containers.run("make", "reproduce", f"RUN={run_id}").stdout
    (tmp_path / "gitconfig").write_text("[safe]\ndirectory = *\n")  # the checkout is another user's
    trusting = {"GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig")}
    containers.clone.run("git", "clone", "-q", str(containers.clone.path), str(tmp_path / "host"), env=trusting)
    done = Clone(tmp_path / "host").run(
        *[sys.executable, "-m", "commands.reproduce", run_id[:12]],
        env={"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{containers.port}"},
    )
    assert "bitwise identical" in done.stdout


@needs_engine
def test_the_images_say_what_is_in_them(containers: Containers):
    labels = containers.run("cat", "/opt/image.digest").stdout
    assert labels.startswith("sha256:")
    inspect = ["docker", "image", "inspect", "--format", '{{index .Config.Labels "seven-ways.versions"}}']
    locked = (REPOSITORY / "requirements/cpu.txt").read_text() + (REPOSITORY / "requirements/torch-cpu.txt").read_text()
    for service in ("cpu", "mlflow"):
        said = subprocess.run([*inspect, f"{PROJECT}-{service}"], capture_output=True, text=True, check=True).stdout
        assert all(package.replace(" ", "==") in locked for package in said.strip().split(", ")), said


@needs_engine
def test_any_command_runs_instead(containers: Containers):
    shown = containers.run("dvc", "metrics", "show", "results/numpy_arrays/metrics.json").stdout
    assert "train_loss" in shown


@needs_engine
def test_a_job_has_the_users_uid_no_capability_and_a_read_only_root(containers: Containers):
    script = "id -u; grep -E 'Cap|NoNewPrivs' /proc/self/status; touch /probe /opt/probe 2>&1 || true"
    lines = containers.run("bash", "-c", script).stdout.splitlines()
    assert lines[0] == str(UID)
    assert [line.split()[1] for line in lines if line.startswith("Cap")] == ["0" * 16] * 5
    assert "NoNewPrivs:\t1" in lines
    assert sum("Read-only file system" in line for line in lines) == 2


@needs_engine
def test_the_server_answers_on_this_machine_alone_and_to_its_own_names(containers: Containers):
    (binding,) = containers.compose("port", "mlflow", "5000").stdout.split()
    assert binding == f"127.0.0.1:{containers.port}"
    url = f"http://127.0.0.1:{containers.port}/api/2.0/mlflow/experiments/search?max_results=1"
    assert urllib.request.urlopen(url).status == 200
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(urllib.request.Request(url, headers={"Host": "attacker.example"}))
    assert error.value.code == 403
    error.value.close()


@needs_engine
@pytest.mark.skipif(bool(browser.is_missing()), reason=f"the UI is not looked at: {browser.is_missing()}")
def test_the_runs_page_in_a_real_browser_shows_the_seven(containers: Containers, tmp_path: Path):
    # Beside other tests the benchmark may not be trusted, and times_lower_bound is no metric then, so no column.
    columns = ("device_name", "parity", "held_out_loss", "r2", "step_microseconds", "Duration")
    _, picture = browser.runs_page(f"http://127.0.0.1:{containers.port}", *LESSONS, *columns, "passed")
    assert picture.startswith(b"\x89PNG")


@pytest.fixture
def restored(containers: Containers) -> Iterator[Containers]:
    """To be changed: afterwards params and results are as they were."""
    params = containers.clone.params()
    yield containers
    containers.set_params(**params)
    containers.run()


@needs_engine
def test_an_experiment_in_a_checkout_without_a_git_identity(restored: Containers):
    restored.run("dvc", "exp", "run", "-n", "slower", "-S", "train.learning_rate=0.02", "train@numpy_arrays")
    assert restored.clone.params()["train"]["learning_rate"] == 0.02
    assert "slower" in restored.run("dvc", "exp", "list", "--name-only").stdout


@needs_engine
def test_ctrl_c_reaches_the_stage_and_leaves_the_last_good_results(restored: Containers):
    before = restored.clone.digests("models/**/*", "results/*/[!t]*")
    long(restored, 10**8)
    keyboard, terminal = pty.openpty()
    process = restored.start(terminal=terminal)
    wait_until(lambda: training(restored))
    os.write(keyboard, b"\x03")
    assert process.wait(timeout=40) != 0
    os.close(keyboard)
    os.close(terminal)
    assert not training(restored)
    assert restored.clone.digests("models/**/*", "results/*/[!t]*") == before


@needs_engine
def test_docker_stop_does_the_same(restored: Containers):
    before = restored.clone.digests("models/**/*")
    long(restored, 10**8)
    process = restored.start("--name", f"{PROJECT}-stopped")
    wait_until(lambda: training(restored))
    start = time.monotonic()
    subprocess.run(["docker", "stop", f"{PROJECT}-stopped"], check=True, capture_output=True)
    assert time.monotonic() - start < 25, "it had to be killed"
    process.communicate(timeout=40)
    assert process.returncode != 0
    assert restored.clone.digests("models/**/*") == before


@needs_engine
def test_a_lock_left_by_a_killed_container_blocks_nobody(restored: Containers):
    long(restored, 10**8)
    process = restored.start("--name", f"{PROJECT}-killed")
    wait_until(lambda: training(restored))
    subprocess.run(["docker", "kill", f"{PROJECT}-killed"], check=True, capture_output=True)
    process.communicate(timeout=40)
    assert (restored.clone.path / ".dvc/tmp/rwlock").read_text() not in ("", "{}")
    long(restored, 30)
    assert "Waiting" not in restored.run().stderr


@needs_engine
def test_a_second_container_waits_and_the_host_is_told(restored: Containers):
    long(restored, 1_000_000)
    first = restored.start()
    wait_until(lambda: training(restored))
    python = str(Path(mlflow.__file__).parents[3] / "../bin/python")
    told = restored.clone.run(python, "-m", "stages.train", "numpy_arrays", succeeds=False)
    assert "`dvc repro" in told.stderr
    assert "is using this checkout. Wait until it has ended" in told.stderr
    second = restored.start()
    output, errors = second.communicate(timeout=300)
    assert first.poll() == 0, "the second went first"
    assert second.returncode == 0
    assert "Waiting until `dvc repro` in container " in errors
    assert "Running stage 'train@" not in output
    first.communicate()


@needs_engine
def test_an_unreachable_server_costs_nothing_and_is_brought_up_to_date(restored: Containers):
    restored.set_params(seed=5)
    restored.compose("stop", "mlflow")
    done = restored.run(options=("--no-deps",))
    assert "WARNING: MLflow at http://mlflow:5000 was not brought up to date" in done.stderr
    assert json.loads((restored.clone.path / "results/comparison.json").read_text())["passed"]
    done = restored.run()
    assert "MLflow shows 7 results" in done.stdout


@needs_engine
def test_a_full_disk_is_said_and_nothing_is_lost(restored: Containers):
    image = f"{PROJECT}-cpu"
    long(restored, 31)
    done = restored.clone.run(
        *["docker", "run", "--rm", "--volume", f"{restored.clone.path}:/workspace"],
        *["--tmpfs", f"/workspace/models/numpy_arrays:size=4k,uid={UID}", image, "bash", "-c"],
        "head -c 4096 /dev/zero >models/numpy_arrays/filled; python -m stages.train numpy_arrays",
        succeeds=False,
    )
    assert "cannot be written: No space left on device" in done.stderr


@pytest.fixture
def cluster(make_clone: Callable[..., Clone]) -> Iterator[Containers]:
    """Two lessons without a benchmark, committed, for a cluster of two workers."""
    clone = make_clone("numpy_arrays", "torch_loop")
    params = clone.params()
    clone.write_params(params | {"benchmark": params["benchmark"] | {"processes": 0}})
    clone.run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qam", "small")
    cluster = Containers(clone, f"{PROJECT}-cluster")
    cluster.env["MLFLOW_BACKEND_STORE_URI"] = "sqlite:////mlflow/another.db"
    down = ("--profile", "cluster", "down", "--volumes", "--timeout", "5")
    cluster.compose(*down)
    cluster.compose("build", "cpu", "mlflow", "head", "worker")
    yield cluster
    cluster.compose(*down)


@needs_engine
@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_sweep_on_two_workers_of_which_one_is_killed(cluster: Containers, make_clone: Callable[..., Clone]):
    cluster.run("dvc", "exp", "run", "--queue", "-S", "train.learning_rate=0.02,0.05,0.1", "-S", "seed=0,1")
    cluster.compose("--profile", "cluster", "up", "-d", "--scale", "worker=2")
    command = ["docker", "compose", "run", "--rm", "-T", "cpu", "make", "sweep"]
    sweep = subprocess.Popen(
        command, cwd=cluster.clone.path, env=outside_variables() | cluster.env, stdout=subprocess.PIPE, text=True
    )
    said, nodes = "", set()
    for line in sweep.stdout or ():
        said += line
        if found := re.match(r"\S+, (\w+): train@", line):
            nodes.add(found[1])
        if len(nodes) == 2:
            break
    subprocess.run(["docker", "kill", nodes.pop()], check=True, capture_output=True)
    said += sweep.communicate(timeout=600)[0]
    assert sweep.returncode == 0, said
    table = cluster.run("dvc", "exp", "show", "--csv").stdout
    names = [line.split(",")[0] or line.split(",")[1] for line in table.splitlines()[3:]]
    assert len(names) == 6, table
    assert len(re.findall(r"0\.\d+", table)) > 6, table
    assert said.count(": done on ") == 6, said
    mlflow.set_tracking_uri(f"http://127.0.0.1:{cluster.port}")
    for role, number in (("pipeline", 6), ("implementation", 12)):
        assert len(mlflow.search_runs(experiment_names=["seven-ways"], filter_string=f"tags.role = '{role}'")) == number
    assert "another.db" in cluster.compose("exec", "-T", "mlflow", "ls", "/mlflow").stdout
    # As a serial run leaves them: the first of the six, here.
    applied = re.search(r"(\S+): done on ", said)
    assert applied
    cluster.run("dvc", "exp", "apply", applied[1])
    serial = make_clone("numpy_arrays", "torch_loop")
    serial.write_params(cluster.clone.params())
    serial.run("dvc", "repro", "train@numpy_arrays", "train@torch_loop")
    assert serial.digests("models/*/weights*") == cluster.clone.digests("models/*/weights*")


@needs_engine
def test_a_checkout_that_cannot_be_written_or_is_no_repository(containers: Containers):
    done = containers.run(succeeds=False, options=("--user", "4321:4321"))
    assert f"the checkout belongs to uid {UID} and uid 4321 cannot write to it" in done.stderr
    git, away = containers.clone.path / ".git", containers.clone.path.parent / "git"
    git.rename(away)
    done = containers.run(succeeds=False)
    away.rename(git)
    assert "the checkout is no git repository" in done.stderr


@needs_engine
def test_gpu_where_there_is_none_says_what_is_missing(containers: Containers):
    subprocess.run(["docker", "tag", f"{PROJECT}-cpu", f"{PROJECT}-gpu"], check=True)  # it never gets to start
    done = containers.compose("run", "--rm", "-T", "gpu", "true", succeeds=False)
    subprocess.run(["docker", "rmi", f"{PROJECT}-gpu"], check=True, capture_output=True)
    assert "nvidia" in done.stderr.lower()


# The preflight, with programs that answer as a broken machine's would.

ANSWERS = {
    "docker": """case "$*" in
        info*Architecture*) echo "${ARCHITECTURE:-x86_64}" ;;
        info*) [[ -z ${NO_ENGINE:-} ]] ;;
        "compose version") [[ -z ${NO_COMPOSE:-} ]] ;;
        run*) echo "docker: Error: ${REFUSAL:-}" >&2; [[ -z ${REFUSAL:-} ]] ;;
    esac""",
    "nvidia-smi": 'echo "${DRIVER:-}"; [[ -n ${DRIVER:-} ]]',
}


@pytest.mark.parametrize(
    ("service", "machine", "sentence"),
    [
        ("cpu", {"NO_ENGINE": "1"}, "the Docker engine does not answer"),
        ("cpu", {"NO_COMPOSE": "1"}, "Docker has no Compose v2"),
        ("cpu", {"ARCHITECTURE": "aarch64"}, "the images are for x86-64 and this engine runs on aarch64"),
        ("cpu", {"TAKEN": "1"}, "is taken. Stop what is there, or choose another: MLFLOW_PORT=5001 make cpu"),
        ("cpu", {}, ""),
        ("gpu", {}, "no NVIDIA driver answers on this machine"),
        ("gpu", {"DRIVER": "470.82"}, "the NVIDIA driver is 470.82; CUDA 12 needs 525 or newer and CUDA 13 needs 580"),
        ("gpu", {"DRIVER": "550.54"}, "the NVIDIA driver is 550.54; torch's CUDA 13 needs 580 or newer"),
        (
            "gpu",
            {"DRIVER": "580.1", "REFUSAL": 'could not select device driver "nvidia"'},
            "Docker has no NVIDIA runtime",
        ),
        ("gpu", {"DRIVER": "580.1", "REFUSAL": "libnvidia-ml.so.1: cannot open"}, "finds no driver library"),
        ("gpu", {"DRIVER": "580.1", "REFUSAL": "something else"}, "with a GPU: docker: Error: something else"),
        ("gpu", {"DRIVER": "580.1"}, ""),
    ],
)
def test_preflight(tmp_path: Path, service: str, machine: dict[str, str], sentence: str):
    for name, answer in ANSWERS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if "TAKEN" not in machine:
            listener.close()
        done = subprocess.run(
            [REPOSITORY / "docker/preflight", service],
            cwd=REPOSITORY,
            env=outside_variables() | machine | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MLFLOW_PORT": str(port)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert sentence in done.stderr
    assert (done.returncode == 0) == (not sentence)
    assert len(done.stderr.splitlines()) == bool(sentence)
