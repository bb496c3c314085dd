"""What the experiment runs on: device, threads and versions, found out without importing a framework.

`environment.json` holds what results may depend on and nothing that changes from one minute to the next, so that an
unchanged machine leaves everything downstream alone, and another machine runs it again.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.params import Params


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
    versions: dict[str, str]

    def device_of(self, framework: str) -> tuple[str, str]:
        """The device that a framework runs on, and its name. NumPy knows the CPU alone."""
        return ("cpu", self.cpu_name) if framework == "numpy" else (self.device, self.device_name)


class Gpus(NamedTuple):
    """The NVIDIA GPUs that CUDA would show, by their names, and the driver's version; or why there are none."""

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
    versions = _versions()
    gpus = _gpus()
    cpu_builds = [
        f"{name} {versions[name]}"
        for name in ("torch", "tensorflow")
        if name in frameworks and ("+cpu" in versions[name])
    ]
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


def _versions() -> dict[str, str]:
    """Versions of what computes. A CPU build is marked +cpu, also TensorFlow's, whose version does not say it."""
    found: dict[str, str] = {}
    for framework, packages in (
        ("numpy", ["numpy"]),
        ("torch", ["torch"]),
        ("tensorflow", ["tensorflow", "tensorflow-cpu"]),
    ):
        for package in packages:
            for distribution in _distributions(framework, package):
                suffix = "+cpu" if package == "tensorflow-cpu" else ""
                found[framework] = distribution.version + suffix
    missing = {"numpy", "torch", "tensorflow"} - found.keys()
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
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            handles = _visible(handles, visible.split(","))
        absence = f"no NVIDIA GPU that CUDA_VISIBLE_DEVICES={visible} lets through" if visible else "no NVIDIA GPU"
        return Gpus([pynvml.nvmlDeviceGetName(each) for each in handles], pynvml.nvmlSystemGetDriverVersion(), absence)
    finally:
        pynvml.nvmlShutdown()


def _visible(handles: list, wanted: list[str]) -> list:
    """CUDA_VISIBLE_DEVICES as CUDA reads it: indices or beginnings of UUIDs; the first unknown one ends the list."""
    import pynvml

    uuids = [pynvml.nvmlDeviceGetUUID(handle) for handle in handles]
    chosen = []
    for token in (each.strip() for each in wanted):
        matches = [handles[int(token)]] if token.isdigit() and int(token) < len(handles) else []
        matches += [handle for handle, uuid in zip(handles, uuids, strict=True) if token and uuid.startswith(token)]
        if not matches:
            break
        chosen.append(matches[0])
    return chosen


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
