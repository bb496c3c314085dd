"""What the experiment runs on: device, threads and versions, found out without importing a framework.

`environment.json` holds what results may depend on and nothing that changes from one minute to the next, so that an
unchanged machine leaves everything downstream alone, and another machine runs it again.
"""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.params import Params

OURS = ("numpy", "torch", "tensorflow")  # the frameworks that `make setup` installs


@dataclass(frozen=True)
class Environment:
    """The content of environment.json. Device names are the makers' own; `device` is cpu or cuda:N."""

    device: str
    device_name: str
    cpu_name: str
    driver: str | None
    threads: int
    precision: str
    deterministic: bool
    python: str
    versions: dict[str, str]  # of what computes, by framework


class Device(NamedTuple):
    uuid: str
    name: str


class Gpus(NamedTuple):
    """The NVIDIA GPUs that CUDA would show, by their names, and the driver's version; or why there are none.

    NVML numbers GPUs as they are on the PCI bus, and so does CUDA here (CUDA_DEVICE_ORDER, pipeline/__init__.py).
    """

    names: list[str]
    driver: str | None
    absence: str


def framework_of(name: str) -> str:
    """The framework an implementation's name begins with: `torch_loop` is torch's."""
    return name.split("_", 1)[0]


def resolve(params: Params) -> Environment:
    """The environment that `params` ask for on this machine.

    Raises UserError when they ask for a CUDA device that is not there or that an installed framework cannot use.
    """
    frameworks = {framework_of(name) for name in params.implementations}
    versions = _versions(frameworks)
    gpus = _gpus()
    cpu_builds = [f"{name} {version}" for name, version in versions.items() if name in frameworks and "+cpu" in version]
    device, device_name = "cpu", cpu_name()
    if params.device != "cpu" and gpus.names and not cpu_builds:
        index = int(params.device.partition(":")[2] or 0)
        if index < len(gpus.names):
            device, device_name = f"cuda:{index}", gpus.names[index]
    if params.device.startswith("cuda") and device == "cpu":
        found = ", ".join(f"cuda:{index} {name}" for index, name in enumerate(gpus.names)) or gpus.absence
        if gpus.names and cpu_builds:
            found += f", but {' and '.join(cpu_builds)} cannot use CUDA"
        raise UserError(
            f"params.yaml: device is {params.device}; found: {found}. "
            "Set device to auto or cpu, or run `docker compose run --rm gpu` on a machine with an NVIDIA GPU."
        )
    return Environment(
        device=device,
        device_name=device_name,
        cpu_name=cpu_name(),
        driver=gpus.driver if device != "cpu" else None,
        threads=available_cpus() if params.threads == "auto" else params.threads,
        precision=params.precision,
        deterministic=params.deterministic,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        versions=versions,
    )


def enter_interpreter(framework: str) -> None:
    """Go on in the interpreter that TORCH_PYTHON or TENSORFLOW_PYTHON names, if one is set and it is not this one.

    The CUDA builds of the two frameworks cannot share an environment, so the GPU image has one for each.
    """
    python = os.environ.get(f"{framework.upper()}_PYTHON")
    if python and Path(sys.prefix) != Path(python).parent.parent:
        binaries = Path(python).parent
        environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "VIRTUAL_ENV": str(binaries.parent)}
        environment.setdefault("PIPELINE_PYTHON", sys.executable)  # which has DVC and MLflow
        os.execve(python, [python, *sys.orig_argv[1:]], environment)


def available_cpus() -> int:
    """CPUs that this process may use: its affinity, and a container's quota (cgroup v2)."""
    cpus = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, period = quota.read_text().split()
        if limit != "max":
            cpus = min(cpus, max(1, int(limit) // int(period)))
    return cpus


def available_memory() -> int:
    """Bytes of memory that this process may still take: what the machine has left, or a container's limit leaves."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    free = next(int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:")
    for limit, used, cached in (  # cgroups, version 2 and version 1
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        path = Path("/sys/fs/cgroup", limit)
        if path.is_file() and (bound := path.read_text().strip()) != "max":
            statistics = dict(line.split() for line in path.with_name("memory.stat").read_text().splitlines())
            taken = int(Path("/sys/fs/cgroup", used).read_text()) - int(statistics[cached])
            free = min(free, int(bound) - taken)
    return free


def _versions(frameworks: set[str]) -> dict[str, str]:
    """Versions of what computes. A CPU build is marked +cpu, also TensorFlow's, whose version does not say it.

    A framework of the user's own need not be a package, and then has no version.
    """
    found: dict[str, str] = {}
    for framework in [*OURS, *sorted(frameworks - set(OURS))]:
        for package in (framework, f"{framework}-cpu"):
            for distribution in _distributions(framework, package):
                found[framework] = distribution.version + ("+cpu" if package.endswith("-cpu") else "")
    missing = set(OURS) - found.keys()
    if missing:
        raise UserError(f"{' and '.join(sorted(missing))} cannot be found. Run `make setup`, then activate .venv.")
    return found


def _distributions(framework: str, package: str) -> list[Distribution]:
    python = os.environ.get(f"{framework.upper()}_PYTHON")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    path = [str(Path(python).parent.parent / "lib" / version / "site-packages")] if python else sys.path
    return list(distributions(name=package, path=path))


def _gpus() -> Gpus:
    import pynvml  # here alone: a benchmark on a machine with torch and NumPy and nothing else can do without

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Gpus([], None, f"no NVIDIA driver ({error})")
    try:
        devices = [_devices(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(pynvml.nvmlDeviceGetCount())]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        shown = [each[0] for each in devices] if visible is None else visible_devices(devices, visible.split(","))
        absence = "no NVIDIA GPU" if visible is None else f"no NVIDIA GPU that CUDA_VISIBLE_DEVICES={visible} names"
        return Gpus([each.name for each in shown], pynvml.nvmlSystemGetDriverVersion(), absence)
    finally:
        pynvml.nvmlShutdown()


def _devices(gpu: Any) -> list[Device]:
    """What CUDA can use of a GPU: all of it, or in MIG mode its instances, each a part of the GPU."""
    import pynvml

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


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
