"""Images and compose.yaml: jobs in containers on small clones, and their runs read over HTTP."""

import copy
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

UID = 1234 if os.getuid() == 0 else os.getuid()  # as root, the test gives the clone to a uid that is in no passwd file
PROJECT = "seven-ways-test"
DEAD_PROXY = {
    "default": {"httpProxy": "http://192.0.2.1:9", "httpsProxy": "http://192.0.2.1:9", "noProxy": "a.example"}
}


class Containers:
    """A private clone whose commands run in containers, with a server and volume of their own, behind a dead proxy."""

    def __init__(self, clone: Clone, project: str = PROJECT) -> None:
        self.clone = clone
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.env = {"COMPOSE_PROJECT_NAME": project, "MLFLOW_PORT": str(self.port)}
        self.proxied = {"DOCKER_CONFIG": str(docker_configuration(clone.path.parent, proxies=DEAD_PROXY))}
        # Like most users' machines, the clone also has the host's environment, whose Python does not run in an image.
        host = clone.path / ".venv/bin/python"
        host.parent.mkdir(parents=True)
        host.write_text("#!/bin/false\n")
        host.chmod(0o755)
        subprocess.run(["chown", "-R", f"{UID}:{UID}", clone.path], check=True)
        subprocess.run(["chmod", "-R", "go-rwx", clone.path], check=True)
        # Files that are copied into images keep their modes; otherwise the images would be built again.
        subprocess.run(["chmod", "-R", "go+rX", clone.path / "requirements", clone.path / "docker"], check=True)

    def run(
        self, *command: str, succeeds: bool = True, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        return self.compose("run", "--rm", "-T", *options, "cpu", *command, succeeds=succeeds)

    def compose(self, *command: str, succeeds: bool = True) -> subprocess.CompletedProcess[str]:
        env = self.env | (self.proxied if command[0] != "build" else {})
        return self.clone.run("docker", "compose", *command, succeeds=succeeds, env=env)

    @contextmanager
    def training(self, steps: int, *options: str, terminal: int | None = None) -> Iterator[subprocess.Popen[str]]:
        """numpy_arrays during a training of `steps` steps in a container; `terminal` is its terminal."""
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
            env=outside_variables() | self.env | self.proxied,
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


def docker_configuration(folder: Path, **settings: object) -> Path:
    """The user's configuration of Docker's client with these settings added."""
    user, changed = Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker")), folder / "docker"
    changed.mkdir()
    for path in user.glob("*"):
        (changed / path.name).symlink_to(path)
    config = changed / "config.json"
    content = json.loads(config.read_text()) if config.exists() else {}
    config.unlink(missing_ok=True)
    config.write_text(json.dumps(content | settings))
    return changed


@pytest.fixture(scope="module")
def containers(make_clone: Callable[..., Clone]) -> Iterator[Containers]:
    """All seven on small params, run once by `docker compose run --rm cpu` with nothing built or started before."""
    containers = Containers(make_clone(*LESSONS, benchmark=True))
    containers.compose("down", "--volumes", "--timeout", "5")
    containers.compose("build", "cpu", "mlflow")  # `run` uses an existing image, even an old one
    output = containers.run().stdout
    assert f"http://127.0.0.1:{containers.port} shows the runs in MLflow." in output
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


def test_models_of_a_container_equal_those_of_the_host(containers: Containers, finished_pipeline: Clone):
    models = finished_pipeline.digests("models/**/*")
    assert len(models) == 2 * 7
    assert containers.clone.digests("models/**/*") == models


def test_second_container_run_runs_only_environment_and_track(containers: Containers):
    done = containers.run()
    stages = {line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")}
    assert stages == {"environment", "track"}
    assert f"MLflow shows the current results: http://127.0.0.1:{containers.port}" in done.stdout


def test_run_of_a_container_is_reproduced_in_a_container_and_on_the_host(containers: Containers, tmp_path: Path):
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


def test_labels_of_images_name_the_locked_versions(containers: Containers):
    assert containers.run("cat", "/opt/image.digest").stdout.startswith("sha256:")
    inspect = ["docker", "image", "inspect", "--format", '{{index .Config.Labels "seven-ways.versions"}}']
    locked = (REPOSITORY / "requirements/cpu.txt").read_text() + (REPOSITORY / "requirements/torch-cpu.txt").read_text()
    for service in ("cpu", "mlflow"):
        label = subprocess.run([*inspect, f"{PROJECT}-{service}"], capture_output=True, text=True, check=True).stdout
        assert [package for package in label.strip().split(", ") if package.replace(" ", "==") not in locked] == []


def test_image_contains_bytecode_and_no_tests_of_packages(containers: Containers):
    script = (
        "cd /opt/venv/lib/python3.11/site-packages; find . -name '*.py' | wc -l; find . -name '*.pyc' | wc -l; ls scipy"
    )
    sources, compiled, *folders = containers.run("bash", "-c", script).stdout.split()
    assert int(compiled) >= int(sources) - 10  # a few templates are no valid Python
    assert "stats" in folders
    assert "tests" not in folders


def test_job_has_the_uid_of_the_user_no_capabilities_and_a_read_only_root(containers: Containers):
    script = "id -u; grep -E 'Cap|NoNewPrivs' /proc/self/status; touch /probe /opt/probe 2>&1 || true"
    lines = containers.run("bash", "-c", script).stdout.splitlines()
    assert lines[0] == str(UID)
    assert [line.split()[1] for line in lines if line.startswith("Cap")] == ["0" * 16] * 5
    assert "NoNewPrivs:\t1" in lines
    assert sum("Read-only file system" in line for line in lines) == 2


def status(containers: Containers, host: str, **headers: str) -> int:
    """The HTTP status of a search by that Host header."""
    url = f"http://127.0.0.1:{containers.port}/api/2.0/mlflow/experiments/search"
    headers |= {"Host": host, "Content-Type": "application/json"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, b'{"max_results": 1}', headers)) as response:
            return response.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_server_answers_only_local_requests_with_local_host_names(containers: Containers):
    (binding,) = containers.compose("port", "mlflow", "5000").stdout.split()
    assert binding == f"127.0.0.1:{containers.port}"
    for name in ("localhost", "127.0.0.1", "[::1]"):
        assert status(containers, name) == status(containers, f"{name}:5000") == 200  # without a port: port 80
    for name in ("attacker.example", "localhost.attacker.example", "[::1].attacker.example:80"):
        assert status(containers, name) == 403


def test_env_file_sets_allowed_hosts_and_preflight_reads_it(containers: Containers):
    name, env = "box.example", containers.clone.path / ".env"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        env.write_text(f"MLFLOW_PORT={taken}\nCOMPOSE_PROJECT_NAME=another-name\n")
        script = ["env", "-u", "MLFLOW_PORT", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory"]
        script += ["GIT_CONFIG_VALUE_0=*", "docker/preflight", "cpu"]
        done = containers.clone.run(*script, succeeds=False)
        assert f"Port {taken} of 127.0.0.1, where the MLflow UI goes, is taken" in done.stderr
    env.write_text(
        f"MLFLOW_SERVER_ALLOWED_HOSTS={name},{name}:*\nMLFLOW_SERVER_CORS_ALLOWED_ORIGINS=http://{name}:8080\n"
    )
    try:
        containers.compose("up", "-d", "--wait", "mlflow")
        # As its UI sends it to a page of that name.
        assert (
            status(containers, f"{name}:8080", Origin=f"http://{name}:8080") == status(containers, "localhost") == 200
        )
        assert status(containers, "attacker.example") == 403
    finally:
        env.unlink()
        containers.compose("up", "-d", "--wait", "mlflow")


def test_clone_in_another_folder_has_its_own_project_images_and_volume(tmp_path: Path):
    names = set()
    for folder in ("first", "second"):
        clone = Clone(tmp_path / folder)
        clone.path.mkdir()
        (clone.path / "compose.yaml").write_bytes((REPOSITORY / "compose.yaml").read_bytes())
        assert json.loads(clone.run("docker", "compose", "config", "--format", "json").stdout)["name"] == folder
        arguments = ["--profile", "job", "--profile", "cluster", "config"]
        images = clone.run("docker", "compose", *arguments, "--images").stdout.split()
        assert {image.split("-")[0] for image in images} == {folder}
        names |= {clone.run("docker", "compose", *arguments, "--format", "json").stdout.count(f'"{folder}_mlflow"')}
    assert names == {1}


@pytest.mark.skipif(bool(browser.is_missing()), reason=f"no browser: {browser.is_missing()}")
def test_runs_page_shows_all_seven_runs_in_a_browser(containers: Containers):
    columns = ("parity", "held_out_loss", "step_microseconds", "worst_parity", "device")
    _, picture = browser.runs_page(f"http://127.0.0.1:{containers.port}", *LESSONS, *columns, "passed")
    assert picture.startswith(b"\x89PNG")


@pytest.fixture
def restored(containers: Containers) -> Iterator[Containers]:
    """A test may change it: afterwards params and results are restored."""
    params = containers.clone.params()
    yield containers
    containers.set_params(**params)
    containers.run()


def test_experiment_in_a_container_works_without_a_git_identity(restored: Containers):
    restored.run("dvc", "exp", "run", "-n", "slower", "-S", "train.learning_rate=0.02", "train@numpy_arrays")
    assert restored.clone.params()["train"]["learning_rate"] == 0.02
    assert "slower" in restored.run("dvc", "exp", "list", "--name-only").stdout


@pytest.mark.parametrize("stop", ["Ctrl-C", "docker stop"])
def test_stopped_job_ends_its_stage_and_keeps_the_last_results(restored: Containers, stop: str):
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


def test_lock_of_a_killed_container_does_not_block_the_next_run(restored: Containers):
    with restored.training(10**8, "--name", f"{PROJECT}-killed"):
        subprocess.run(["docker", "kill", f"{PROJECT}-killed"], check=True, capture_output=True)
    assert (restored.clone.path / ".dvc/tmp/rwlock").read_text() not in ("", "{}")
    restored.set_steps(30)
    assert "Waiting" not in restored.run().stderr


def test_second_container_waits_and_the_host_names_the_first(restored: Containers):
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
    cluster.compose("build", "cpu", "mlflow")
    yield cluster
    cluster.compose(*down)


@pytest.mark.timeout(900)
def test_sweep_on_two_workers_finishes_after_one_is_killed(cluster: Containers, make_clone: Callable[..., Clone]):
    cluster.run("dvc", "exp", "run", "--queue", "-S", "train.learning_rate=0.02,0.05,0.1", "-S", "seed=0,1")
    cluster.compose("--profile", "cluster", "up", "-d", "--scale", "worker=2")
    images = cluster.compose("--profile", "cluster", "images").stdout.split()
    assert {name for name in images if name.startswith(f"{PROJECT}-cluster-") and not re.search(r"\d$", name)} == {
        f"{PROJECT}-cluster-cpu",
        f"{PROJECT}-cluster-mlflow",
    }
    command = ["docker", "compose", "run", "--rm", "-T", "cpu", "make", "sweep"]
    log, nodes = "", set()
    environment = outside_variables() | cluster.env | cluster.proxied
    with subprocess.Popen(command, cwd=cluster.clone.path, env=environment, stdout=subprocess.PIPE, text=True) as sweep:
        for line in sweep.stdout or ():
            log += line
            if match := re.match(r"\S+, (\w+): train@", line):
                nodes.add(match[1])
            if len(nodes) == 2:
                break
        assert len(nodes) == 2, log
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
    # The weights of a serial run, here of the first of the six.
    applied = re.search(r"(\S+): done on ", log)
    assert applied
    cluster.run("dvc", "exp", "apply", applied[1])
    serial = make_clone("numpy_arrays", "torch_loop")
    serial.write_params(cluster.clone.params())
    serial.run("dvc", "repro", "train@numpy_arrays", "train@torch_loop")
    assert serial.digests("models/*/weights*") == cluster.clone.digests("models/*/weights*")


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The only ERROR of a refused job."""
    (line,) = [line for line in done.stderr.splitlines() if "ERROR" in line]
    assert line.startswith("ERROR: ")
    return line


def remedy(containers: Containers, message: str, command: str) -> subprocess.CompletedProcess[str]:
    """The shell commands in a message, with `command` as the command of the job."""
    remedy = re.search(r"(\w+=\$\(git [^;]*; )?docker compose run [^;]* cpu", message)
    assert remedy, message
    script = remedy[0].replace("--rm", "--rm -T") + f" {command}"
    trusting = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    return containers.clone.run("bash", "-c", script, env=containers.env | containers.proxied | trusting)


def elsewhere(containers: Containers, path: Path) -> Containers:
    """Jobs on another checkout, with the same images and server."""
    jobs = copy.copy(containers)
    jobs.clone = Clone(path)
    return jobs


def test_unwritable_or_unreadable_checkout_is_refused(containers: Containers):
    path = containers.clone.path
    try:
        path.chmod(0o755)
        subprocess.run(["chmod", "a+r", path / "dvc.yaml"], check=True)
        done = containers.run(succeeds=False, options=("--user", "4321:4321"))
        assert f"The checkout belongs to uid {UID} and uid 4321 cannot write to it" in sentence(done)
        (path / "dvc.yaml").chmod(0)  # as where SELinux denies
        assert f"uid {UID} has no permission to read the checkout" in sentence(containers.run(succeeds=False))
    finally:
        path.chmod(0o700)
        (path / "dvc.yaml").chmod(0o600)


def test_bind_mount_has_the_selinux_label(containers: Containers):
    container = containers.compose("run", "-d", "--no-deps", "cpu", "sleep", "60").stdout.strip()
    form = ["--format", "{{json .HostConfig.Binds}}", container]
    done = subprocess.run(["docker", "inspect", *form], capture_output=True, text=True, check=True)
    subprocess.run(["docker", "rm", "--force", container], capture_output=True, check=True)
    assert json.loads(done.stdout) == [f"{containers.clone.path}:/workspace:rw,z"]


def test_job_gets_the_variables_of_the_user_and_services_bypass_the_proxy(containers: Containers):
    settings = {
        f"MLFLOW_TRACKING_{name}": name.lower() for name in ("USERNAME", "PASSWORD", "TOKEN", "INSECURE_TLS")
    } | {"TF_ENABLE_ONEDNN_OPTS": "0"}
    containers.env |= settings
    try:
        lines = containers.run("env").stdout.splitlines()
    finally:
        containers.env = {key: value for key, value in containers.env.items() if key not in settings}
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    assert variables["http_proxy"] == DEAD_PROXY["default"]["httpProxy"]  # and all runs of this file were delivered
    assert variables["NO_PROXY"] == variables["no_proxy"]
    assert {"mlflow", "head", "localhost", "a.example"} <= set(variables["NO_PROXY"].split(","))
    assert settings.items() <= variables.items()


@pytest.mark.parametrize("kind", ["worktree", "submodule", "folder of a larger repository", "no repository"])
def test_checkout_with_its_repository_elsewhere_runs_with_the_printed_command(
    containers: Containers, make_clone: Callable[..., Clone], tmp_path: Path, kind: str
):
    git = ["git", "-c", "protocol.file.allow=always", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    outer, checkout = tmp_path / "outer", tmp_path / "outer/checkout"
    make_clone().path.rename(tmp_path / "repository")
    if kind == "worktree":
        subprocess.run(["git", "-C", tmp_path / "repository", "worktree", "add", "-q", checkout], check=True)
    elif kind == "submodule":
        subprocess.run(["git", "init", "-q", outer], check=True)
        subprocess.run(
            [*git, "submodule", "--quiet", "add", tmp_path / "repository", "checkout"], cwd=outer, check=True
        )
    else:
        shutil.copytree(tmp_path / "repository", checkout, ignore=shutil.ignore_patterns(".git"))
        if kind != "no repository":
            subprocess.run(["git", "init", "-q", outer], check=True)
            subprocess.run(["git", "add", "-A"], cwd=outer, check=True)
    if kind not in {"no repository", "worktree"}:
        subprocess.run([*git, "commit", "-qm", "start"], cwd=outer, check=True)
    subprocess.run(["chown", "-R", f"{UID}:{UID}", tmp_path], check=True)
    jobs = elsewhere(containers, checkout)
    message = sentence(jobs.run(succeeds=False))
    assert ("git init" in message) == (kind in ("folder of a larger repository", "no repository"))
    if kind != "no repository":
        done = remedy(jobs, message, "bash -c 'git status --short; dvc stage list --name-only; id -u'")
        lines = done.stdout.splitlines()
        assert (lines[0], lines[-1]) == (
            "environment",
            str(UID),
        )  # git sees no change, and DVC's results are up to date


def test_checkout_of_another_owner_gets_the_error_of_git_before_a_container_starts(containers: Containers):
    if os.getuid() != UID:
        done = containers.clone.run("docker/preflight", "cpu", succeeds=False, env=containers.env)
        assert "dubious ownership" in done.stderr
        assert "git init" not in done.stderr


@pytest.mark.parametrize("kind", ["link", "setting", "certificate"])
def test_path_outside_the_checkout_is_mounted_with_the_printed_command(
    containers: Containers, make_clone: Callable[..., Clone], kind: str
):
    clone = make_clone().path
    outside = clone.parent / "outside"
    outside.mkdir()
    jobs = elsewhere(containers, clone)
    if kind == "link":
        (clone / ".dvc/cache").symlink_to("../../outside")
    elif kind == "setting":
        (clone / ".dvc/config.local").write_text(
            f"[core]\n    dir = no\n[cache]\n    dir = {outside}\n['remote \"a\"']\n"
        )
    else:
        jobs.env = jobs.env | {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(outside)}
    subprocess.run(["chown", "-R", f"{UID}:{UID}", clone, outside], check=True)
    message = sentence(jobs.run(succeeds=False))
    assert "which is not in the container. Mount it" in message
    place = {"link": ".dvc/cache", "certificate": '"$MLFLOW_TRACKING_SERVER_CERT_PATH"'}.get(kind, outside)
    remedy(jobs, message, f"bash -c 'touch {place}/seen'")
    assert (outside / "seen").exists()


def test_absolute_cache_links_work_with_the_printed_command(containers: Containers, make_clone: Callable[..., Clone]):
    clone = make_clone().path
    cached = clone / ".dvc/cache/files/md5/ab/cdef"
    cached.parent.mkdir(parents=True)
    cached.write_text("cached")
    (clone / "data").mkdir()
    (clone / "data/x").symlink_to(cached)
    subprocess.run(["chown", "-R", f"{UID}:{UID}", clone], check=True)
    jobs = elsewhere(containers, clone)
    message = sentence(jobs.run(succeeds=False))
    assert "./data/x leads to DVC's cache by the checkout's path" in message
    assert remedy(jobs, message, "cat data/x").stdout == "cached"
    (clone / "data/x").unlink()
    (clone / ".dvc/config.local").write_text("[cache]\n    type = reflink,symlink\n")
    assert sentence(jobs.run(succeeds=False)).endswith(message.partition("cache by")[2])


def test_image_of_other_requirements_gives_one_warning(containers: Containers, make_clone: Callable[..., Clone]):
    clone = make_clone().path
    (clone / "requirements/cpu.txt").write_text("# newer\n")
    subprocess.run(["chown", "-R", f"{UID}:{UID}", clone], check=True)
    warning = "WARNING: The image was built from other requirements than the checkout has: cpu.txt. Build it again: "
    assert f"{warning}docker compose build cpu\n" in elsewhere(containers, clone).run("true").stderr
    assert "WARNING" not in containers.run("true").stderr


def test_make_in_a_container_installs_nothing_into_the_checkout(containers: Containers):
    path = containers.clone.path
    before = {file: file.read_bytes() for file in path.glob(".venv*/**/*") if file.is_file()}
    assert "MLflow shows" in containers.run("make", "repro").stdout
    export = sentence(containers.run("make", "export", "RUN=1a", succeeds=False))
    assert "needs the packages of requirements/export.txt, which no image has. Run it on the host" in export
    ui = sentence(containers.run("make", "ui", succeeds=False))
    assert ui.endswith(f"Open its page: http://127.0.0.1:{containers.port}")
    assert {file: file.read_bytes() for file in path.glob(".venv*/**/*") if file.is_file()} == before


def test_gpu_service_without_a_gpu_names_nvidia_in_the_error(containers: Containers):
    subprocess.run(["docker", "tag", f"{PROJECT}-cpu", f"{PROJECT}-gpu"], check=True)  # it never starts
    done = containers.compose("run", "--rm", "-T", "gpu", "true", succeeds=False)
    subprocess.run(["docker", "rmi", f"{PROJECT}-gpu"], check=True, capture_output=True)
    assert "nvidia" in done.stderr.lower()
