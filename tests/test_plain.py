"""The plain loops do what the lessons do; the benchmark of the two prints its table."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from conftest import HOST, REPOSITORY, Lesson

from pipeline.contract import load_runtime
from pipeline.records import read_rows


def test_a_plain_loop_takes_the_steps_of_the_lesson(lesson: Lesson):
    plain = import_module(f"benchmarks.plain.{lesson.name}").Implementation(
        lesson.initial, learning_rate=0.1, device=load_runtime(lesson.name).start(HOST)
    )
    ours = lesson.create()
    plain.load(lesson.batches)
    ours.load(lesson.batches)
    np.testing.assert_allclose(plain.train(3), lesson.train(ours, 3), rtol=1e-9)
    for key, weight in ours.weights().items():
        np.testing.assert_allclose(plain.weights()[key], weight, rtol=1e-9, atol=1e-12)


def test_the_benchmark_sets_the_lesson_beside_the_floor_and_the_plain_loop(tmp_path: Path):
    # On one CPU: threads that wait for each other while other tests run would take seconds.
    cpu = str(min(os.sched_getaffinity(0)))
    command = [sys.executable, "-m", "benchmarks.speed", "--only", "numpy_arrays", "--at", "small", "--seconds", "0.05"]
    done = subprocess.run(
        ["taskset", "-c", cpu, *command, "--output", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("numpy_arrays") and "≤" in line)
    _, floor, blas, plain, plain_multiple, ours, multiple, interval, *_ = line.split()
    assert blas in ("numpy", "torch")
    assert float(plain) / float(floor) == pytest.approx(float(plain_multiple), rel=0.05)
    assert float(ours) / float(floor) == pytest.approx(float(multiple), rel=0.05)
    low, high = map(float, interval.strip("()").split("–"))
    assert low <= float(multiple) <= high
    assert json.loads((tmp_path / "machine.json").read_text())["environment"]["threads"] == 1
    samples = read_rows(tmp_path / "samples.csv")
    contestants = {sample["contestant"] for sample in samples}
    assert contestants == {"floor_numpy", "floor_torch", "plain", "step", "self", "handed", "apart"}
    rounds = {sample["round"] for sample in samples if sample["contestant"] == "step"}
    assert len(rounds) >= 20
