"""Monitor a GPU while it is measured, and decide whether its times are valid."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pynvml

from pipeline import gpus
from pipeline.clock import now, pause

IDLE_SECONDS = 1.5  # the longest wait until NVML no longer counts work that has just ended
# Reasons for a low clock that do not come from the work itself, by their bits in nvml.h. The power cap is not among
# them: large matrix products reach it on any GPU, so a time under the power cap is valid.
THROTTLED = {0x08: "hardware slowdown", 0x20: "too hot", 0x40: "too hot (hardware)", 0x80: "power brake"}
POWER_CAP = 0x04
READINGS: dict[str, Callable[[Any], float]] = {
    "sm_clock_mhz": lambda gpu: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
    "power_watts": lambda gpu: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    "temperature_celsius": lambda gpu: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
}


class Monitor:
    """Records what a GPU does while it is measured: its clock, power and temperature, why it is slow, and how many
    other processes use it. Construct it before the process uses the GPU: other processes are counted then and again at
    the end. Values that NVML does not have are left out.
    """

    def __init__(self, device: str) -> None:
        """`device` is cpu or cuda:N. A CPU is not monitored."""
        self.readings: dict[str, list[float]] = {}
        self.reasons = 0
        self.handle: Any = None
        devices = gpus.find().devices if device != "cpu" else []
        index = int(device.partition(":")[2] or 0)
        if index < len(devices):
            with suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self.handle = pynvml.nvmlDeviceGetHandleByUUID(devices[index].uuid)
                self.others = _settled(self._processes)
                self.busy = _settled(lambda: int(pynvml.nvmlDeviceGetUtilizationRates(self.handle).gpu))

    def _processes(self) -> int:
        return len(pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle))

    def read(self) -> None:
        """Record what the GPU does now. Call it right after the GPU was used, outside of timed work."""
        if self.handle is None:
            return
        for key, reading in READINGS.items():
            with suppress(pynvml.NVMLError):
                self.readings.setdefault(key, []).append(reading(self.handle))
        with suppress(pynvml.NVMLError):
            self.reasons |= pynvml.nvmlDeviceGetCurrentClocksEventReasons(self.handle)

    def summary(self) -> dict[str, Any] | None:
        """The lowest and the highest of each reading, and the reasons why the GPU was slow; None for a CPU."""
        if self.handle is None:
            return None
        with suppress(pynvml.NVMLError):
            self.others = max(self.others or 0, self._processes() - 1)  # this process is one of them
        return {
            "other_processes": self.others,
            "busy_before_percent": self.busy,
            **{key: [min(values), max(values)] for key, values in self.readings.items() if values},
            "throttled_by": [reason for bit, reason in THROTTLED.items() if self.reasons & bit],
            "power_capped": bool(self.reasons & POWER_CAP),
        }


def _settled(read: Callable[[], int]) -> int | None:
    """A reading that is 0 on an idle GPU, after waiting for the end of what this benchmark itself did there before.
    None if NVML does not have it."""
    deadline = now() + IDLE_SECONDS
    with suppress(pynvml.NVMLError):
        while (number := read()) and now() < deadline:
            pause(0.1)
        return number
    return None


def merged(summaries: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """One summary for several processes that measured one after the other: the worst of each value."""
    known = [summary for summary in summaries if summary]
    together: dict[str, Any] = {}
    for key in dict.fromkeys(key for summary in known for key in summary):
        values = [summary[key] for summary in known if summary.get(key) is not None]
        if key == "throttled_by":
            together[key] = list(dict.fromkeys(reason for reasons in values for reason in reasons))
        elif key in READINGS:
            together[key] = [min(low for low, _ in values), max(high for _, high in values)]
        else:
            together[key] = max(values, default=None)
    return together or None


def disturbed_gpu(summary: dict[str, Any] | None) -> str:
    """Why times that were taken on a GPU are invalid; empty if they are valid."""
    if not summary:
        return ""
    if number := summary.get("other_processes"):
        return f"{number} other process{'es' * (number > 1)} used the GPU"
    if summary.get("busy_before_percent"):
        return f"the GPU was {summary['busy_before_percent']} % busy with something else"
    return f"the GPU was throttled: {', '.join(summary['throttled_by'])}" if summary["throttled_by"] else ""


def sentence(summary: dict[str, Any]) -> str:
    """The summary of a GPU in words."""
    texts = {"sm_clock_mhz": "SM clock {} MHz", "power_watts": "{} W", "temperature_celsius": "{} °C"}
    words = [
        text.format(" … ".join(f"{value:.0f}" for value in summary[key]))
        for key, text in texts.items()
        if key in summary
    ]
    others = summary["other_processes"]
    words.append(f"other processes on it: {'unknown' if others is None else others}")
    words += ["power cap reached"] * summary["power_capped"]
    words.append(f"throttled by: {', '.join(summary['throttled_by']) or 'nothing'}")
    return ", ".join(words)
