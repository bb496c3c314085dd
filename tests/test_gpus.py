"""What NVML says of GPUs, and what is made of it. The driver is made up: there may be none here."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from pipeline import gpus
from pipeline.benchmark import monitor
from pipeline.gpus import Device, visible_devices

NO_DRIVER = pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two GPUs, of which each answer can be set: driver(function=answer)."""
    monkeypatch.setattr(gpus, "NODES", ())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def answer(**answers: Any) -> None:
        for name, value in answers.items():

            def function(*_: Any, value: Any = value) -> Any:
                if isinstance(value, Exception):
                    raise value
                return value(*_) if callable(value) else value

            monkeypatch.setattr(pynvml, f"nvml{name}", function)

    answer(
        Init=None,
        Shutdown=None,
        DeviceGetCount=2,
        DeviceGetHandleByIndex=lambda index: f"gpu {index}",
        DeviceGetHandleByUUID=lambda uuid: uuid,
        DeviceGetMigMode=pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED),
        DeviceGetUUID=lambda handle: f"GPU-{handle[-1]}",
        DeviceGetName="NVIDIA A",
        SystemGetDriverVersion="580.1",
        DeviceGetComputeRunningProcesses=lambda _: [],
        DeviceGetUtilizationRates=SimpleNamespace(gpu=0),
        DeviceGetClockInfo=1980,
        DeviceGetPowerUsage=654_321,
        DeviceGetTemperature=61,
        DeviceGetCurrentClocksEventReasons=0,
    )
    return answer


def test_the_gpus_that_nvml_counts(driver: Any):
    assert gpus.find() == gpus.Gpus(
        [Device("GPU-0", "NVIDIA A"), Device("GPU-1", "NVIDIA A")], "580.1", "no NVIDIA GPU"
    )


def test_cuda_visible_devices_is_heeded(driver: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpus.find().devices == [Device("GPU-1", "NVIDIA A")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.find().absence == "no NVIDIA GPU that CUDA_VISIBLE_DEVICES= names"


@pytest.mark.parametrize("code", NO_DRIVER)
def test_no_driver_and_no_device_node_is_no_gpu(driver: Any, code: int):
    driver(Init=pynvml.NVMLError(code))
    found = gpus.find()
    assert found.absence == f"no NVIDIA driver ({pynvml.NVMLError(code)})"
    assert (found.devices, found.doubtful) == ([], False)


@pytest.mark.parametrize("where", ["Init", "DeviceGetCount", "DeviceGetName", "SystemGetDriverVersion"])
def test_a_driver_that_does_not_match_is_doubtful_in_nvmls_own_words(driver: Any, where: str):
    error = pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    driver(**{where: error})
    found = gpus.find()
    assert found.absence == f"the NVIDIA driver does not answer: {error}"
    assert "mismatch" in found.absence
    assert (found.devices, found.doubtful) == ([], True)


@pytest.mark.parametrize("code", NO_DRIVER)
def test_a_device_node_without_an_answer_is_doubtful(
    driver: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int
):
    node = tmp_path / "nvidiactl"
    node.touch()
    monkeypatch.setattr(gpus, "NODES", (str(node), str(tmp_path / "dxg")))
    driver(Init=pynvml.NVMLError(code))
    found = gpus.find()
    assert found.absence == f"the NVIDIA driver does not answer: {pynvml.NVMLError(code)}, though {node} is there"
    assert found.doubtful


def test_a_machine_without_nvidia_ml_py(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpus, "pynvml", None)
    assert "nvidia-ml-py" in gpus.find().absence
    assert monitor.Monitor("cuda:0").summary() is None


# While something is measured.


def test_what_a_gpu_did_while_it_was_measured(driver: Any):
    seen = monitor.Monitor("cuda:1")
    seen.read()
    driver(DeviceGetClockInfo=1755, DeviceGetCurrentClocksEventReasons=monitor.POWER_CAP)
    seen.read()
    summary: Any = seen.summary()
    assert summary == {
        "other_processes": 0,
        "busy_before_percent": 0,
        "sm_clock_mhz": [1755, 1980],
        "power_watts": [654.321, 654.321],
        "temperature_celsius": [61, 61],
        "throttled_by": [],
        "power_capped": True,
    }
    assert monitor.disturbance(summary) == ""
    assert monitor.sentence(summary) == (
        "SM clock 1755 … 1980 MHz, 654 … 654 W, 61 … 61 °C, other processes on it: 0, power cap reached, "
        "throttled by: nothing"
    )


@pytest.mark.parametrize(
    ("answers", "doubt"),
    [
        ({"DeviceGetComputeRunningProcesses": lambda _: ["one", "other"]}, "2 other processes used the GPU"),
        ({"DeviceGetUtilizationRates": SimpleNamespace(gpu=37)}, "the GPU was 37 % busy with something else"),
        ({"DeviceGetCurrentClocksEventReasons": 0x20 | 0x04}, "the GPU was throttled: too hot"),
        ({"DeviceGetCurrentClocksEventReasons": 0x88}, "the GPU was throttled: hardware slowdown, power brake"),
    ],
)
def test_a_shared_or_throttled_gpu_is_doubted(
    driver: Any, monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], doubt: str
):
    monkeypatch.setattr(monitor, "IDLE_SECONDS", 0.01)
    driver(**answers)
    seen = monitor.Monitor("cuda:0")
    seen.read()
    quiet = {"other_processes": 0, "busy_before_percent": 0, "throttled_by": [], "power_capped": False}
    assert monitor.disturbance(monitor.merged([quiet, seen.summary(), None])) == doubt


def test_a_process_that_comes_to_the_gpu_later_is_counted(driver: Any):
    seen = monitor.Monitor("cuda:0")
    driver(DeviceGetComputeRunningProcesses=lambda _: ["this one"])
    assert (seen.summary() or {})["other_processes"] == 0
    driver(DeviceGetComputeRunningProcesses=lambda _: ["this one", "another"])
    assert monitor.disturbance(seen.summary()) == "1 other process used the GPU"


def test_a_gpu_that_was_used_a_moment_ago_is_waited_for(driver: Any):
    answers = iter((80, 12, 0))
    driver(DeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=next(answers)))
    assert (monitor.Monitor("cuda:0").summary() or {})["busy_before_percent"] == 0


def test_what_nvml_does_not_know_is_left_out(driver: Any):
    unknown = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    driver(
        DeviceGetComputeRunningProcesses=unknown,
        DeviceGetUtilizationRates=unknown,
        DeviceGetPowerUsage=unknown,
        DeviceGetCurrentClocksEventReasons=unknown,
    )
    seen = monitor.Monitor("cuda:0")
    seen.read()
    summary = seen.summary()
    assert summary
    assert summary["other_processes"] is None
    assert "power_watts" not in summary
    assert monitor.disturbance(monitor.merged([summary])) == ""


def test_several_processes_are_merged_to_the_worst(driver: Any):
    one = {"other_processes": 0, "sm_clock_mhz": [1700, 1900], "throttled_by": ["too hot"], "power_capped": False}
    two = {"other_processes": None, "sm_clock_mhz": [1600, 1980], "throttled_by": [], "power_capped": True}
    assert monitor.merged([one, two]) == {
        "other_processes": 0,
        "sm_clock_mhz": [1600, 1980],
        "throttled_by": ["too hot"],
        "power_capped": True,
    }
    assert monitor.merged([None, None]) is None


# Which devices CUDA shows.


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
    assert [each.name for each in gpus._devices("whole")] == ["whole"]
    assert [each.name for each in gpus._devices("split")] == ["split, part 0", "split, part 2"]
