"""`make setup`: quick when there is nothing to do, and a sentence where there is no Python 3.11."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY / "requirements", tmp_path / "requirements")
    return tmp_path


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with what the script calls and no Python."""
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "cat", "cut", "dirname", "env", "sha256sum", "uname"):
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    return tmp_path / "bin"


def setup(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("bash") or "bash", "requirements/setup.sh"]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def test_without_python_it_says_what_to_do_instead(checkout: Path, tools: Path):
    done = setup(checkout, PATH=str(tools))
    assert done.returncode == 1
    assert "no Python 3.11 found" in done.stderr
    assert "docker compose run --rm cpu" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_that_is_no_3_11_is_refused(checkout: Path, tools: Path):
    done = setup(checkout, PATH=str(tools), PYTHON="/bin/false")
    assert done.returncode == 1
    assert "PYTHON=/bin/false is not a Python 3.11" in done.stderr


@pytest.mark.skipif(
    Path(sys.prefix) != REPOSITORY / ".venv", reason="not run from the checkout's .venv, as in a container"
)
def test_with_nothing_changed_it_takes_under_a_second():
    start = time.monotonic()
    subprocess.run([REPOSITORY / "requirements/setup.sh"], check=True)
    assert time.monotonic() - start < 1
