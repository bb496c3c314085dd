"""What an image and compose.yaml can change: jobs in containers on small clones, and their runs read over http."""

import json
import os
import pty
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import browser
import mlflow
import pytest
from conftest import LESSONS, REPOSITORY, Clone, outside_variables
from mlflow.entities import Run

ENGINE = subprocess.run(["bash", "-c", "docker compose ls"], capture_output=True, text=True, check=False)
pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(ENGINE.returncode != 0, reason=f"no Docker engine with Compose v2: {ENGINE.stderr.strip()}"),
    pytest.mark.filterwarnings("ignore:The ``noload``", "ignore:.*Any type hint is inferred"),
]

UID = 1234 if os.getuid() == 0 else os.getuid()  # as root the clone is given away, to a uid that no passwd file knows
PROJECT = "seven-ways-test"


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

    @contextmanager
    def training(self, steps: int, *options: str, terminal: int | None = None) -> Iterator[subprocess.Popen[str]]:
        """numpy_arrays in the middle of its training in a container, for so many steps; `terminal` is its terminal."""
        self.set_steps(steps)
        process = self.start(*options, terminal=terminal)
        deadline = time.monotonic() + 60
        while not self.is_training():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "the training did not start"
            time.sleep(0.2)
        yield process
        process.communicate(timeout=300)

    def start(self, *options: str, terminal: int | None = None) -> subprocess.Popen[str]:
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

    def is_training(self) -> bool:
        for container in self.compose("ps", "--all", "--quiet", "--status", "running").stdout.split():
            top = subprocess.run(["docker", "top", container], capture_output=True, text=True, check=False).stdout
            if "stages.train numpy_arrays" in top:
                time.sleep(1)  # Python itself has started
                return True
        return False

    def set_steps(self, steps: int) -> None:
        self.clone.set("problems.two_layer.train.steps", steps)
        os.chown(self.clone.path / "params.yaml", UID, UID)

    def runs(self) -> dict[str, Run]:
        mlflow.set_tracking_uri(f"http://127.0.0.1:{self.port}")
        query = "tags.role = 'implementation'"
        runs = mlflow.search_runs(experiment_names=["seven-ways"], filter_string=query, output_format="list")
        return {str(run.info.run_name): run for run in runs}  # pyright: ignore[reportAttributeAccessIssue]

    def set_params(self, **changes: object) -> None:
        self.clone.write_params(self.clone.params() | changes)
        os.chown(self.clone.path / "params.yaml", UID, UID)


@pytest.fixture(scope="module")
def containers(make_clone: Callable[..., Clone]) -> Iterator[Containers]:
    """All seven on small params, run once by `docker compose run --rm cpu` with nothing built or started before."""
    containers = Containers(make_clone(*LESSONS, benchmark=True))
    containers.compose("down", "--volumes", "--timeout", "5")
    containers.compose("build", "cpu", "mlflow")  # `run` takes an image that is there, even an old one
    containers.run()
    yield containers
    containers.compose("down", "--volumes", "--timeout", "5")


def test_results_belong_to_the_user_and_runs_are_on_the_server(containers: Containers):
    comparison = json.loads((containers.clone.path / "results/parity.json").read_text())
    assert comparison["passed"]
    runs = containers.runs()
    assert runs.keys() == comparison["implementations"].keys() == LESSONS.keys()
    for run in runs.values():
        assert run.info.status == "FINISHED"
        assert run.data.tags["device"] == "cpu"
        assert run.data.tags["image.digest"].startswith("sha256:")
        assert run.data.metrics["step_microseconds"] > 0
    assert [path for path in containers.clone.path.rglob("*") if path.lstat().st_uid != UID] == []


def test_models_are_bitwise_those_of_the_host(containers: Containers, finished_pipeline: Clone):
    models = finished_pipeline.digests("models/**/*")
    assert len(models) == 2 * 7
    assert containers.clone.digests("models/**/*") == models


def test_a_second_run_has_nothing_to_do(containers: Containers):
    done = containers.run()
    stages = {line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")}
    assert stages == {"environment", "track"}
    assert f"MLflow shows the current results: http://127.0.0.1:{containers.port}" in done.stdout


def test_a_containers_run_is_reproduced_in_a_container_and_on_the_host(containers: Containers, tmp_path: Path):
    run_id = containers.runs()["numpy_arrays"].info.run_id
    assert "bitwise identical" in containers.run("make", "reproduce", f"RUN={run_id}").stdout
    (tmp_path / "gitconfig").write_text("[safe]\ndirectory = *\n")  # the checkout is another user's
    trusting = {"GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig")}
    containers.clone.run("git", "clone", "-q", str(containers.clone.path), str(tmp_path / "host"), env=trusting)
    done = Clone(tmp_path / "host").run(
        *[sys.executable, "-m", "commands", "reproduce", run_id[:12]],
        env={"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{containers.port}"},
    )
    assert "bitwise identical" in done.stdout


def test_the_images_name_the_locked_versions(containers: Containers):
    assert containers.run("cat", "/opt/image.digest").stdout.startswith("sha256:")
    inspect = ["docker", "image", "inspect", "--format", '{{index .Config.Labels "seven-ways.versions"}}']
    locked = (REPOSITORY / "requirements/cpu.txt").read_text() + (REPOSITORY / "requirements/torch-cpu.txt").read_text()
    for service in ("cpu", "mlflow"):
        label = subprocess.run([*inspect, f"{PROJECT}-{service}"], capture_output=True, text=True, check=True).stdout
        assert [package for package in label.strip().split(", ") if package.replace(" ", "==") not in locked] == []


def test_an_image_holds_all_its_bytecode_and_no_test_of_a_package(containers: Containers):
    script = (
        "cd /opt/venv/lib/python3.11/site-packages; find . -name '*.py' | wc -l; find . -name '*.pyc' | wc -l; ls scipy"
    )
    sources, compiled, *folders = containers.run("bash", "-c", script).stdout.split()
    assert int(compiled) >= int(sources) - 10  # a few templates are no valid Python
    assert "stats" in folders
    assert "tests" not in folders


def test_a_job_has_the_users_uid_no_capability_and_a_read_only_root(containers: Containers):
    script = "id -u; grep -E 'Cap|NoNewPrivs' /proc/self/status; touch /probe /opt/probe 2>&1 || true"
    lines = containers.run("bash", "-c", script).stdout.splitlines()
    assert lines[0] == str(UID)
    assert [line.split()[1] for line in lines if line.startswith("Cap")] == ["0" * 16] * 5
    assert "NoNewPrivs:\t1" in lines
    assert sum("Read-only file system" in line for line in lines) == 2


def test_the_server_answers_this_machine_alone_under_its_own_names(containers: Containers):
    (binding,) = containers.compose("port", "mlflow", "5000").stdout.split()
    assert binding == f"127.0.0.1:{containers.port}"
    url = f"http://127.0.0.1:{containers.port}/api/2.0/mlflow/experiments/search?max_results=1"
    assert urllib.request.urlopen(url).status == 200
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(urllib.request.Request(url, headers={"Host": "attacker.example"}))
    assert error.value.code == 403
    error.value.close()


@pytest.mark.skipif(bool(browser.is_missing()), reason=f"no browser: {browser.is_missing()}")
def test_the_runs_page_in_a_real_browser_shows_the_seven(containers: Containers):
    # Beside other tests the benchmark may not be trusted, and times_matrix_products is no metric then, so no column.
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


def test_an_experiment_in_a_checkout_without_a_git_identity(restored: Containers):
    restored.run("dvc", "exp", "run", "-n", "slower", "-S", "train.learning_rate=0.02", "train@numpy_arrays")
    assert restored.clone.params()["train"]["learning_rate"] == 0.02
    assert "slower" in restored.run("dvc", "exp", "list", "--name-only").stdout


@pytest.mark.parametrize("stop", ["Ctrl-C", "docker stop"])
def test_a_stopped_job_ends_its_stage_and_keeps_the_last_results(restored: Containers, stop: str):
    before = restored.clone.digests("models/**/*", "results/*/[!t]*")
    keyboard, terminal = pty.openpty()
    with restored.training(10**8, "--name", f"{PROJECT}-stopped", terminal=terminal) as process:
        if stop == "Ctrl-C":
            os.write(keyboard, b"\x03")
        else:
            subprocess.run(["docker", "stop", f"{PROJECT}-stopped"], check=True, capture_output=True)
        assert process.wait(timeout=60) not in (0, 137)  # 137: Docker had to kill it
    os.close(keyboard)
    os.close(terminal)
    assert not restored.is_training()
    assert restored.clone.digests("models/**/*", "results/*/[!t]*") == before


def test_a_lock_left_by_a_killed_container_blocks_nobody(restored: Containers):
    with restored.training(10**8, "--name", f"{PROJECT}-killed"):
        subprocess.run(["docker", "kill", f"{PROJECT}-killed"], check=True, capture_output=True)
    assert (restored.clone.path / ".dvc/tmp/rwlock").read_text() not in ("", "{}")
    restored.set_steps(30)
    assert "Waiting" not in restored.run().stderr


def test_a_second_container_waits_and_the_host_names_the_first(restored: Containers):
    with restored.training(1_000_000) as first:
        done = restored.clone.run(sys.executable, "-m", "stages.train", "numpy_arrays", succeeds=False)
        assert "`dvc repro" in done.stderr
        assert "is using this checkout. Wait until it has ended" in done.stderr
        output, errors = restored.start().communicate(timeout=300)
        assert first.poll() == 0, "the second went first"
    assert "Waiting until `dvc repro` in container " in errors
    assert "Running stage 'train@" not in output


@pytest.fixture
def cluster(make_clone: Callable[..., Clone]) -> Iterator[Containers]:
    """Two lessons, committed, for a cluster of two workers."""
    clone = make_clone("numpy_arrays", "torch_loop")
    clone.commit()
    cluster = Containers(clone, f"{PROJECT}-cluster")
    cluster.env["MLFLOW_BACKEND_STORE_URI"] = "sqlite:////mlflow/another.db"
    down = ("--profile", "cluster", "down", "--volumes", "--timeout", "5")
    cluster.compose(*down)
    cluster.compose("build", "cpu", "mlflow", "head", "worker")
    yield cluster
    cluster.compose(*down)


@pytest.mark.timeout(900)
def test_a_sweep_on_two_workers_finishes_though_one_is_killed(cluster: Containers, make_clone: Callable[..., Clone]):
    cluster.run("dvc", "exp", "run", "--queue", "-S", "train.learning_rate=0.02,0.05,0.1", "-S", "seed=0,1")
    cluster.compose("--profile", "cluster", "up", "-d", "--scale", "worker=2")
    command = ["docker", "compose", "run", "--rm", "-T", "cpu", "make", "sweep"]
    sweep = subprocess.Popen(
        command, cwd=cluster.clone.path, env=outside_variables() | cluster.env, stdout=subprocess.PIPE, text=True
    )
    log, nodes = "", set()
    for line in sweep.stdout or ():
        log += line
        if match := re.match(r"\S+, (\w+): train@", line):
            nodes.add(match[1])
        if len(nodes) == 2:
            break
    subprocess.run(["docker", "kill", nodes.pop()], check=True, capture_output=True)
    log += sweep.communicate(timeout=600)[0]
    assert sweep.returncode == 0, log
    table = cluster.run("dvc", "exp", "show", "--csv").stdout
    names = [line.split(",")[0] or line.split(",")[1] for line in table.splitlines()[3:]]
    assert len(names) == 6, table
    assert len(re.findall(r"0\.\d+", table)) > 6, table
    assert log.count(": done on ") == 6, log
    mlflow.set_tracking_uri(f"http://127.0.0.1:{cluster.port}")
    for role, number in (("pipeline", 6), ("implementation", 12)):
        assert len(mlflow.search_runs(experiment_names=["seven-ways"], filter_string=f"tags.role = '{role}'")) == number
    assert "another.db" in cluster.compose("exec", "-T", "mlflow", "ls", "/mlflow").stdout
    # As a serial run leaves them: the first of the six, here.
    applied = re.search(r"(\S+): done on ", log)
    assert applied
    cluster.run("dvc", "exp", "apply", applied[1])
    serial = make_clone("numpy_arrays", "torch_loop")
    serial.write_params(cluster.clone.params())
    serial.run("dvc", "repro", "train@numpy_arrays", "train@torch_loop")
    assert serial.digests("models/*/weights*") == cluster.clone.digests("models/*/weights*")


def test_a_checkout_that_is_not_writable_or_no_repository_is_refused(containers: Containers):
    done = containers.run(succeeds=False, options=("--user", "4321:4321"))
    assert f"the checkout belongs to uid {UID} and uid 4321 cannot write to it" in done.stderr
    git, away = containers.clone.path / ".git", containers.clone.path.parent / "git"
    git.rename(away)
    done = containers.run(succeeds=False)
    away.rename(git)
    assert "the checkout is no git repository" in done.stderr


def test_gpu_where_there_is_none_says_what_is_missing(containers: Containers):
    subprocess.run(["docker", "tag", f"{PROJECT}-cpu", f"{PROJECT}-gpu"], check=True)  # it never gets to start
    done = containers.compose("run", "--rm", "-T", "gpu", "true", succeeds=False)
    subprocess.run(["docker", "rmi", f"{PROJECT}-gpu"], check=True, capture_output=True)
    assert "nvidia" in done.stderr.lower()
