"""`make setup`: it repeats nothing, says what a machine lacks, and installs by hash with the user's pip settings."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.skipif(Path("/opt/image.digest").exists(), reason="an image has its packages")
BASH = shutil.which("bash") or "bash"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY / "requirements", tmp_path / "requirements")
    return tmp_path


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with what the scripts call and no Python."""
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "cat", "cmp", "cut", "dirname", "env", "rm", "sha256sum", "uname"):
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    return tmp_path / "bin"


def setup(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [BASH, "requirements/setup.sh"]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def test_without_python_the_message_says_what_to_install(checkout: Path, tools: Path):
    done = setup(checkout, PATH=str(tools))
    assert done.returncode == 1
    assert "no Python was found (looked for python3.11, python3 and python)" in done.stderr
    assert "docker compose run --rm cpu" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_other_than_3_11_is_refused(checkout: Path, tools: Path):
    done = setup(checkout, PATH=str(tools), PYTHON="/bin/false")
    assert done.returncode == 1
    assert "PYTHON=/bin/false is not a Python 3.11" in done.stderr


@pytest.mark.skipif(Path(sys.prefix) != REPOSITORY / ".venv", reason="not run from the checkout's .venv")
def test_with_nothing_changed_nothing_is_installed(tools: Path):
    done = setup(REPOSITORY, PATH=str(tools))  # which could not install: there is no Python on its PATH
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def uv_checkout(checkout: Path) -> Path:
    if not (REPOSITORY / ".venv-uv/bin/uv").exists():
        pytest.skip("`make setup` has not run in this checkout")
    (checkout / ".venv-uv").symlink_to(REPOSITORY / ".venv-uv")
    return checkout


def run(checkout: Path, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A command in the checkout with these settings of pip and uv, and no others."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_", "SSL_"))}
    return subprocess.run(command, cwd=checkout, env=inherited | settings, capture_output=True, text=True, check=False)


def test_uv_gets_the_settings_of_pip(uv_checkout: Path):
    (uv_checkout / "pip.conf").write_text(
        "[global]\nindex-url = https://mirror.example/simple\ncert = /ca.crt\ntarget = /nowhere\ntimeout = 7\n"
        "extra-index-url =\n    https://one.example/\n    https://two.example/\n[install]\ntimeout = 9.5\n"
    )
    settings = {
        "PIP_CONFIG_FILE": "pip.conf",
        "PIP_USER": "1",
        "PIP_FIND_LINKS": "/wheels https://wheels.example/",
        "UV_TARGET": "/nowhere",
        "UV_HTTP_RETRIES": "5",
        "PIP_RETRIES": "2",
    }
    done = run(uv_checkout, BASH, "-c", "source requirements/uv.sh && env", **settings)
    variables = dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith(("UV_", "SSL_")))
    assert variables == {
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "UV_INDEX": "https://one.example/ https://two.example/",
        "UV_FIND_LINKS": "/wheels,https://wheels.example/",
        "UV_HTTP_TIMEOUT": "9",
        "UV_HTTP_RETRIES": "5",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_NO_CONFIG": "1",
        "UV_PYTHON_INSTALL_DIR": f"{uv_checkout}/.venv-uv/python",
        "UV_SYSTEM_CERTS": "1",
        "SSL_CERT_FILE": "/ca.crt",
    }


@pytest.mark.parametrize("damaged", [False, True])
def test_a_package_is_installed_by_its_hash_alone(uv_checkout: Path, damaged: bool):
    wheel = uv_checkout / "wheels/tiny-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes() + b"damage" * damaged).hexdigest()
    (uv_checkout / "requirements/build.txt").write_text(f"tiny==1.0 --hash=sha256:{digest}\n")
    settings = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheel.parent),
        "PIP_TARGET": "/nowhere",
        "UV_NO_VERIFY_HASHES": "1",
    }
    done = run(uv_checkout, "requirements/install.sh", "venv", UV_CACHE_DIR=str(uv_checkout / "cache"), **settings)
    assert ("Hash mismatch for `tiny==1.0`" in done.stderr) == damaged, done.stderr
    assert (done.returncode == 0) == (not damaged)
    assert (uv_checkout / "venv/lib/python3.11/site-packages/tiny.py").exists() == (not damaged)
