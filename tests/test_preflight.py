"""`docker/preflight` checks a machine for Docker. Here `docker` and `nvidia-smi` answer as on a broken machine."""

import os
import socket
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY, outside_variables

ANSWERS = {
    "docker": """case "$*" in
        info*Architecture*) echo "${ARCHITECTURE:-x86_64}" ;;
        info*) [[ -z ${NO_ENGINE:-} ]] ;;
        "compose version") [[ -z ${NO_COMPOSE:-} ]] ;;
        "compose config"*) printf 'name: here\\n  published: "%s"\\n' "$MLFLOW_PORT" ;;
        ps*) [[ -z ${OTHER:-} ]] || echo "$OTHER" ;;
        run*) echo "docker: Error: ${REFUSAL:-}" >&2; [[ -z ${REFUSAL:-} ]] ;;
    esac""",
    "nvidia-smi": 'echo "${DRIVER:-}"; [[ -n ${DRIVER:-} ]]',
}


@pytest.mark.parametrize(
    ("service", "machine", "sentence"),
    [
        ("cpu", {"NO_ENGINE": "1"}, "The Docker engine does not answer"),
        ("cpu", {"NO_COMPOSE": "1"}, "Docker has no Compose v2"),
        ("cpu", {"ARCHITECTURE": "aarch64"}, "The images are for x86-64 and this engine runs on aarch64"),
        ("cpu", {"TAKEN": "1"}, "is taken. Stop the server on it, or choose another: MLFLOW_PORT=5001 make cpu"),
        ("cpu", {"OTHER": "/elsewhere"}, "another checkout, /elsewhere, have this one's project name, here."),
        ("cpu", {"OTHER": "/elsewhere", "COMPOSE_PROJECT_NAME": "shared"}, ""),
        ("cpu", {"OTHER": "."}, ""),
        ("cpu", {}, ""),
        ("gpu", {}, "No NVIDIA driver answers on this machine"),
        ("gpu", {"DRIVER": "470.82"}, "The NVIDIA driver is 470.82; CUDA 12 needs 525 or newer and CUDA 13 needs 580"),
        ("gpu", {"DRIVER": "550.54"}, "The NVIDIA driver is 550.54; torch's CUDA 13 needs 580 or newer"),
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
def test_preflight_names_what_is_missing(tmp_path: Path, service: str, machine: dict[str, str], sentence: str):
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
