"""The NVIDIA GPUs of this machine, as their driver tells them through NVML: which there are, and what one is doing.

NVML numbers GPUs as they are on the PCI bus, and so does CUDA here (CUDA_DEVICE_ORDER, pipeline/__init__.py). A machine
without the package nvidia-ml-py is taken for one without a GPU.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

try:
    import pynvml
except ImportError:
    pynvml: Any = None

NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")  # of a driver, on Linux and in WSL
IDLE_SECONDS = 1.5  # for which NVML goes on to report as busy a GPU that was used a moment ago
# Reasons for a low clock that say nothing of what the GPU was asked to do, by their bits in nvml.h. The power cap is
# none of them: large matrix products reach it on any GPU, so what a step takes under it is what it takes there.
THROTTLED = {0x08: "hardware slowdown", 0x20: "too hot", 0x40: "too hot (hardware)", 0x80: "power brake"}
POWER_CAP = 0x04


class Device(NamedTuple):
    uuid: str
    name: str


class Gpus(NamedTuple):
    """The GPUs that CUDA would show and the driver's version; or why there are none.

    `doubtful`: there may be a GPU all the same, since a driver is there and does not answer as it should.
    """

    devices: list[Device]
    driver: str | None
    absence: str
    doubtful: bool = False


def find() -> Gpus:
    """Raises nothing: what NVML says against it is in `absence`."""
    nodes = [node for node in NODES if Path(node).exists()]
    if pynvml is None:
        return Gpus([], None, "the package nvidia-ml-py, which would tell, is not installed", bool(nodes))
    try:
        pynvml.nvmlInit()
        try:
            gpus = range(pynvml.nvmlDeviceGetCount())
            devices = [_devices(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in gpus]
            driver = pynvml.nvmlSystemGetDriverVersion()
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        without = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        if error.value in without and not nodes:
            return Gpus([], None, f"no NVIDIA driver ({error})")
        there = f", though {' and '.join(nodes)} {'is' if len(nodes) == 1 else 'are'} there" if nodes else ""
        return Gpus([], None, f"the NVIDIA driver does not answer: {error}{there}", doubtful=True)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = [each[0] for each in devices] if visible is None else visible_devices(devices, visible.split(","))
    absence = "no NVIDIA GPU" if visible is None else f"no NVIDIA GPU that CUDA_VISIBLE_DEVICES={visible} names"
    return Gpus(shown, driver, absence)


def _devices(gpu: Any) -> list[Device]:
    """What CUDA can use of a GPU: all of it, or in MIG mode its instances, each a part of the GPU."""
    handles = [gpu]
    with suppress(pynvml.NVMLError):  # most GPUs have no MIG mode
        if pynvml.nvmlDeviceGetMigMode(gpu)[0]:
            handles = []
            for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
                with suppress(pynvml.NVMLError):  # no instance in this place
                    handles.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index))
    return [Device(pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)) for handle in handles or [gpu]]


def visible_devices(devices: list[list[Device]], wanted: list[str]) -> list[Device]:
    """CUDA_VISIBLE_DEVICES as CUDA reads it, of `devices` by GPU: indices, or the beginnings of UUIDs of GPUs and of
    MIG instances. The first unknown one ends the list, and of MIG instances only the first is shown."""
    chosen: list[Device] = []
    for token in (each.strip() for each in wanted):
        named = [devices[int(token)][0]] if token.isdigit() and int(token) < len(devices) else []
        named += [each for gpu in devices for each in gpu if token and each.uuid.startswith(token)]
        if not named:
            break
        chosen.append(named[0])
    return chosen[:1] if chosen and chosen[0].uuid.startswith("MIG-") else chosen


class Monitor:
    """What a GPU does while it is measured: its clock, power and temperature, why it is slow, and who else uses it.

    Make it before the process uses the GPU, whose other processes are counted then. NVML may know less of a GPU, or
    nothing at all; what it does not tell is left out.
    """

    def __init__(self, device: str) -> None:
        """`device` is cpu or cuda:N; of a CPU there is nothing to tell."""
        self.seen: dict[str, list[float]] = {}
        self.reasons = 0
        self.handle: Any = None
        self.facts: dict[str, Any] = {}
        devices = find().devices if device != "cpu" else []
        index = int(device.partition(":")[2] or 0)
        if index < len(devices):
            pynvml.nvmlInit()
            with suppress(pynvml.NVMLError):
                self.handle = pynvml.nvmlDeviceGetHandleByUUID(devices[index].uuid)
                self.facts = {"other_processes": self._others(), "busy_before_percent": self._busy()}

    def _others(self) -> int | None:
        with suppress(pynvml.NVMLError):
            return len(pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle))
        return None

    def _busy(self) -> int | None:
        """How busy the GPU is, in per cent, once what this benchmark did there a moment ago is over."""
        deadline = time.monotonic() + IDLE_SECONDS
        with suppress(pynvml.NVMLError):
            while (busy := pynvml.nvmlDeviceGetUtilizationRates(self.handle).gpu) and time.monotonic() < deadline:
                time.sleep(0.1)
            return busy
        return None

    def read(self) -> None:
        """Note what the GPU does now: to be called right after it was used, while no clock runs."""
        if self.handle is None:
            return
        for key, ask in {
            "sm_clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(self.handle, pynvml.NVML_CLOCK_SM),
            "power_watts": lambda: pynvml.nvmlDeviceGetPowerUsage(self.handle) / 1000,
            "temperature_celsius": lambda: pynvml.nvmlDeviceGetTemperature(self.handle, pynvml.NVML_TEMPERATURE_GPU),
        }.items():
            with suppress(pynvml.NVMLError):
                value = ask()
                self.seen.setdefault(key, []).append(value)
        with suppress(pynvml.NVMLError):
            self.reasons |= pynvml.nvmlDeviceGetCurrentClocksEventReasons(self.handle)

    def summary(self) -> dict[str, Any] | None:
        """Lowest and highest of each figure, and the reasons for which the GPU was slow; None of a CPU."""
        if self.handle is None:
            return None
        ranges = {key: [min(values), max(values)] for key, values in self.seen.items()}
        throttled = [reason for bit, reason in THROTTLED.items() if self.reasons & bit]
        return {**self.facts, **ranges, "throttled_by": throttled, "power_capped": bool(self.reasons & POWER_CAP)}


def merged(summaries: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """One summary of several processes that measured one after the other."""
    found = [each for each in summaries if each]
    if not found:
        return None
    together: dict[str, Any] = {}
    for key in dict.fromkeys(key for each in found for key in each):
        values = [each[key] for each in found if each.get(key) is not None]
        if key == "throttled_by":
            together[key] = list(dict.fromkeys(reason for value in values for reason in value))
        elif values and isinstance(values[0], list):
            together[key] = [min(low for low, _ in values), max(high for _, high in values)]
        else:
            together[key] = max(values, default=None)
    return together


def doubt(summary: dict[str, Any] | None) -> str:
    """Why times that were taken on a GPU mean nothing, or nothing."""
    if not summary:
        return ""
    if summary.get("other_processes"):
        number = summary["other_processes"]
        return f"{number} other process{'es' * (number > 1)} used the GPU"
    if summary.get("busy_before_percent"):
        return f"the GPU was {summary['busy_before_percent']} % busy with something else"
    return f"the GPU was throttled: {', '.join(summary['throttled_by'])}" if summary["throttled_by"] else ""
