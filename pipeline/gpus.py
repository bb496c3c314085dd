"""The NVIDIA GPUs of this machine, as their driver lists them through NVML.

NVML numbers GPUs as they are on the PCI bus, and so does CUDA here (CUDA_DEVICE_ORDER, pipeline/__init__.py).
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pynvml

NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")  # of a driver, on Linux and in WSL


class Device(NamedTuple):
    uuid: str
    name: str


class Gpus(NamedTuple):
    """The GPUs that CUDA would show and the driver's version; or why there are none.

    `doubtful` is true where a driver exists but fails to answer: then there may be a GPU.
    """

    devices: list[Device]
    driver: str | None
    absence: str
    doubtful: bool = False


def find() -> Gpus:
    """Raises nothing: `absence` says which error NVML had."""
    nodes = [node for node in NODES if Path(node).exists()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        pynvml.nvmlInit()
        try:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            devices = [_device(handle) for handle in handles]
            if visible is not None:
                devices = visible_devices(devices, visible.split(","))
            driver = pynvml.nvmlSystemGetDriverVersion()
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        no_driver: Any = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        if error.value in no_driver and not nodes:  # pyright: ignore[reportAttributeAccessIssue]
            return Gpus([], None, f"no NVIDIA driver ({error})")
        present = f", though {' and '.join(nodes)} {'is' if len(nodes) == 1 else 'are'} there" if nodes else ""
        return Gpus([], None, f"the NVIDIA driver does not answer: {error}{present}", doubtful=True)
    absence = "no NVIDIA GPU" if visible is None else f"no NVIDIA GPU that CUDA_VISIBLE_DEVICES={visible} names"
    return Gpus(devices, driver, absence)


def _device(handle: Any) -> Device:
    return Device(pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle))


def visible_devices(devices: list[Device], tokens: list[str]) -> list[Device]:
    """CUDA_VISIBLE_DEVICES as CUDA reads it: indices, beginnings of UUIDs, or the UUID of a MIG instance, a part of a
    GPU. The first unknown token ends the list, and of MIG instances CUDA uses one at a time."""
    if tokens[0].startswith("MIG-"):
        with suppress(pynvml.NVMLError):
            return [_device(pynvml.nvmlDeviceGetHandleByUUID(tokens[0]))]
    chosen: list[Device] = []
    for token in map(str.strip, tokens):
        named = devices[int(token) :] if token.isdigit() else [gpu for gpu in devices if gpu.uuid.startswith(token)]
        if not token or not named:
            break
        chosen.append(named[0])
    return chosen
