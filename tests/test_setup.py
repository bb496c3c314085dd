"""`make setup` repeats nothing, names what a machine lacks, and installs by hash with the user's pip settings."""

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
    """A PATH with the programs that the scripts call, and no Python."""
    (tmp_path / "bin").mkdir()
    for tool in (
        "bash",
        "cat",
        "cmp",
        "comm",
        "cut",
        "dirname",
        "env",
        "grep",
        "head",
        "ls",
        "rm",
        "sha256sum",
        "sort",
        "tr",
        "uname",
    ):
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    return tmp_path / "bin"


def setup(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [BASH, "requirements/setup.sh"]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def test_missing_python_is_reported_with_the_remedy(checkout: Path, tools: Path):
    done = setup(checkout, PATH=str(tools))
    assert done.returncode == 1
    assert "no Python was found (looked for python3.11, python3 and python)" in done.stderr
    assert "docker compose run --rm cpu" in done.stderr
    assert not (checkout / ".venv").exists()


def test_python_other_than_3_11_is_refused(checkout: Path, tools: Path):
    done = setup(checkout, PATH=str(tools), PYTHON="/bin/false")
    assert done.returncode == 1
    assert "PYTHON=/bin/false is not a Python 3.11" in done.stderr


@pytest.mark.skipif(Path(sys.prefix) != REPOSITORY / ".venv", reason="not run from the checkout's .venv")
def test_unchanged_checkout_installs_nothing(tools: Path):
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


def test_settings_of_pip_are_passed_to_uv(uv_checkout: Path):
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


def write_wheel(checkout: Path, *modules: str) -> Path:
    """A wheel of a package `tiny` with these modules, and a command `tiny` that prints its environment."""
    wheel = checkout / "wheels/tiny-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        for module in modules:
            archive.writestr(module, "import sys\ndef main(): print(sys.prefix)\n")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        name = modules[0].removesuffix(".py").removesuffix("/__init__")
        archive.writestr("tiny-1.0.dist-info/entry_points.txt", f"[console_scripts]\ntiny = {name}:main\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    return wheel


@pytest.mark.parametrize("damaged", [False, True])
def test_package_is_installed_only_with_its_locked_hash(uv_checkout: Path, damaged: bool):
    wheel = write_wheel(uv_checkout, "tiny.py")
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


FOREIGN = {"PIP_TARGET": "foreign", "PIP_PREFIX": "foreign", "PIP_USER": "1", "PIP_CONSTRAINT": "constraint.txt"}


@pytest.fixture
def tiny_checkout(uv_checkout: Path) -> Path:
    """A checkout whose set `export` is one small wheel, set up under variables and a pip.conf that lead elsewhere."""
    wheel = write_wheel(uv_checkout, "mlcroissant/__init__.py", "rocrate/__init__.py")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    for name in ("build", "export"):
        (uv_checkout / f"requirements/{name}.txt").write_text(f"tiny==1.0 --hash=sha256:{digest}\n")
    (uv_checkout / "constraint.txt").write_text("tiny<1\nuv<0.1\n")
    settings = "".join(f"{key[4:].lower()} = {value}\n" for key, value in FOREIGN.items())
    (uv_checkout / "pip.conf").write_text(f"[global]\n{settings}")
    done = set_up(uv_checkout)
    assert done.returncode == 0, done.stderr
    return uv_checkout


def set_up(checkout: Path, sets: str = "export") -> subprocess.CompletedProcess[str]:
    places = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(checkout / "wheels"), "PIP_CONFIG_FILE": "pip.conf"}
    places |= {"UV_CACHE_DIR": str(checkout / "cache"), "PYTHON": sys.executable, "PYTHONHOME": "/nowhere"}
    return run(checkout, "requirements/setup.sh", sets, **FOREIGN, **places)


@pytest.mark.environments
def test_target_settings_of_pip_are_ignored(tiny_checkout: Path):
    assert (tiny_checkout / ".venv-export/lib/python3.11/site-packages/rocrate").is_dir()
    assert not (tiny_checkout / "foreign").exists()


@pytest.mark.environments
def test_environment_without_a_package_is_recreated(tiny_checkout: Path):
    assert set_up(tiny_checkout).stderr == ""
    package = tiny_checkout / ".venv-export/lib/python3.11/site-packages/rocrate"
    shutil.rmtree(package)
    assert ".venv-export lacks rocrate and is made again" in set_up(tiny_checkout).stderr
    assert package.is_dir()


@pytest.mark.environments
def test_environment_of_an_older_install_script_is_recreated(tiny_checkout: Path):
    with (tiny_checkout / "requirements/install.sh").open("a") as script:
        script.write("# changed\n")
    assert "installing the locked requirements into .venv-export" in set_up(tiny_checkout).stderr


@pytest.mark.environments
def test_environment_with_a_failing_import_is_incomplete(tiny_checkout: Path):
    (tiny_checkout / "requirements/audit.txt").write_text((tiny_checkout / "requirements/export.txt").read_text())
    for _ in range(2):  # the second time, too: there is no stamp
        done = set_up(tiny_checkout, "audit")
        assert done.returncode == 1
        assert (
            ".venv-audit is not complete, run make setup again: import pip_audit, cyclonedx_py: ModuleNotFoundError"
            in done.stderr
        )


@pytest.mark.environments
def test_scripts_of_a_copied_checkout_use_the_environment_of_the_copy(
    tiny_checkout: Path, tmp_path_factory: pytest.TempPathFactory
):
    copy = tmp_path_factory.mktemp("a copy") / "checkout"
    shutil.copytree(tiny_checkout, copy, symlinks=True)
    done = run(copy, str(copy / ".venv-export/bin/tiny"))
    assert done.stdout == f"{copy}/.venv-export\n"
