"""Device resolution. The GPUs are made up: there may be none here, and every answer must be tested all the same."""

import os
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest
from conftest import REPOSITORY

from pipeline import environment
from pipeline.environment import Device, Gpus, resolve, visible_devices
from pipeline.errors import UserError
from pipeline.params import Params, load_params

NONE = Gpus([], None, "no NVIDIA driver (NVML Shared Library Not Found)")
TWO = Gpus(["NVIDIA A", "NVIDIA B"], "580.1", "")
CUDA = {"numpy": "2", "torch": "2.13.0", "tensorflow": "2.21.0"}
CPU = {"numpy": "2", "torch": "2.13.0+cpu", "tensorflow": "2.21.0+cpu"}


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(REPOSITORY)
    return load_params()


def machine(monkeypatch: pytest.MonkeyPatch, gpus: Gpus, versions: dict[str, str]) -> None:
    monkeypatch.setattr(environment, "_gpus", lambda: gpus)
    monkeypatch.setattr(environment, "_versions", lambda _: versions)


@pytest.mark.parametrize(
    ("asked", "gpus", "versions", "device"),
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
def test_device(params: Params, monkeypatch: pytest.MonkeyPatch, asked: str, gpus: Gpus, versions: dict, device: str):
    machine(monkeypatch, gpus, versions)
    resolved = resolve(params.model_copy(update={"device": asked}))
    assert resolved.device == device
    assert resolved.device_name == ({"cuda:0": "NVIDIA A", "cuda:1": "NVIDIA B"}.get(device) or resolved.cpu_name)


@pytest.mark.parametrize(
    ("asked", "gpus", "versions", "found"),
    [
        ("cuda", NONE, CUDA, "device is cuda; found: no NVIDIA driver"),
        ("cuda:2", TWO, CUDA, "device is cuda:2; found: cuda:0 NVIDIA A, cuda:1 NVIDIA B."),
        ("cuda", TWO, CPU, "but torch 2.13.0+cpu and tensorflow 2.21.0+cpu cannot use CUDA"),
    ],
)
def test_cuda_that_is_not_there_is_refused(
    params: Params, monkeypatch: pytest.MonkeyPatch, asked: str, gpus: Gpus, versions: dict, found: str
):
    machine(monkeypatch, gpus, versions)
    with pytest.raises(UserError) as error:
        resolve(params.model_copy(update={"device": asked}))
    assert found in str(error.value)
    assert "docker compose run --rm gpu" in str(error.value)


def test_threads(params: Params):
    assert resolve(params).threads == environment.available_cpus() <= (os.cpu_count() or 1)
    assert resolve(params.model_copy(update={"threads": 7})).threads == 7


def test_it_repeats_and_imports_no_framework():
    script = (
        "import sys; from pipeline.environment import resolve; from pipeline.params import load_params;"
        "print(resolve(load_params()) == resolve(load_params()), {'torch', 'tensorflow', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "True set()\n"


def test_visible_devices_as_cuda_reads_them():
    a, b, first, second = (Device(uuid, uuid) for uuid in ("GPU-a", "GPU-b", "MIG-1", "MIG-2"))
    assert visible_devices([[a], [b]], ["1"]) == [b]
    assert visible_devices([[a], [b]], ["GPU-b", "0"]) == [b, a]
    assert visible_devices([[a], [b]], ["0", "-1", "1"]) == [a]
    assert visible_devices([[a], [b]], [""]) == []
    assert visible_devices([[a], [first, second]], ["MIG-2"]) == [second]
    assert visible_devices([[a], [first, second]], ["1", "0"]) == [first]  # CUDA uses one instance at a time
    assert visible_devices([[first, second]], ["GPU-b"]) == []


def test_instances_of_a_gpu_in_mig_mode(monkeypatch: pytest.MonkeyPatch):
    def instance(gpu: str, index: int) -> str:
        if index == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return f"{gpu}, part {index}"

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMigMode", lambda gpu: (int(gpu == "split"), 0))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMaxMigDeviceCount", lambda _: 3)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMigDeviceHandleByIndex", instance)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: f"UUID of {handle}")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: handle)
    assert [each.name for each in environment._devices("whole")] == ["whole"]
    assert [each.name for each in environment._devices("split")] == ["split, part 0", "split, part 2"]


def test_cuda_counts_gpus_as_nvml_does():
    code = "import os, pipeline; print(os.environ['CUDA_DEVICE_ORDER'])"
    variables = os.environ | {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == "PCI_BUS_ID\n"


def test_the_other_interpreter_takes_over(tmp_path: Path):
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
