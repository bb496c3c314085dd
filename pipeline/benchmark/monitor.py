"""What a GPU did while it was measured, and whether a time that was taken there means anything."""

from contextlib import suppress
from typing import Any

from pipeline import gpus
from pipeline.clock import now, pause

IDLE_SECONDS = 1.5  # for which NVML goes on to report as busy a GPU that was used a moment ago
# Reasons for a low clock that say nothing of what the GPU was asked to do, by their bits in nvml.h. The power cap is
# none of them: large matrix products reach it on any GPU, so what a step takes under it is what it takes there.
THROTTLED = {0x08: "hardware slowdown", 0x20: "too hot", 0x40: "too hot (hardware)", 0x80: "power brake"}
POWER_CAP = 0x04


class Monitor:
    """What a GPU does while it is measured: its clock, power and temperature, why it is slow, and who else uses it.

    Make it before the process uses the GPU: other processes there are counted then, and again at the end. NVML may know
    less of a GPU, or nothing at all; what it does not tell is left out.
    """

    def __init__(self, device: str) -> None:
        """`device` is cpu or cuda:N; of a CPU there is nothing to tell."""
        self.nvml: Any = gpus.pynvml
        self.seen: dict[str, list[float]] = {}
        self.reasons = 0
        self.handle: Any = None
        self.facts: dict[str, Any] = {}
        devices = gpus.find().devices if device != "cpu" else []
        index = int(device.partition(":")[2] or 0)
        if index < len(devices):
            with suppress(self.nvml.NVMLError):
                self.nvml.nvmlInit()
                self.handle = self.nvml.nvmlDeviceGetHandleByUUID(devices[index].uuid)
                self.facts = {"other_processes": self._others(), "busy_before_percent": self._busy()}

    def _others(self) -> int | None:
        with suppress(self.nvml.NVMLError):
            return len(self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle))
        return None

    def _busy(self) -> int | None:
        """How busy the GPU is, in per cent, once what this benchmark did there a moment ago is over."""
        deadline = now() + IDLE_SECONDS
        with suppress(self.nvml.NVMLError):
            while (busy := self.nvml.nvmlDeviceGetUtilizationRates(self.handle).gpu) and now() < deadline:
                pause(0.1)
            return busy
        return None

    def read(self) -> None:
        """Note what the GPU does now: to be called right after it was used, while no clock runs."""
        if self.handle is None:
            return
        for key, ask in {
            "sm_clock_mhz": lambda: self.nvml.nvmlDeviceGetClockInfo(self.handle, self.nvml.NVML_CLOCK_SM),
            "power_watts": lambda: self.nvml.nvmlDeviceGetPowerUsage(self.handle) / 1000,
            "temperature_celsius": lambda: self.nvml.nvmlDeviceGetTemperature(
                self.handle, self.nvml.NVML_TEMPERATURE_GPU
            ),
        }.items():
            with suppress(self.nvml.NVMLError):
                value = ask()
                self.seen.setdefault(key, []).append(value)
        with suppress(self.nvml.NVMLError):
            self.reasons |= self.nvml.nvmlDeviceGetCurrentClocksEventReasons(self.handle)

    def summary(self) -> dict[str, Any] | None:
        """Lowest and highest of each figure, and the reasons for which the GPU was slow; None of a CPU."""
        if self.handle is None:
            return None
        if (after := self._others()) is not None:  # of which this process is one
            self.facts["other_processes"] = max(self.facts["other_processes"] or 0, after - 1)
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


def disturbance(summary: dict[str, Any] | None) -> str:
    """Why times that were taken on a GPU mean nothing, or nothing."""
    if not summary:
        return ""
    if summary.get("other_processes"):
        number = summary["other_processes"]
        return f"{number} other process{'es' * (number > 1)} used the GPU"
    if summary.get("busy_before_percent"):
        return f"the GPU was {summary['busy_before_percent']} % busy with something else"
    return f"the GPU was throttled: {', '.join(summary['throttled_by'])}" if summary["throttled_by"] else ""


def sentence(summary: dict[str, Any]) -> str:
    """What a GPU did, in words."""
    ranges = {"sm_clock_mhz": "SM clock {} MHz", "power_watts": "{} W", "temperature_celsius": "{} °C"}
    words = [
        text.format(" … ".join(f"{value:.0f}" for value in summary[key]))
        for key, text in ranges.items()
        if key in summary
    ]
    others = summary["other_processes"]
    words.append(f"other processes on it: {'unknown' if others is None else others}")
    words += ["power cap reached"] * summary["power_capped"]
    words.append(f"throttled by: {', '.join(summary['throttled_by']) or 'nothing'}")
    return ", ".join(words)
