"""The benchmark of scale runs to its end, and what it watches is memory, not the pages of a file."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY

from pipeline.files import read_rows


def _scale(*arguments: str) -> subprocess.CompletedProcess[str]:
    # On one CPU: threads that wait for each other while other tests run would take seconds.
    cpu = str(min(os.sched_getaffinity(0)))
    command = ["taskset", "-c", cpu, sys.executable, "-m", "benchmarks.scale", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)


def test_generation_training_and_memory_of_a_small_data_set(tmp_path: Path):
    output = tmp_path / "figures"
    done = _scale("--examples", "3000", "--only", "torch_loop", "--folder", str(tmp_path), "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == [output]  # the data are gone
    for line in ("recurrent: up to 3,000 examples, 0.0 GB", "train@torch_loop", "torch_loop", "generate: "):
        assert any(found.startswith(line) for found in done.stdout.splitlines()), done.stdout
    runs = {run["stage"]: run for run in read_rows(output / "runs.csv")}
    assert set(runs) == {"generate", "train@torch_loop", "framework@torch_loop"}
    assert all(float(run["seconds"]) > 0.1 and int(run["rss_anon"]) > 10e6 for run in runs.values())
    turns = read_rows(output / "turns.csv")
    assert {turn["candidate"] for turn in turns} == {"memory", "streamed", "disk", "generate", "generator"}
    assert {turn["examples"] for turn in turns if turn["name"] == "torch_loop"} == {str(3000 // 256 * 256)}


def test_data_that_the_disk_has_no_room_for_are_refused(tmp_path: Path):
    done = _scale("--examples", str(10**12), "--folder", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    assert "GB free" in done.stderr
    assert not list(tmp_path.iterdir())


MEMORY = """
import os, sys
import numpy as np
from benchmarks.scale import _rss_anon
before = _rss_anon(os.getpid())
mapped = np.memmap(sys.argv[1], np.uint8, "r")
mapped.sum()
of_map = _rss_anon(os.getpid()) - before
copy = np.array(mapped)
print(of_map / 2**20, (_rss_anon(os.getpid()) - before) / 2**20)
"""


def test_memory_is_counted_and_a_mapped_file_is_not(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"1" * 64 * 2**20)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "file")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    of_map, with_copy = map(float, done.stdout.split())
    assert of_map < 16
    assert with_copy > 48
