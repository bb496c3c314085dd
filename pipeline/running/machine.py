"""The CPUs and the memory that this process may use: its affinity, and the limits of control groups (cgroup v1 and
v2)."""

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def available_cpus() -> int:
    """CPUs that this process may use: its affinity, and the quota of each cgroup that it is in (version 2 or 1)."""
    return max(1, int(min([len(os.sched_getaffinity(0)), *_quotas()])))


def _quotas() -> Iterator[float]:
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = Path("/sys/fs/cgroup", controllers)
        # A container may see only its own group, at the root, although /proc shows the path of the host.
        inner = mount / path.strip("/")
        for folder in (folder for folder in (inner, *inner.parents) if folder.is_relative_to(mount)):
            with suppress(OSError, ValueError):  # there is no quota: no file, "max" or -1
                names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
                words = " ".join((folder / name).read_text(encoding="utf-8") for name in names).split()
                if int(words[0]) > 0:
                    yield int(words[0]) / int(words[1])


def available_memory() -> int:
    """Bytes of memory that this process may still take: those free on the machine, or within the container's limit."""
    import psutil

    free = psutil.virtual_memory().available
    for limit, used, cached in (  # cgroups, version 2 and version 1
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        path = Path("/sys/fs/cgroup", limit)
        if path.is_file() and (bound := path.read_text(encoding="utf-8").strip()) != "max":
            statistics = dict(
                line.split() for line in path.with_name("memory.stat").read_text(encoding="utf-8").splitlines()
            )
            taken = int(Path("/sys/fs/cgroup", used).read_text(encoding="utf-8")) - int(statistics[cached])
            free = min(free, int(bound) - taken)
    return free


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
