"""The NVIDIA GPUs of this machine, as their driver tells them through NVML.

NVML numbers GPUs as they are on the PCI bus, and so does CUDA here (CUDA_DEVICE_ORDER, pipeline/__init__.py). A machine
without the package nvidia-ml-py is taken for one without a GPU.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

try:
    import pynvml
except ImportError:
    pynvml: Any = None

NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")  # of a driver, on Linux and in WSL


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
