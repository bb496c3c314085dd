"""The command line of `python -m commands`, and what Make's targets pass to it."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import REPOSITORY, outside_variables

from commands.__main__ import commands


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (["sweep"], ["sweep"]),
        (["sweep", "SHARE=2", "ARGS=train@a train@b"], ["sweep", "--share", "2", "train@a", "train@b"]),
        (["seeds", "N=24"], ["seeds", "24"]),
        (["seeds", "N=24", "SHARE=2"], ["seeds", "24", "--share", "2"]),
        (["reproduce", "RUN=1a b"], ["reproduce", "1a b"]),
        (["export", "RUN=1a"], ["export", "1a"]),
        (["verify-export", "EXPORT=my folder's"], ["verify", "my folder's"]),
        (["verify-export"], ["verify"]),
        (["ui", "PORT=5001"], ["ui", "5001"]),
    ],
    ids=" ".join,
)
def test_make_passes_each_value_as_one_argument(target: list[str], arguments: list[str]):
    command = ["make", "--dry-run", "--no-print-directory", *target]
    environment = outside_variables()
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert shlex.split(done.stdout.splitlines()[-1]) == ["python", "-m", "commands", *arguments]


def test_make_ignores_image_variables_of_the_host():
    command = ["make", "--no-print-directory", "--eval", "path: ; @echo $$PATH", "path"]
    environment = outside_variables() | {"SEVEN_WAYS_IMAGE": "sha256:1", "IMAGE_DIGEST": "sha256:2"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{REPOSITORY}/.venv/bin:") == (not Path("/opt/image.digest").exists())


@pytest.mark.parametrize("name", sorted(commands.commands))
def test_help_of_each_command_is_printed(name: str):
    done = CliRunner().invoke(commands, [name, "--help"])
    assert done.exit_code == 0
    assert f"Usage: commands {name}" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sweep --share x", "Invalid value for '--share': 'x' is not a valid integer range."),
        ("seeds 0", "Invalid value for 'N': 0 is not in the range x>=1."),
        ("export", "Missing argument 'RUN'."),
        ("swep", "No such command 'swep'. Did you mean 'sweep'?"),
    ],
)
def test_wrong_arguments_give_one_error_and_status_1(arguments: str, message: str):
    command = [sys.executable, "-m", "commands", *arguments.split()]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    name = "" if arguments == "swep" else f"{arguments.split(maxsplit=1)[0]} "
    assert done.returncode == 1
    assert done.stderr == f"ERROR: {message} `python -m commands {name}--help` lists what the command takes.\n"


def test_params_command_imports_no_framework():
    program = (
        "import sys; from commands.__main__ import commands; commands(['params'], standalone_mode=False); "
        "print({'torch', 'tensorflow', 'mlflow', 'ray', 'dvc'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
