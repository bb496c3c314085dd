"""The answers of NVML on GPUs, and their use. The driver is simulated, because the machine may have none."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from pipeline import gpus
from pipeline.benchmark import monitor
from pipeline.gpus import Device, Gpus, visible_devices

A, B, PART = Device("GPU-0", "NVIDIA A"), Device("GPU-1", "NVIDIA A"), Device("MIG-2", "NVIDIA A")
NOT_SUPPORTED = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
NO_DRIVER = [
    pynvml.NVMLError(code) for code in (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two GPUs, of which each answer can be set: driver(function=answer)."""
    monkeypatch.setattr(gpus, "NODES", ())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def answer(**answers: Any) -> None:
        for name, value in answers.items():

            def function(*arguments: Any, value: Any = value) -> Any:
                if isinstance(value, Exception):
                    raise value
                return value(*arguments) if callable(value) else value

            monkeypatch.setattr(pynvml, f"nvml{name}", function)

    answer(
        Init=None,
        Shutdown=None,
        DeviceGetCount=2,
        DeviceGetHandleByIndex=lambda index: f"GPU-{index}",
        DeviceGetHandleByUUID=lambda uuid: uuid,
        DeviceGetUUID=lambda handle: handle,
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


def test_gpus_found_by_nvml_are_limited_by_cuda_visible_devices(driver: Any, monkeypatch: pytest.MonkeyPatch):
    assert gpus.find() == Gpus([A, B], "580.1", "no NVIDIA GPU")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpus.find().devices == [B]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.find() == Gpus([], "580.1", "no NVIDIA GPU that CUDA_VISIBLE_DEVICES= names")


def test_cuda_visible_devices_is_read_as_cuda_reads_it(driver: Any):
    for text, devices in {
        "1": [B],
        "GPU-1,0": [B, A],
        "0, 1": [A, B],
        "0,-1,1": [A],
        "7": [],
        "": [],
        "GPU-7": [],
        "MIG-2,0": [PART],  # CUDA uses one instance at a time
        "0,MIG-2": [A],
    }.items():
        assert visible_devices([A, B], text.split(",")) == devices, text
    driver(DeviceGetHandleByUUID=pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND))
    assert visible_devices([A, B], ["MIG-7"]) == []


@pytest.mark.parametrize("error", NO_DRIVER, ids=str)
def test_missing_driver_is_doubtful_only_with_a_device_node(
    driver: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: pynvml.NVMLError
):
    driver(Init=error)
    assert gpus.find() == Gpus([], None, f"no NVIDIA driver ({error})")
    node = tmp_path / "nvidiactl"
    node.touch()
    monkeypatch.setattr(gpus, "NODES", (str(node), str(tmp_path / "dxg")))
    reason = f"the NVIDIA driver does not answer: {error}, though {node} is there"
    assert gpus.find() == Gpus([], None, reason, doubtful=True)


@pytest.mark.parametrize("where", ["Init", "DeviceGetCount", "DeviceGetName", "SystemGetDriverVersion"])
def test_driver_mismatch_is_doubtful_and_quotes_nvml(driver: Any, where: str):
    error = pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    driver(**{where: error})
    assert gpus.find() == Gpus([], None, f"the NVIDIA driver does not answer: {error}", doubtful=True)
    assert "mismatch" in str(error)
    assert monitor.Monitor("cuda:0").summary() is None


# During a measurement.


def test_summary_has_the_range_of_each_reading(driver: Any):
    watched = monitor.Monitor("cuda:1")
    watched.read()
    driver(DeviceGetClockInfo=1755, DeviceGetCurrentClocksEventReasons=monitor.POWER_CAP)
    watched.read()
    summary: Any = watched.summary()
    assert summary == {
        "other_processes": 0,
        "busy_before_percent": 0,
        "sm_clock_mhz": [1755, 1980],
        "power_watts": [654.321, 654.321],
        "temperature_celsius": [61, 61],
        "throttled_by": [],
        "power_capped": True,
    }
    assert monitor.disturbed_gpu(summary) == ""
    assert monitor.sentence(summary) == (
        "SM clock 1755 … 1980 MHz, 654 … 654 W, 61 … 61 °C, other processes on it: 0, power cap reached, "
        "throttled by: nothing"
    )
    assert monitor.Monitor("cpu").summary() is None


@pytest.mark.parametrize(
    ("answers", "doubt"),
    [
        ({"DeviceGetComputeRunningProcesses": lambda _: ["one", "other"]}, "2 other processes used the GPU"),
        ({"DeviceGetUtilizationRates": SimpleNamespace(gpu=37)}, "the GPU was 37 % busy with something else"),
        ({"DeviceGetCurrentClocksEventReasons": 0x20 | 0x04}, "the GPU was throttled: too hot"),
        ({"DeviceGetCurrentClocksEventReasons": 0x88}, "the GPU was throttled: hardware slowdown, power brake"),
    ],
)
def test_shared_or_throttled_gpu_gives_a_reason_for_doubt(
    driver: Any, monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], doubt: str
):
    monkeypatch.setattr(monitor, "IDLE_SECONDS", 0.01)
    driver(**answers)
    watched = monitor.Monitor("cuda:0")
    watched.read()
    quiet = {"other_processes": 0, "busy_before_percent": 0, "throttled_by": [], "power_capped": False}
    assert monitor.disturbed_gpu(monitor.merged([quiet, watched.summary(), None])) == doubt


def test_process_that_starts_on_the_gpu_later_is_counted(driver: Any):
    watched = monitor.Monitor("cuda:0")
    for processes, others in ((["this one"], 0), (["this one", "another"], 1)):
        driver(DeviceGetComputeRunningProcesses=lambda _, processes=processes: processes)
        assert (watched.summary() or {})["other_processes"] == others


def test_monitor_waits_until_the_gpu_is_idle(driver: Any):
    answers = iter((80, 12, 0))
    driver(DeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=next(answers)))
    assert (monitor.Monitor("cuda:0").summary() or {})["busy_before_percent"] == 0


def test_monitor_waits_until_the_process_before_has_left_the_gpu(driver: Any):
    answers = iter((["before"], ["before"], [], ["this one"]))
    driver(DeviceGetComputeRunningProcesses=lambda _: next(answers))
    assert (monitor.Monitor("cuda:0").summary() or {})["other_processes"] == 0


def test_readings_that_nvml_does_not_support_are_left_out(driver: Any):
    unknown = ("ComputeRunningProcesses", "UtilizationRates", "PowerUsage", "CurrentClocksEventReasons")
    driver(**{f"DeviceGet{name}": NOT_SUPPORTED for name in unknown})
    watched = monitor.Monitor("cuda:0")
    watched.read()
    summary = watched.summary() or {}
    assert summary["other_processes"] is None
    assert "power_watts" not in summary
    assert monitor.disturbed_gpu(monitor.merged([summary])) == ""


def test_readings_of_several_processes_are_merged_to_the_worst():
    one = {"other_processes": 0, "sm_clock_mhz": [1700, 1900], "throttled_by": ["too hot"], "power_capped": False}
    two = {"other_processes": None, "sm_clock_mhz": [1600, 1980], "throttled_by": [], "power_capped": True}
    assert monitor.merged([one, two]) == one | {"sm_clock_mhz": [1600, 1980], "power_capped": True}
    assert monitor.merged([None, None]) is None
