"""What the experiment runs on: device, threads and versions, found out without importing a framework.

`environment.json` holds what results may depend on, and nothing that changes from minute to minute. So DVC reruns
nothing on an unchanged machine, and everything on another machine.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import gpus
from pipeline.errors import UserError
from pipeline.running.machine import available_cpus, cpu_name

if TYPE_CHECKING:
    from pipeline.params import Params

# Variables that may change kernels or their order, and so the last bits of a result; and exceptions. The prefix TF_
# alone would also match Terraform's variables, which may hold passwords.
CHANGE_BITS = (
    r"ATEN_|BLIS_|CUBLAS_|CUDNN_|DNNL_|GLIBC_T|MKL_|NPY_|NVIDIA_TF32|OMP_|ONEDNN_|OPENBLAS_|"
    r"TF_(CUDNN|DETERMINISTIC|DISABLE|ENABLE|GPU|USE|XLA)_|TORCH_|XLA_"
)
CHANGE_NONE = r"OPENBLAS_THREAD_TIMEOUT|OPENBLAS_VERBOSE|TORCH_(CUDA_ARCH_LIST|HOME|LOGS|PYTHON)|.*_NUM_THREADS$"
FACTS = ("cpu_name", "device_name", "driver", "threads", "precision", "deterministic", "python")
OURS = ("numpy", "torch", "tensorflow")  # frameworks of `make setup`; NumPy also draws data


@dataclass(frozen=True)
class Environment:
    """The content of environment.json. Device names are those of the manufacturer; `device` is cpu or cuda:N."""

    device: str
    device_name: str
    cpu_name: str
    driver: str | None
    threads: int
    precision: str
    deterministic: bool
    python: str
    versions: dict[str, str]  # by framework
    # Environment variables that may change the last bits of a result. Runs in a store from before have none.
    variables: dict[str, str] = field(default_factory=dict)


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The hardware, versions and variables that differ between two contents of environment.json, in words."""
    before, after = (
        {name: content.get(name) for name in FACTS} | content.get("versions", {}) | content.get("variables", {})
        for content in (was, now)
    )
    names = [name for name in before | after if before.get(name) != after.get(name)]
    return [f"{name} was {before.get(name, 'not set')}, is {after.get(name, 'not set')}" for name in names]


def framework_of(name: str) -> str:
    """The framework an implementation's name begins with: `torch_loop` is torch's."""
    return name.split("_", 1)[0]


def resolve(
    params: Params, *, setting: str = "params.yaml: device", on_fallback: Callable[[str, bool], None] = lambda *_: None
) -> Environment:
    """The environment that `params` ask for on this machine. `setting` names the setting of the device in messages.
    `on_fallback(reason, doubtful)` is called when `device: auto` chooses the CPU; `doubtful` is true where there may be
    a GPU. Raises UserError when `params` ask for a CUDA device that does not exist or that an installed framework
    cannot use.
    """
    frameworks = {framework_of(name) for name in params.implementations}
    versions = versions_of(frameworks)
    device, device_name, driver = "cpu", cpu_name(), None
    if params.device != "cpu":
        cuda = gpus.find()
        why_not = _why_no_gpu(cuda, frameworks, versions)
        index = int(params.device.partition(":")[2] or 0)
        if not why_not and index < len(cuda.devices):
            device, device_name, driver = f"cuda:{index}", cuda.devices[index].name, cuda.driver
        elif params.device != "auto":
            names = ", ".join(f"cuda:{number} {gpu.name}" for number, gpu in enumerate(cuda.devices))
            raise UserError(
                f"{setting} is {params.device}; found: {why_not or names}. "
                "Set it to auto or cpu, or run `docker compose run --rm gpu` on a machine with an NVIDIA GPU."
            )
        else:
            on_fallback(why_not, cuda.doubtful)
    return Environment(
        device=device,
        device_name=device_name,
        cpu_name=cpu_name(),
        driver=driver,
        threads=available_cpus() if params.threads == "auto" else params.threads,
        precision=params.precision,
        deterministic=params.deterministic,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        versions=versions,
        variables={
            key: value
            for key, value in sorted(os.environ.items())
            if re.match(CHANGE_BITS, key) and not re.match(CHANGE_NONE, key)
        },
    )


def check_imported(environment: Environment) -> None:
    """Raises UserError when a framework that this process has imported is not the one that environment.json names."""
    for name in environment.versions.keys() & sys.modules.keys():
        module, version = sys.modules[name], environment.versions[name]
        imported = str(getattr(module, "__version__", version))
        if imported.partition("+")[0] != version.partition("+")[0]:
            raise UserError(
                f"environment.json names {name} {version}, but {imported} was imported, from {module.__file__}. "
                "Unset PYTHONPATH, or activate the environment that you want, and run `dvc repro`."
            )


def _why_no_gpu(cuda: gpus.Gpus, frameworks: set[str], versions: dict[str, str]) -> str:
    """Why some framework of the experiment cannot use a GPU; empty if all can."""
    if not cuda.devices:
        return cuda.absence
    cpu_builds = [f"{name} {version}" for name, version in versions.items() if name in frameworks and "+cpu" in version]
    if not cpu_builds:
        return ""
    names = ", ".join(f"cuda:{number} {gpu.name}" for number, gpu in enumerate(cuda.devices))
    return f"{names}, but {' and '.join(cpu_builds)} cannot use CUDA (`docker compose run --rm gpu` can)"


def runs_here(framework: str) -> bool:
    """Whether this interpreter is the one that TORCH_PYTHON or TENSORFLOW_PYTHON names, or neither is set."""
    python = os.environ.get(f"{framework.upper()}_PYTHON")
    return not python or Path(sys.prefix) == Path(python).parent.parent


def enter_interpreter(framework: str) -> None:
    """Replace this process by the same command in the framework's interpreter, if that is another interpreter.

    The CUDA builds of the two frameworks cannot share an environment, so the GPU image has one for each.
    """
    if runs_here(framework):
        return
    python = os.environ[f"{framework.upper()}_PYTHON"]
    binaries = Path(python).parent
    environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "VIRTUAL_ENV": str(binaries.parent)}
    environment.setdefault("PIPELINE_PYTHON", sys.executable)  # the interpreter that has DVC and MLflow
    os.execve(python, [python, *sys.orig_argv[1:]], environment)


def versions_of(frameworks: set[str]) -> dict[str, str]:
    """Versions of the frameworks. A CPU build is marked +cpu, also TensorFlow's, whose own version does not show it. A
    framework that a user added need not be a package, and then has no version. Raises UserError when NumPy is missing,
    or one of `frameworks` that `make setup` installs.
    """
    versions: dict[str, str] = {}
    for framework in [*OURS, *sorted(frameworks - set(OURS))]:
        for package in (framework, f"{framework}-cpu"):
            for distribution in _distributions(framework, package)[:1]:  # of several Python imports the first
                versions[framework] = distribution.version + ("+cpu" if package.endswith("-cpu") else "")
    missing = ({"numpy"} | (frameworks & set(OURS))) - versions.keys()
    if missing:
        raise UserError(
            f"{' and '.join(sorted(missing))} cannot be found. Run `make setup`, then activate .venv; "
            "or remove the lessons that need it from params.yaml."
        )
    return versions


def _distributions(framework: str, package: str) -> list[Distribution]:
    python = os.environ.get(f"{framework.upper()}_PYTHON")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    path = [str(Path(python).parent.parent / "lib" / version / "site-packages")] if python else sys.path
    return list(distributions(name=package, path=path))
