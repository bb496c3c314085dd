"""Device resolution, with simulated GPUs, so that every case is tested without a GPU."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pynvml
import pytest
from conftest import HOST, REPOSITORY, Clone

from pipeline import environment, files, gpus
from pipeline.environment import resolve
from pipeline.errors import UserError
from pipeline.gpus import Device, Gpus
from pipeline.params import Params, load_params
from pipeline.running.machine import available_cpus

NONE = Gpus([], None, "no NVIDIA driver (NVML Shared Library Not Found)")
TWO = Gpus([Device("GPU-a", "NVIDIA A"), Device("GPU-b", "NVIDIA B")], "580.1", "")
MISMATCH = Gpus([], None, "the NVIDIA driver does not answer: Driver/library version mismatch", doubtful=True)
CUDA = {"numpy": "2", "torch": "2.13.0", "tensorflow": "2.21.0"}
CPU = {"numpy": "2", "torch": "2.13.0+cpu", "tensorflow": "2.21.0+cpu"}


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(REPOSITORY)
    return load_params()


def machine(monkeypatch: pytest.MonkeyPatch, gpus_found: Gpus, versions: dict[str, str]) -> None:
    monkeypatch.setattr(gpus, "find", lambda: gpus_found)
    monkeypatch.setattr(environment, "versions_of", lambda _: versions)


@pytest.mark.parametrize(
    ("device_setting", "gpus_found", "versions", "device"),
    [
        ("auto", NONE, CPU, "cpu"),
        ("auto", NONE, CUDA, "cpu"),
        ("auto", TWO, CPU, "cpu"),
        ("auto", TWO, CUDA, "cuda:0"),
        ("cpu", TWO, CUDA, "cpu"),
        ("cuda", TWO, CUDA, "cuda:0"),
        ("cuda:1", TWO, CUDA, "cuda:1"),
    ],
)
def test_device_is_resolved_from_params_gpus_and_versions(
    params: Params, monkeypatch: pytest.MonkeyPatch, device_setting: str, gpus_found: Gpus, versions: dict, device: str
):
    machine(monkeypatch, gpus_found, versions)
    resolved = resolve(params.model_copy(update={"device": device_setting}))
    assert resolved.device == device
    assert resolved.device_name == ({"cuda:0": "NVIDIA A", "cuda:1": "NVIDIA B"}.get(device) or resolved.cpu_name)


@pytest.mark.parametrize(
    ("device_setting", "gpus_found", "versions", "message"),
    [
        ("cuda", NONE, CUDA, "device is cuda; found: no NVIDIA driver"),
        ("cuda:2", TWO, CUDA, "device is cuda:2; found: cuda:0 NVIDIA A, cuda:1 NVIDIA B."),
        ("cuda", TWO, CPU, "but torch 2.13.0+cpu and tensorflow 2.21.0+cpu cannot use CUDA"),
        ("cuda", MISMATCH, CUDA, "found: the NVIDIA driver does not answer: Driver/library version mismatch."),
    ],
)
def test_unavailable_cuda_device_is_refused(
    params: Params, monkeypatch: pytest.MonkeyPatch, device_setting: str, gpus_found: Gpus, versions: dict, message: str
):
    machine(monkeypatch, gpus_found, versions)
    with pytest.raises(UserError) as error:
        resolve(params.model_copy(update={"device": device_setting}))
    assert message in str(error.value)
    assert "docker compose run --rm gpu" in str(error.value)


@pytest.mark.parametrize(
    ("gpus_found", "versions", "reason", "doubtful"),
    [
        (NONE, CPU, "no NVIDIA driver (NVML Shared Library Not Found)", False),
        (TWO, CPU, "cuda:0 NVIDIA A, cuda:1 NVIDIA B, but torch 2.13.0+cpu and tensorflow 2.21.0+cpu cannot", False),
        (MISMATCH, CUDA, "the NVIDIA driver does not answer: Driver/library version mismatch", True),
    ],
)
def test_device_auto_gives_its_reason_for_the_cpu(
    params: Params, monkeypatch: pytest.MonkeyPatch, gpus_found: Gpus, versions: dict, reason: str, doubtful: bool
):
    machine(monkeypatch, gpus_found, versions)
    fallbacks: list[tuple[str, bool]] = []
    resolve(params, on_fallback=lambda *why: fallbacks.append(why))
    ((why, doubt),) = fallbacks
    assert why.startswith(reason)
    assert doubt is doubtful
    fallbacks.clear()
    resolve(params.model_copy(update={"device": "cpu"}), on_fallback=lambda *why: fallbacks.append(why))
    assert fallbacks == []


def test_stage_warns_of_a_driver_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from stages.environment import say_why

    say_why(MISMATCH.absence, MISMATCH.doubtful)
    assert capsys.readouterr().err == (
        "WARNING: device auto falls back to the CPU: the NVIDIA driver does not answer: "
        "Driver/library version mismatch.\n"
    )


WITHOUT_TENSORFLOW = """
import importlib.metadata
found = importlib.metadata.distributions
def distributions(**about):
    return [] if about.get("name", "").startswith("tensorflow") else found(**about)
importlib.metadata.distributions = distributions
"""


def test_framework_without_lessons_may_be_missing(params: Params, tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_TENSORFLOW)
    script = (
        "from pipeline.environment import resolve; from pipeline.params import load_params\n"
        "params = load_params()\n"
        "lessons = {name: of for name, of in params.implementations.items() if 'tensorflow' not in name}\n"
        "print(sorted(resolve(params.model_copy(update={'implementations': lessons})).versions))\n"
        "resolve(params)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "['numpy', 'torch']\n"
    assert "UserError: tensorflow cannot be found. Run `make setup`" in done.stderr
    assert "remove the lessons that need it from params.yaml" in done.stderr


def test_threads_are_the_available_cpus_or_those_of_params(params: Params):
    assert resolve(params).threads == available_cpus() <= (os.cpu_count() or 1)
    assert resolve(params.model_copy(update={"threads": 7})).threads == 7


def test_resolve_is_deterministic_and_imports_no_framework():
    script = (
        "import sys; from pipeline.environment import resolve; from pipeline.params import load_params;"
        "print(resolve(load_params()) == resolve(load_params()), {'torch', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "True set()\n"


def test_cuda_device_order_is_that_of_nvml():
    code = "import os, pipeline; print(os.environ['CUDA_DEVICE_ORDER'])"
    variables = os.environ | {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == "PCI_BUS_ID\n"


def test_stage_continues_in_the_interpreter_of_torch_python(tmp_path: Path):
    """TORCH_PYTHON names another environment's interpreter: a stage goes on in it, with the same arguments."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", tmp_path / "torch"], check=True
    )
    site = tmp_path / "torch/lib/python3.11/site-packages"
    (site / "here.pth").write_text(f"{pynvml.__file__.rpartition('/')[0]}\n{REPOSITORY}\n")
    script = (
        "import sys; from pipeline.environment import enter_interpreter;"
        "enter_interpreter('numpy'); enter_interpreter('torch'); print(sys.prefix, sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "an argument"],
        cwd=REPOSITORY,
        env=os.environ | {"TORCH_PYTHON": str(tmp_path / "torch/bin/python")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{tmp_path / 'torch'} ['an argument']\n"


def test_variables_that_change_last_bits_are_recorded(params: Params, monkeypatch: pytest.MonkeyPatch):
    recorded = {"OPENBLAS_CORETYPE": "Haswell", "TF_ENABLE_ONEDNN_OPTS": "0", "NPY_DISABLE_CPU_FEATURES": "AVX2"}
    changes_nothing = ("OMP_NUM_THREADS", "OPENBLAS_THREAD_TIMEOUT", "TF_CPP_MIN_LOG_LEVEL", "TORCH_LOGS")
    changes_nothing += ("TORCH_CUDA_ARCH_LIST",)  # of NVIDIA's images; for compiling extensions
    changes_nothing += ("TF_VAR_password", "TF_TOKEN_host", "TF_CLI_CONFIG_FILE")  # Terraform's, which may be secret
    before = resolve(params).variables
    for key, value in (recorded | dict.fromkeys(changes_nothing, "1")).items():
        monkeypatch.setenv(key, value)
    assert resolve(params).variables == before | recorded


def test_environment_file_of_an_older_version_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    content = asdict(HOST)
    del content["variables"]
    files.write_json(files.ENVIRONMENT, content)
    assert files.read_environment() == HOST


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"versions": 5, "variables": [1]}'])
def test_damaged_environment_file_is_written_again(make_clone: Callable[..., Clone], content: str):
    clone = make_clone("numpy_arrays")
    (clone.path / "environment.json").write_text(content)
    done = clone.run(sys.executable, "-m", "stages.environment")
    assert "Traceback" not in done.stderr
    assert json.loads((clone.path / "environment.json").read_text())["device"]
