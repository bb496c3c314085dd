"""What a sweep buys and costs: python -m benchmarks.sweep speed | overhead | scale [--experiments N]

speed     eight experiments of all lessons at tiny params: `make sweep SHARE=1` on two CPUs, against the same ones one
          after another on one CPU.
overhead  what one of these takes in a sweep of one beyond its `dvc repro`.
scale     a thousand experiments whose one stage does nothing: the driver's memory, how fast it dispatches, what each
          takes to collect, and how long DVC then takes to show them.

All work in repositories of their own in a temporary folder, with a node's folder of its own.
"""

import _thread
import argparse
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import yaml

TESTS = Path(__file__).parent.parent / "tests"
BIN = Path(sys.executable).parent
NOTHING = {"stages": {"nothing": {"cmd": "true", "params": ["number"]}}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "overhead", "scale"])
    parser.add_argument("--experiments", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--collect", type=int, default=0, help="stop when so many have come home")
    options = parser.parse_args()
    os.environ["PATH"] = f"{BIN}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory(prefix="sw") as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        if options.what == "speed":
            speed(Path(folder), options.experiments or 8, options.repeats)
        elif options.what == "overhead":
            overhead(Path(folder), options.repeats)
        else:
            scale(Path(folder), options.experiments or 1000, options.collect or options.experiments or 1000)


def speed(folder: Path, experiments: int, repeats: int) -> None:
    """Serial and parallel, interleaved; the first experiment of either draws the data for the rest."""
    cpu = str(min(os.sched_getaffinity(0)))
    seeds = ",".join(map(str, range(experiments)))
    ratios = []
    for repeat in range(repeats):
        serial, swept = (tiny(folder / f"{name}-{repeat}") for name in ("serial", "swept"))
        begun = time.perf_counter()
        for seed in range(experiments):
            override = ["-S", f"seed={seed}", "-S", "benchmark.processes=0"]
            quietly(["taskset", "-c", cpu, "dvc", "exp", "run", *override], serial)
        one_after_another = time.perf_counter() - begun
        quietly(["dvc", "exp", "run", "--queue", "-S", f"seed={seeds}"], swept)
        os.environ["TMPDIR"] = str(folder / f"nodes-{repeat}")  # or what an earlier sweep left would be found
        Path(os.environ["TMPDIR"]).mkdir()
        begun = time.perf_counter()
        said = quietly([sys.executable, "-m", "commands.sweep", "1"], swept)
        side_by_side = time.perf_counter() - begun
        ratios.append(one_after_another / side_by_side)
        print(f"{experiments} experiments: {one_after_another:.1f} s one after another on one CPU,")
        print(
            f"  {side_by_side:.1f} s in a sweep of two, MLflow included in both: {ratios[-1]:.2f} times as fast",
            flush=True,
        )
        print(*(line for line in said.splitlines() if ": done on" in line), sep="\n")
    print(f"times as fast: median {median(ratios):.2f} of {', '.join(f'{each:.2f}' for each in ratios)}")


def overhead(folder: Path, repeats: int) -> None:
    beyond = [pair(tiny(folder / f"alone-{repeat}")) for repeat in range(repeats)]
    print(f"beyond its dvc repro: median {median(beyond):.1f} s of {', '.join(f'{each:.1f}' for each in beyond)}")


def pair(clone: Path) -> float:
    """Seconds of an experiment in a sweep of one, on a CPU of its own, beyond `dvc repro` of the same on one CPU."""
    cpu = str(min(os.sched_getaffinity(0)))
    os.environ["TMPDIR"] = f"{clone}-node"
    Path(os.environ["TMPDIR"]).mkdir()
    quietly(["dvc", "exp", "run", "--queue", "-S", "seed=77"], clone)
    said = quietly([sys.executable, "-m", "commands.sweep", "1"], clone)
    (swept,) = (float(line.split()[-2]) for line in said.splitlines() if ": done on" in line)
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params |= {"seed": 78, "benchmark": params["benchmark"] | {"processes": 0}}
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    begun = time.perf_counter()
    environment = os.environ | {"PIPELINE_SWEEP": "shared"}  # as in a sweep, MLflow is not told by the pipeline
    subprocess.run(["taskset", "-c", cpu, "dvc", "repro"], cwd=clone, env=environment, check=True, capture_output=True)
    serial = time.perf_counter() - begun
    print(f"one experiment: {swept:.1f} s in a sweep, dvc repro {serial:.1f} s", flush=True)
    return swept - serial


def scale(folder: Path, experiments: int, collect: int) -> None:
    from pipeline.sweep import queue
    from pipeline.sweep.cluster import cluster
    from pipeline.sweep.display import Display
    from pipeline.sweep.driver import LOGS, _Sweep

    repository = folder / "repository"
    repository.mkdir()
    quietly(["git", "init", "-q"], repository)
    for key in ("user.name", "user.email"):
        quietly(["git", "config", key, "benchmark"], repository)
    quietly(["dvc", "init", "-q"], repository)
    quietly(["dvc", "config", "core.analytics", "false"], repository)
    (repository / "dvc.yaml").write_text(yaml.safe_dump(NOTHING))
    (repository / "params.yaml").write_text("number: -1\nimplementations: {}\nbenchmark: {processes: 0}\n")
    quietly(["git", "add", "-A"], repository)
    quietly(["git", "commit", "-qm", "nothing"], repository)
    begun = time.perf_counter()
    quietly(["dvc", "exp", "run", "--queue", "-S", f"number=range(0,{experiments})"], repository)
    print(f"{experiments} experiments queued by DVC in {time.perf_counter() - begun:.0f} s", flush=True)

    os.chdir(repository)
    begun = time.perf_counter()
    queued = queue.queued()
    print(f"read from the queue in {time.perf_counter() - begun:.1f} s: {len(queued)}")
    LOGS.mkdir(parents=True, exist_ok=True)
    with (
        cluster(1) as ray,
        Display(experiments) as display,
        Path(os.devnull).open("w") as nowhere,
        ThreadPoolExecutor(1) as sender,
    ):
        display.console.file = nowhere
        before = memory()
        running = _Sweep(ray, display, 1, ("nothing",), sender)
        watch = Watch(running, experiments, collect)
        begun = time.perf_counter()
        with suppress(KeyboardInterrupt):  # as Ctrl-C, when enough have come home
            running.run(queued)
        seconds, home = time.perf_counter() - begun, len(running.home)
        watch.ended = True
        watch.join()
    print(f"{home} came home in {seconds:.0f} s, {seconds / home:.2f} s each on two CPUs")
    print(f"dispatched in {watch.dispatched:.1f} s: {experiments / watch.dispatched:.0f} a second")
    print(f"the driver's memory: {before / 1e6:.0f} MB before, at most {watch.peak / 1e6:.0f} MB")
    for first, last, each in watch.collecting():
        print(f"  experiments {first} to {last}: {1e3 * each:.0f} ms of the driver's CPU time each")
    for command in (
        ["dvc", "exp", "show", "--csv"],
        ["dvc", "exp", "show", "--csv"],  # again: DVC keeps what it has read
        ["dvc", "exp", "list"],
    ):
        begun = time.perf_counter()
        lines = quietly(command, repository).count("\n")
        print(f"{' '.join(command)}: {time.perf_counter() - begun:.1f} s, {lines} lines", flush=True)


class Watch(threading.Thread):
    """The driver's memory, and its CPU time by the number of experiments that have come home."""

    def __init__(self, running: Any, experiments: int, collect: int) -> None:
        super().__init__(daemon=True)
        self.running, self.experiments, self.ended = running, experiments, False
        self.collect = collect if collect < experiments else 0
        self.peak, self.dispatched, self.cpu = 0, 0.0, {}
        self.start()

    def run(self) -> None:
        begun = time.perf_counter()
        while not self.ended:
            self.peak = max(self.peak, memory())
            if not self.dispatched and len(self.running.pending) + len(self.running.home) >= self.experiments:
                self.dispatched = time.perf_counter() - begun
            if self.dispatched:
                self.cpu.setdefault(len(self.running.home), time.process_time())
            if self.collect and len(self.running.home) >= self.collect:
                self.ended = True
                _thread.interrupt_main()
            time.sleep(0.05)

    def collecting(self) -> list[tuple[int, int, float]]:
        counts = sorted(self.cpu)
        parts = [counts[round(part * (len(counts) - 1) / 4)] for part in range(5)]
        return [
            (first, last, (self.cpu[last] - self.cpu[first]) / (last - first))
            for first, last in pairwise(parts)
            if last > first
        ]


def memory() -> int:
    """Of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def tiny(clone: Path) -> Path:
    """A clone of this commit with the tests' small sizes, committed."""
    small = runpy.run_path(str(TESTS / "conftest.py"))["TINY"]
    quietly(["git", "clone", "-q", str(Path(__file__).parent.parent), str(clone)], Path())
    for key in ("user.name", "user.email"):
        quietly(["git", "config", key, "benchmark"], clone)
    params = yaml.safe_load((clone / "params.yaml").read_text())
    (clone / "params.yaml").write_text(yaml.safe_dump(params | small, sort_keys=False))
    quietly(["git", "rm", "-q", "dvc.lock"], clone)
    quietly(["git", "commit", "-qam", "tiny"], clone)
    return clone


def quietly(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
