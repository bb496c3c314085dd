"""Sweeps and seeds in users' environments: other clusters, folders, caches, settings of git, and quotas."""

import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from conftest import Clone, outside_variables
from running import NUMPY, end_started, output_until, start_command  # noqa: F401 (a fixture)
from test_sweep import WEIGHTS, WHOLE, _fresh_nodes, cluster, experiments, logged, queue, sweep  # noqa: F401 (a fixture)

from pipeline.errors import UserError
from pipeline.running.locks import acquire, write_holder
from pipeline.running.machine import available_cpus
from pipeline.sweep import cluster as ray_cluster
from pipeline.sweep import node, outbox
from pipeline.sweep.queue import Experiment

pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore:The ``noload``")]
DEAD_PROXY = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


@contextmanager
def server(answer: bytes | None) -> Iterator[str]:
    """The address of a server that gives every client this answer, or none."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError), ExitStack() as connections:
                while True:
                    connection = connections.enter_context(listener.accept()[0])
                    connection.sendall(answer or b"")

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("address", ["abc", "host", "auto", "ray://host:10001", "host:", "host:99999", "a b:1", "::1"])
def test_ray_address_without_a_head_gives_an_error(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    message = rf"^RAY_ADDRESS={re.escape(address)} names no head of a cluster\. Set it to HOST:PORT"
    with pytest.raises(UserError, match=message), ray_cluster.cluster(1):
        pass


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "it did not answer within 1 s"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "the program at this address is not a Ray cluster"),
    ],
    ids=["silent", "web server"],
)
def test_ray_address_of_another_server_gives_an_error(
    answer: bytes | None, reason: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray_cluster, "ANSWERS_WITHIN", 1)
    with server(answer) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with (
            pytest.raises(
                UserError, match=rf"^No Ray cluster answers at RAY_ADDRESS={address} \({reason}\)\. Everything"
            ),
            ray_cluster.cluster(1),
        ):
            pass


def test_ray_address_without_a_server_gives_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(UserError, match=r"\(Connection refused\)"), ray_cluster.cluster(1):
        pass


@pytest.mark.skipif(not os.access("/sys/fs/cgroup/cpu/cgroup.procs", os.W_OK), reason="needs root and cgroup version 1")
def test_quota_of_an_outer_cgroup_limits_the_cpus():
    outer = Path("/sys/fs/cgroup/cpu", f"seven-ways-{os.getpid()}")
    inner = outer / "inner"
    before = available_cpus()
    try:
        inner.mkdir(parents=True)
        (outer / "cpu.cfs_quota_us").write_text("150000")
        script = "from pipeline.running.machine import available_cpus; print(available_cpus())"
        entered = f"echo $$ >{inner}/cgroup.procs && exec {sys.executable} -c '{script}'"
        done = subprocess.run(["bash", "-c", entered], capture_output=True, text=True, check=True)
    finally:
        inner.rmdir()
        outer.rmdir()
    assert (done.stdout, before) == ("1\n", available_cpus())


def test_experiments_with_benchmarks_do_not_run_at_the_same_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    waiting, began = threading.Event(), threading.Event()

    def second() -> None:
        with node._cpus(0, alone=True, waits=waiting.set):
            began.set()

    with node._cpus(0, alone=True, waits=lambda: pytest.fail("nothing else runs")):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        assert not began.wait(0.2)
    thread.join(10)
    assert began.is_set()


def git(folder: Path, *arguments: str) -> str:
    user = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    return subprocess.run(
        ["git", *user, *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_experiment_with_files_changed_after_queueing_is_refused(tmp_path: Path):
    git(tmp_path, "init", "-q")
    revisions = []
    for number, lock in ((1, "before"), (1, "after"), (2, "after")):
        (tmp_path / "params.yaml").write_text(f"seed: {number}\n")
        (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": {"train": {"outs": []}}, "schema": lock}))
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-qm", "x", "--allow-empty")
        revisions.append(git(tmp_path, "rev-parse", "HEAD"))
    baseline, same, other = revisions
    experiment = Experiment("x", baseline, baseline)
    git(tmp_path, "update-ref", experiment.ref, same)
    node._check_tree(experiment, tmp_path)
    git(tmp_path, "update-ref", experiment.ref, other)
    with pytest.raises(UserError, match=r"DVC ran other content than was queued, in params\.yaml\."):
        node._check_tree(experiment, tmp_path)


@pytest.fixture
def clone(make_clone: Callable[..., Clone]) -> Clone:
    """One implementation with a benchmark, committed."""
    clone = make_clone(NUMPY, benchmark=True)
    clone.commit()
    return clone


@pytest.mark.environments
def test_second_sweep_waits_for_the_first(clone: Clone):
    lock = clone.path / ".dvc/tmp/sweep.lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("a+") as held:
        acquire(held)
        write_holder(held, "make sweep")
        process = start_command(clone, "sweep")
        assert re.search(r"^Waiting until `make sweep` (on|in container) ", output_until(process, "Waiting"))
    assert "Nothing is queued" in process.communicate(timeout=60)[0]


@pytest.mark.environments
def test_experiment_without_its_new_lesson_is_not_started(clone: Clone):
    (clone.path / "pipeline/lessons/two_layer/numpy_new.py").write_text("")  # git does not know it
    clone.set("implementations.numpy_new", "two_layer")
    queue(clone, "seed=1", name="new")
    output = sweep(clone, succeeds=False)
    sentence = (
        r"^ERROR: new was queued without pipeline/lessons/two_layer/numpy_new\.py, .* Everything stays queued\. git add"
    )
    assert re.search(sentence, output, re.MULTILINE), output
    assert clone.run("dvc", "queue", "status").stdout.count("Queued") == 1


@pytest.mark.environments
def test_entry_that_cannot_be_logged_is_named_and_the_next_is_logged(clone: Clone, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(clone.path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    head = git(clone.path, "rev-parse", "HEAD")
    damaged = Experiment("damaged", head, head)
    git(clone.path, "update-ref", damaged.ref, head)  # it has no results
    outbox.add(damaged.ref)
    outbox.add(damaged.ref.replace("damaged", "failed"), "it diverged")
    script = "from pipeline.sweep.outbox import log_all; print(log_all())"
    done = clone.run(sys.executable, "-c", script)
    assert done.stdout.endswith("False\n")
    (warning,) = re.findall("^WARNING: .*", done.stderr, re.MULTILINE)
    assert re.match(
        r"WARNING: experiment damaged was not logged: .+ rm mlruns/outbox/\S+/damaged discards it\.$", warning
    )
    assert logged(clone, "failure") == ["failed"]
    assert [path.name for path in outbox.OUTBOX.rglob("*") if path.is_file()] == ["damaged"]


@pytest.mark.environments
def test_sweep_works_in_a_subfolder_of_a_shallow_clone_with_an_external_cache(clone: Clone, tmp_path: Path):
    """Also behind a dead proxy and with a long TMPDIR; one experiment diverges, and the benchmark has the user's
    settings."""
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "-q")
    (outer / "README").write_text("a larger repository")
    git(outer, "add", "-A")
    git(outer, "commit", "-qm", "first")
    clone.path.rename(outer / "project")
    subprocess.run(["rm", "-rf", outer / "project/.git"], check=True)
    git(outer, "add", "-A")
    git(outer, "commit", "-qm", "second")
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{outer}", "shallow")
    shallow = Clone(tmp_path / "shallow/project")
    git(shallow.path, "config", "user.name", "test")
    git(shallow.path, "config", "user.email", "test@localhost")
    shallow.run("dvc", "cache", "dir", "--local", str(tmp_path / "cache"))
    long = tmp_path / ("long" * 20)
    long.mkdir()
    queue(shallow, "seed=1", name="one")
    queue(shallow, "train.learning_rate=1e9", name="diverging")
    output = sweep(shallow, "--share", "1", succeeds=False, env=DEAD_PROXY | {"TMPDIR": str(long)})
    assert re.search(
        r"^2 experiments on this machine, \d+ CPUs: 1 CPU each, without a benchmark$", output, re.MULTILINE
    ), output
    assert not re.search("token|/dev/shm|dashboard|Traceback|None", output, re.IGNORECASE), output
    failed = r"diverging: FAILED on \S+: .* the loss is inf at step .* \((.dvc/tmp/sweep/diverging.log)\)"
    assert (shallow.path / (re.search(failed, output) or [""])[1]).stat().st_size
    assert "\n  dvc exp run --queue -n diverging -S train.learning_rate=1000000000.0\n" in output
    assert "No experiment tasks in the queue" in shallow.run("dvc", "queue", "status").stdout
    assert list(experiments(shallow)) == ["one"] == logged(shallow)

    params = shallow.params()
    shallow.run("dvc", "exp", "apply", "one")
    assert (shallow.path / WEIGHTS).stat().st_size
    assert shallow.params() == params | {"seed": 1}  # SHARE chose stages
    page = (shallow.path / "report.html").read_text()
    assert "There was no benchmark: it was left out (make sweep SHARE=… does" in page
    status = yaml.safe_load(shallow.run("dvc", "status", "--json", "benchmark").stdout)
    assert "benchmark" in status, "the next dvc repro would not measure it"


@pytest.mark.environments
@pytest.mark.skipif(os.getuid() != 0, reason="only root may hide the processes of the cluster")
def test_sweep_on_a_cluster_of_two_nodes_imports_all_results(clone: Clone):
    """As from a container, which sees no node of the cluster. Results that cannot be pushed arrive, and a benchmark is
    shared."""
    clone.run("dvc", "remote", "add", "-d", "nowhere", "/proc/nowhere")
    clone.set("benchmark.processes", 0)
    clone.commit()
    queue(clone, "seed=1,2", name="whole")
    with cluster(WHOLE, WHOLE, port=6489) as (environment, _):
        hidden = ["unshare", "--pid", "--fork", "--mount-proc"]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            [*hidden, sys.executable, "-m", "commands", "sweep"],
            cwd=clone.path,
            env=outside_variables() | {"PATH": path} | DEAD_PROXY | environment,
            capture_output=True,
            text=True,
            check=False,
        )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    address = re.escape(environment["RAY_ADDRESS"])
    place = rf"^2 experiments on the cluster at {address}, 2 nodes with 2 CPUs: one at a time on a node$"
    assert re.search(place, output, re.MULTILINE), output
    assert "2 nodes are on one machine: timings are marked as shared" in output
    warnings = re.findall(r"WARNING: (\S+): dvc push failed \((.+)\)\. The results came through Ray instead", output)
    assert sorted(name for name, _ in warnings) == ["whole-1", "whole-2"], output
    assert "nowhere" in warnings[0][1]
    clone.run("dvc", "exp", "apply", "whole-1")
    assert ', shared"' in (clone.path / f"results/{NUMPY}/timing.json").read_text()


@pytest.mark.environments
def test_seed_is_finished_only_with_cached_results_of_the_current_code(clone: Clone):
    """Three seeds of which the second fails; then an edited lesson, a new one, and an empty cache."""
    train = "stages/train.py"
    clone.edit(train, "if __name__", "from pipeline.params import load_params\n\nif __name__")
    clone.edit(
        train,
        'if __name__ == "__main__":\n',
        'if __name__ == "__main__":\n    assert load_params().seed != 1, "it diverged"\n',
    )
    clone.commit()

    def enqueued(succeeds: bool = True) -> str:
        """The output of `make seeds N=3` on its queue, which is empty afterwards."""
        script = (
            "from pipeline.errors import *\nwith shown_to_the_user():\n from pipeline.sweep.seeds import *; enqueue(3)"
        )
        done = clone.run(sys.executable, "-c", script, succeeds=succeeds)
        clone.run("dvc", "queue", "remove", "--queued", succeeds=None)
        return done.stdout + done.stderr

    output = clone.run(sys.executable, "-m", "commands", "seeds", "3", succeeds=False).stdout
    assert re.search(rf"^ *{NUMPY} +2 of 3 .*\d\.\d+ \(", output, re.MULTILINE), output
    assert "No result, and so not passed: seed 1, whose experiment failed." in output
    assert enqueued().startswith("1 of 3 seeds are queued")

    new = clone.path / "pipeline/lessons/two_layer/numpy_new.py"
    new.write_text("")
    assert "ERROR: Git does not know pipeline/lessons/two_layer/numpy_new.py" in enqueued(succeeds=False)
    new.unlink()
    lesson = f"pipeline/lessons/two_layer/{NUMPY}.py"
    clone.edit(lesson, "import", "# another code\nimport")
    assert enqueued().startswith("3 of 3 seeds are queued")
    clone.run("git", "checkout", lesson)
    assert enqueued().startswith("1 of 3 seeds are queued")

    table = (clone.path / "results/seeds.csv").read_text()
    clone.run("dvc", "gc", "-w", "-f")
    assert enqueued().startswith("3 of 3 seeds are queued")
    script = "from pipeline.sweep.seeds import collect; print(collect(3))"
    assert clone.run(sys.executable, "-c", script).stdout == "0\n"
    assert (clone.path / "results/seeds.csv").read_text() == table
