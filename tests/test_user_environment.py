"""Users' shells, terminals and file systems: a run gives the same results, or a sentence with the reason."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import DVC, REPOSITORY, Clone, mounted, outside_variables
from running import ALIKE, NUMPY

pytestmark = pytest.mark.environments

SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root may mount, or become another user")


@pytest.fixture(scope="module")
def original(make_clone: Callable[..., Clone]) -> Clone:
    clone = make_clone(NUMPY, benchmark=True)
    (clone.path / ".venv").symlink_to(sys.prefix)  # for make
    (clone.path / ".git/info/exclude").write_text("/.venv\n")
    clone.run("dvc", "repro")
    clone.commit()
    return clone


@pytest.fixture
def clone(original: Clone, tmp_path: Path) -> Clone:
    path = tmp_path / "project"
    shutil.copytree(original.path, path, symlinks=True)
    return Clone(path)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Users' variables, by kind. Each leads to another NumPy, another PATH or another repository."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "numpy.py").write_text("raise SystemExit('another NumPy')\n")
    (folder / "profile").write_text("PATH=/nowhere\ncd /\n")
    profile = str(folder / "profile")
    return {
        "path": {"PYTHONPATH": str(folder)},
        "safe path": {"PYTHONSAFEPATH": "1"},
        "home": {"PYTHONHOME": "/nowhere", "PYTHONUSERBASE": str(folder)},
        "optimised": {"PYTHONOPTIMIZE": "2", "PYTHONWARNINGS": "error"},
        "shell": {"BASH_ENV": profile, "ENV": profile, "CDPATH": str(folder), "SHELLOPTS": "noexec"},
        "function": {"BASH_FUNC_python%%": "() { echo another Python; exit 1; }"},
        "git": {"GIT_DIR": "/nowhere", "GIT_WORK_TREE": "/", "GIT_INDEX_FILE": "/nowhere"},
        "not activated": {"PATH": SYSTEM_PATH},
    }


@pytest.fixture(scope="module")
def latin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A Latin-1 locale of this machine."""
    folder = tmp_path_factory.mktemp("locales")
    command = ["localedef", "-f", "ISO-8859-1", "-i", "en_US", str(folder / "en_US.ISO-8859-1")]
    if not shutil.which("localedef") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no locale can be made here")
    return {"LOCPATH": str(folder), "LC_ALL": "en_US.ISO-8859-1"}


KINDS = ["path", "safe path", "home", "optimised", "shell", "function", "git", "not activated"]


@pytest.mark.parametrize("kind", KINDS)
def test_shell_variables_do_not_change_a_stage(clone: Clone, foreign: dict[str, dict[str, str]], kind: str):
    before = (clone.path / "results/parity.json").read_bytes()
    done = clone.run("dvc", "repro", "-f", "-s", "compare", env=foreign[kind])
    assert "Running stage 'compare'" in done.stdout
    assert "Updating lock file" not in done.stdout
    assert (clone.path / "results/parity.json").read_bytes() == before


@pytest.mark.parametrize("kind", KINDS)
def test_shell_variables_do_not_reach_commands_of_make(clone: Clone, foreign: dict[str, dict[str, str]], kind: str):
    done = clone.run("make", "-s", "repro", "ARGS=-f -s compare", env=foreign[kind])
    assert "Running stage 'compare'" in done.stdout


def test_run_with_foreign_variables_and_a_latin_1_locale_gives_the_same_results(
    clone: Clone, foreign: dict[str, dict[str, str]], latin: dict[str, str]
):
    before = clone.digests(*ALIKE)
    everything = {key: value for kind in foreign.values() for key, value in kind.items()} | latin
    done = subprocess.run(
        [DVC, "repro", "-f"], cwd=clone.path, env=os.environ | everything, capture_output=True, check=False
    )
    output = done.stdout.decode("latin-1")
    assert done.returncode == 0, done.stderr
    assert "R\N{SUPERSCRIPT TWO}" in output  # which Latin-1 has
    assert "1.8762 ? " in output  # an arrow, which it lacks
    assert clone.digests(*ALIKE) == before
    report = (clone.path / "report.html").read_text(encoding="utf-8")
    assert "R\N{SUPERSCRIPT TWO}" in report
    assert "\N{MULTIPLICATION SIGN}" in report


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_terminal_without_a_character_shows_a_question_mark(clone: Clone, variables: dict[str, str]):
    def output(stage: str) -> bytes:
        command = [sys.executable, "-m", f"stages.{stage}"]
        environment = outside_variables() | variables
        return subprocess.run(command, cwd=clone.path, env=environment, capture_output=True, check=True).stdout

    assert b" ? " in output("compare")
    clone.set("benchmark.rounds", 3)
    for stage in ("environment", "benchmark"):
        output(stage)


def test_skipped_benchmark_prints_its_reason(clone: Clone):
    clone.set("benchmark.processes", 0)
    output = clone.run("dvc", "repro", "benchmark").stdout
    assert "ended after 0 processes: benchmark.processes is 0 in params.yaml" in output


def test_version_other_than_the_recorded_one_is_refused(clone: Clone):
    environment = json.loads((clone.path / "environment.json").read_text())
    environment["versions"]["numpy"] = "1.0"
    (clone.path / "environment.json").write_text(json.dumps(environment))
    before = clone.digests(*ALIKE)
    for stage in (["generate", "two_layer"], ["reference", "two_layer"], ["train", NUMPY], ["benchmark"]):
        done = clone.run(sys.executable, "-m", f"stages.{stage[0]}", *stage[1:], succeeds=False)
        assert "environment.json names numpy 1.0, but 2." in done.stderr
        assert "/numpy/__init__.py" in done.stderr
    assert clone.digests(*ALIKE) == before


def test_variable_that_changes_last_bits_is_recorded_and_reruns_training(clone: Clone):
    kernels = "Sandybridge" if os.environ.get("OPENBLAS_CORETYPE") == "Haswell" else "Haswell"
    ran = clone.run("dvc", "repro", env={"OPENBLAS_CORETYPE": kernels, "OMP_NUM_THREADS": "1"}).stdout
    assert f"Running stage 'train@{NUMPY}'" in ran
    before = os.environ.get("OPENBLAS_CORETYPE", "not set")
    assert f"so trainings run again: OPENBLAS_CORETYPE was {before}, is {kernels}\n" in ran
    for file in ("environment.json", f"results/{NUMPY}/timing.json"):
        variables = json.loads((clone.path / file).read_text())["variables"]
        assert variables["OPENBLAS_CORETYPE"] == kernels
        assert "OMP_NUM_THREADS" not in variables
    assert f"train@{NUMPY}" not in clone.stages_run("dvc", "repro")  # DVC's cache has that of before


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library that refuses flock and chmod, as some file systems do."""
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler")
    library = tmp_path_factory.mktemp("library") / "without.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, REPOSITORY / "tests/without.c", "-ldl"], check=True)
    return str(library)


def test_file_system_without_flock_gives_one_warning(clone: Clone, without: str):
    variables = {"LD_PRELOAD": without, "NO_FLOCK": str(clone.path)}
    before = clone.digests(*ALIKE)
    shutil.rmtree(clone.path / ".dvc/tmp")
    for _ in range(2):
        done = clone.run("dvc", "repro", "-f", f"train@{NUMPY}", env=variables)
        warning = "WARNING: .dvc/tmp/run.lock cannot be locked: No locks available. Start one run"
        assert done.stderr.count("WARNING") == done.stderr.count(warning) == 1
        (clone.path / ".dvc/tmp/lock").write_text("left by a killed DVC\n")
    done = clone.run(sys.executable, "-m", "commands", "track", env=variables)
    assert done.stderr.count("WARNING") == 1
    assert clone.digests(*ALIKE) == before


def test_file_system_without_chmod_gives_a_warning_with_the_remedy(clone: Clone, without: str, tmp_path: Path):
    variables = {"LD_PRELOAD": without, "NO_CHMOD": str(clone.path)}
    clone.run("rm", "-rf", ".dvc/cache", "dvc.lock")
    done = clone.run("dvc", "repro", "generate@two_layer", env=variables, succeeds=False)
    assert "WARNING: this file system refuses chmod: Operation not permitted." in done.stderr
    assert "`dvc cache dir --local FOLDER`" in done.stderr
    clone.run("dvc", "cache", "dir", "--local", str(tmp_path / "cache"))
    clone.run("dvc", "repro", "generate@two_layer", env=variables)


@ROOT
def test_read_only_checkout_gives_one_error(clone: Clone):
    with mounted("--bind", clone.path, clone.path):
        subprocess.run(["mount", "-o", "remount,bind,ro", clone.path], check=True)
        for command in (["dvc", "repro"], [sys.executable, "-m", "stages.environment"]):
            done = clone.run(*command, succeeds=False)
            assert done.stderr.startswith("ERROR: .dvc/tmp/run.lock cannot be written: Read-only file system.")
            assert done.stderr.count("\n") == 1


@pytest.fixture
def of_another_user(original: Clone) -> Iterator[Clone]:
    """A checkout of user 1234, in which root has run once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "project")
        shutil.copytree(original.path, path, symlinks=True)
        subprocess.run(["chown", "-R", "1234:1234", folder], check=True)
        yield Clone(path)


@ROOT
@pytest.mark.parametrize(("mode", "succeeds"), [(0o644, True), (0o600, False)])
def test_lock_file_of_another_user_must_be_readable(of_another_user: Clone, mode: int, succeeds: bool):
    lock = of_another_user.path / ".dvc/tmp/run.lock"
    os.chown(lock, 0, 0)
    lock.chmod(mode)
    user = ["setpriv", "--reuid", "1234", "--regid", "1234", "--clear-groups"]
    if subprocess.run([*user, "sh", "-c", f"{DVC} --version"], capture_output=True, check=False).returncode:
        pytest.skip("other users cannot run this Python")
    variables = {"HOME": str(of_another_user.path.parent), "DVC_SITE_CACHE_DIR": str(of_another_user.path / ".site")}
    done = of_another_user.run(*user, str(DVC), "repro", "-f", "-s", "compare", env=variables, succeeds=succeeds)
    if not succeeds:
        assert done.stderr.startswith("ERROR: .dvc/tmp/run.lock cannot be written: Permission denied.")
