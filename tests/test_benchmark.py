"""The benchmark: which candidates are interleaved, in which order, and what is counted. `make test-benchmark`
(test_calibration.py) tests real times."""

import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import HOST, LESSONS, REPOSITORY, TINY, Lesson, quiet
from fake_cuda import GPU

from benchmarks import bench, gpu
from pipeline import clock, files, provenance
from pipeline.benchmark import plan as plans
from pipeline.benchmark import process, samples
from pipeline.benchmark.benchmark import LEAST_PROCESSES, NARROW, NO_HEADLINES, TIME_UP, Server, Session, benchmark
from pipeline.benchmark.candidates import Candidate
from pipeline.benchmark.headlines import HEADLINES
from pipeline.benchmark.monitor import Monitor
from pipeline.benchmark.plan import BenchmarkConfig, Pair, Size, default_plan
from pipeline.benchmark.process import GPU_WARM_SECONDS, RETAKES, Pace, Task, Turn, _take, calibrated, measure
from pipeline.benchmark.runner import Runner, draw
from pipeline.benchmark.samples import Case, Sample, collect, format_size, parse_size
from pipeline.contract import load_problem
from pipeline.errors import UserError, out_of_memory
from pipeline.params import load_params
from pipeline.results import Conditions

CONFIG = BenchmarkConfig(processes=2, rounds=3, turn_seconds=0.002, seconds=0)
SIZES: dict[str, list[dict[str, int]]] = {
    "two_layer": TINY["problems"]["two_layer"]["benchmark"],
    "recurrent": TINY["problems"]["recurrent"]["benchmark"][1:3],  # lengths 1 … 6 and 6 … 6 of one network
}
TUNED = {"two_layer": "numpy_arrays", "recurrent": "torch_loop"}


def parsed(*texts: str) -> list[Candidate]:
    return [*map(Candidate.parse, texts)]


def taken(plan: list[Size], config: BenchmarkConfig = CONFIG, seed: int = 0) -> list[Sample]:
    return benchmark(plan, config=config, dtype="float32", environment=HOST, seed=seed)[0]


@pytest.fixture(scope="module")
def measured() -> list[Sample]:
    """All lessons at small sizes, with a tuned variant and the matrix products alone."""
    plan = []
    for problem, sizes in SIZES.items():
        names = [name for name in LESSONS if LESSONS[name] == problem]
        candidates = parsed(*names, "matmul/numpy", "matmul/torch", f"tuned/{TUNED[problem]}")
        plan += [Size(problem, case, candidates) for case in sizes]
    return taken(plan, seed=3)


def turns(taken: list[Sample]) -> list[Sample]:
    return [sample for sample in taken if sample.candidate.kind != "build"]


def test_candidate_has_one_text_form():
    for text, candidate in {
        "torch_loop": Candidate("torch_loop"),
        "torch_autograd+tf32": Candidate("torch_autograd", option="tf32"),
        "matmul/torch": Candidate("torch", "matmul"),
        "peers/torch_module+fused": Candidate("torch_module", "peers", "fused"),
    }.items():
        assert Candidate.parse(text) == candidate
        assert str(candidate) == text
        assert candidate.framework == "torch"
    assert Candidate("torch_loop").is_implementation
    assert not Candidate.parse("torch_loop+tf32").is_implementation
    assert [Candidate("x", kind).is_step for kind in ("", "cpu", "matmul", "launch_floor", "build", "capture")] == [
        *(True, True),
        *[False] * 4,
    ]


def test_size_has_one_text_form_and_a_label():
    sizes = SIZES["recurrent"][0]
    assert format_size(sizes) == "batch_size=8 inputs=4 hidden=6 outputs=3 min_length=1 max_length=6"
    assert parse_size(format_size(sizes)) == sizes
    assert Case("recurrent", sizes, {}, {}, False).label == "8 × 4 × 6 × 3, lengths 1 … 6"
    assert Case("two_layer", SIZES["two_layer"][1], {}, {}, False).label == "16 × 20 × 8 × 3"


def test_every_candidate_takes_a_turn_in_every_round(measured: list[Sample]):
    rounds = defaultdict(set)
    for sample in turns(measured):
        rounds[sample[:4]].add(sample.round)
    assert {tuple(numbers) for numbers in rounds.values()} == {tuple(range(CONFIG.rounds))}
    candidates = {sample.candidate for sample in measured}
    assert candidates >= {*parsed(*LESSONS, "tuned/numpy_arrays", "tuned/torch_loop", "matmul/numpy", "matmul/torch")}
    graphs = {name for name in LESSONS if name.startswith("tensorflow")}
    assert {candidate.name for candidate in candidates if candidate.kind == "eager"} == graphs
    assert all(sample.steps > 0 and sample.seconds > 0 and sample.replays == 0 for sample in measured)
    builds = Counter(sample[:4] for sample in measured if sample.candidate.kind == "build")
    assert set(builds.values()) == {1}
    assert len(builds) == CONFIG.processes * sum(len(SIZES[LESSONS[name]]) for name in graphs)


def test_order_differs_in_every_round_and_is_recorded(measured: list[Sample]):
    orders = defaultdict(list)
    for sample in turns(measured):
        if sample.problem == "two_layer":
            orders[sample.size, sample.process, sample.round].append((sample.position, sample.candidate))
    orders = {key: list(dict.fromkeys(order)) for key, order in orders.items()}  # a turn may be repeated
    for order in orders.values():
        assert [position for position, _ in order] == list(range(len(order)))
    assert len({tuple(order) for order in orders.values()}) == len(orders)


def test_sizes_of_one_network_are_interleaved_with_each_other(measured: list[Sample]):
    """The sizes that differ only in their lengths."""
    recurrent = [sample for sample in turns(measured) if sample.problem == "recurrent"]
    first = min(sample.process for sample in recurrent)
    in_a_round = [sample for sample in recurrent if (sample.process, sample.round) == (first, 0)]
    shortest = [parse_size(sample.size)["min_length"] for sample in in_a_round]
    assert shortest != sorted(shortest)
    assert shortest != sorted(shortest, reverse=True)
    assert len({samples.network("recurrent", sizes) for sizes in SIZES["recurrent"]}) == 1
    assert len({samples.network("two_layer", sizes) for sizes in SIZES["two_layer"]}) == 2


def test_same_seed_gives_the_same_order():
    plan = [Size("two_layer", SIZES["two_layer"][0], parsed("numpy_arrays", "self/numpy_arrays", "matmul/numpy"))]
    one, again, other = (
        list(dict.fromkeys((sample.process, sample.round, sample.candidate) for sample in taken(plan, seed=seed)))
        for seed in (1, 1, 2)
    )
    assert one == again != other


def test_written_samples_are_read_unchanged(measured: list[Sample], tmp_path: Path):
    table, facts = tmp_path / "samples.csv", tmp_path / "machine.json"
    files.write_rows(table, samples.HEADER, measured)
    quiet().write(facts)
    benchmark = samples.read(table, facts)
    assert [sample.replays for sample in measured] == [0] * len(measured)
    assert [(case.problem, case.sizes) for case in benchmark.cases] == [
        (problem, sizes) for problem in SIZES for sizes in SIZES[problem]
    ]
    case, above, below = benchmark.cases[0], *parsed("numpy_arrays", "tuned/numpy_arrays")
    assert {len(processes) for processes in case.seconds.values()} == {CONFIG.processes}
    ratio = case.ratio(above, below)
    assert ratio
    assert ratio.low <= ratio.value <= ratio.high
    paces = defaultdict(list)
    for sample in {(*sample[:5],): sample for sample in measured}.values():  # the last turn of a round
        if sample.size == format_size(case.sizes):
            paces[sample.candidate, sample.process].append(sample.seconds / sample.steps)
    processes = sorted({process for _, process in paces})
    assert len(processes) == CONFIG.processes
    logs = [np.log(np.divide(paces[above, process], paces[below, process])) for process in processes]
    assert ratio.value == pytest.approx(np.exp(np.mean(np.median(logs, axis=1))))
    table.write_text("problem,batch_size\ntwo_layer,64\n")  # in the form of an earlier version
    with pytest.raises(UserError, match=r"samples.csv is damaged \(KeyError: 'process'\)"):
        samples.read(table, facts)


# The number of steps in a turn.


class Paced:
    """A runner whose steps take `pace` seconds and whose calls take 50 µs, the calls in `disturbed` 90 ms more."""

    def __init__(self, pace: float, disturbed: set[int], least_steps: int = 1, *, on_gpu: bool = False) -> None:
        self.pace, self.disturbed, self.least_steps, self.on_gpu = pace, disturbed, least_steps, on_gpu
        self.now, self.calls = 0.0, 0
        self.settings = nullcontext

    def run(self, steps: int) -> None:
        self.now += 5e-5 + steps * self.pace + 0.09 * (self.calls in self.disturbed)
        self.calls += 1


def paced(monkeypatch: pytest.MonkeyPatch, runner: Any) -> tuple[int, int]:
    monkeypatch.setattr(clock.time, "perf_counter", lambda: runner.now)
    return calibrated(runner, 0.008, lambda: None)[:2]


@pytest.mark.parametrize("pace", [1e-6, 3e-5, 3e-4, 2e-3])
@pytest.mark.parametrize("disturbed", [{0}, {0, 1}, {1, 2}, {2, 3}, {3, 5}, set(range(1, 40, 2))])
def test_disturbed_call_does_not_change_the_number_of_steps_in_a_turn(
    monkeypatch: pytest.MonkeyPatch, pace: float, disturbed: set[int]
):
    warm_up, steps = paced(monkeypatch, Paced(pace, disturbed))
    assert steps * pace == pytest.approx(0.008, rel=0.15)
    assert warm_up == pytest.approx(steps / 2, abs=1)


def test_long_step_is_warmed_up_and_a_gpu_is_warmed_up_longer(monkeypatch: pytest.MonkeyPatch):
    assert paced(monkeypatch, Paced(0.06, set())) == (1, 1)
    assert paced(monkeypatch, Paced(2.0, set())) == (0, 1)  # it warms itself up
    assert paced(monkeypatch, Paced(1e-3, set(), least_steps=64)) == (64, 64)
    warm_up, steps = paced(monkeypatch, Paced(4e-5, set(), on_gpu=True))
    assert steps * 4e-5 == pytest.approx(0.008, rel=0.1)
    assert warm_up * 4e-5 == pytest.approx(GPU_WARM_SECONDS, rel=0.1)


def test_steal_time_is_not_counted_as_other_processes(monkeypatch: pytest.MonkeyPatch):
    cpus = SimpleNamespace(user=0.0, nice=0.0, system=0.0, idle=0.0, iowait=0.0, irq=0.0, softirq=0.0, steal=0.0)
    times = iter((0.0, 10.0))
    monkeypatch.setattr(psutil, "cpu_times", lambda **_: [cpus])
    monkeypatch.setattr(clock.os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(times))
    with clock.other_processes() as others:
        own_seconds = sum(clock.os.times()[:4])
        cpus.user, cpus.idle, cpus.iowait, cpus.steal = 5.0, 99.0, 99.0, 30.0
        monkeypatch.setattr(clock.os, "times", lambda: (own_seconds, 0, 0, 0, 0))
    assert others == pytest.approx([0.5, 3.0], abs=0.01)


def test_load_of_cpus_outside_the_affinity_is_not_counted(monkeypatch: pytest.MonkeyPatch):
    """The last two of four CPUs belong to another job and are always busy."""
    fields = dict.fromkeys(("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"), 0.0)
    cpus = [SimpleNamespace(**fields) for _ in range(4)]
    times = iter((0.0, 10.0))
    monkeypatch.setattr(psutil, "cpu_times", lambda **_: cpus)
    monkeypatch.setattr(clock.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(clock.os, "times", lambda: (0, 0, 0, 0, 0))
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(times))
    with clock.other_processes() as others:
        cpus[1].user, cpus[2].user, cpus[3].user = 2.0, 10.0, 10.0
    assert others == pytest.approx([0.2, 0.0])


class Disturbed:
    """A runner whose turns have these involuntary context switches and this steal time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, turns: list[tuple[int, float]]) -> None:
        self.turns, self.replays, self.settings = iter(turns), 0, nullcontext
        self.switches, self.stolen = 0, 0.0
        monkeypatch.setattr(process, "disturbances", lambda: (self.switches, self.stolen))

    def run(self, steps: int) -> None:
        if steps == 5:  # timed
            switches, stolen = next(self.turns)
            self.switches, self.stolen = self.switches + switches, self.stolen + stolen


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([(0, 0.0)], 1),
        ([(8, 0.0)], 1),  # slightly more than in undisturbed calls
        ([(9, 0.0), (0, 0.0)], 2),
        ([(0, 0.01), (0, 0.0)], 2),
        ([(50, 0.0)] * (1 + RETAKES), 1 + RETAKES),
    ],
)
def test_disturbed_turn_is_repeated(monkeypatch: pytest.MonkeyPatch, turns: list[tuple[int, float]], expected: int):
    head = Sample("two_layer", "", Candidate("numpy_arrays"), 0, 0, 0, 1, 0.0, 0, 0, 0.0)
    runner: Any = Disturbed(monkeypatch, turns)
    taken = list(_take(Turn(head, runner, Pace(1, 5, 0.01, 3)), 7, 2, lambda: None))
    assert [(sample.switches, sample.stolen) for sample in taken] == turns
    assert {(sample.round, sample.position, sample.steps) for sample in taken} == {(7, 2, 5)}
    assert len(taken) == expected


# When a benchmark stops.


def answered(session: Session, at: int, ratio: float, *, others: float = 0.0) -> None:
    """A process of a group whose first two candidates differ by `ratio`, without a measurement."""
    size, number = session.groups[at].sizes[0], len(session.processes)
    taken = [
        Sample(size.problem, format_size(size.sizes), candidate, number, 0, place, 1, seconds, 0, 0, 0.0)
        for place, (candidate, seconds) in enumerate(zip(size.candidates, (ratio, 1.0), strict=True))
    ]
    conditions = {"cpus_of_other_processes": others, "stolen_cpus": 0.0, "gpu": None}
    rows = [sample._replace(candidate=str(sample.candidate)) for sample in taken]  # type: ignore[arg-type]
    session.take(at, {"samples": rows, "conditions": conditions, "paces": {}})
    session.seconds[at] = 1.0


def session_of(*within: float) -> Session:
    """A network for each number: a pair of candidates whose ratio should be known to ± this number, or no pair for
    0."""
    above, below = parsed("numpy_arrays", "self/numpy_arrays")
    plan = [
        Size(
            "two_layer",
            SIZES["two_layer"][0] | {"hidden": hidden},
            [above, below],
            [Pair(above, below, width)] * bool(width),
        )
        for hidden, width in enumerate(within, 1)
    ]
    return Session(plan, CONFIG, "float32", HOST, seed=0)


def test_benchmark_stops_when_every_headline_is_narrow_enough():
    session = session_of(0.05, 0)
    for at in (0, 1) * CONFIG.processes:
        answered(session, at, 1.2)
    while session.following(left=100) == 0:
        answered(session, 0, 1.2 + 0.01 * (len(session.processes) % 2))
    assert len(session.numbers[0]) == LEAST_PROCESSES
    assert len(session.numbers[1]) == CONFIG.processes
    assert session.stopped == NARROW


def test_wide_headline_gets_processes_until_the_time_limit():
    session = session_of(0.05, 0)
    for at in (0, 1) * CONFIG.processes:
        answered(session, at, 1.2)
    for number in range(20):
        assert session.following(left=100) == 0
        answered(session, 0, 1.2 + 0.3 * (number % 2))
    assert session.following(left=0.5) is None  # the last process took 1 s
    assert session.stopped == TIME_UP


def test_widest_headline_gets_the_next_process():
    session = session_of(0.05, 0.05)
    for number in range(LEAST_PROCESSES):
        answered(session, 0, 1.2 + 0.1 * (number % 2))
        answered(session, 1, 1.2 + 0.2 * (number % 2))
    assert session.following(left=100) == 1


def test_disturbed_process_is_not_counted():
    session = session_of(0)
    answered(session, 0, 1.2)
    answered(session, 0, 1.2, others=1.4)
    assert session.disturbed == {1: "other processes took 1.4 of 2 CPUs"}
    assert session.following(left=100) == 0
    answered(session, 0, 1.2)
    assert session.following(left=100) is None
    assert session.stopped == NO_HEADLINES


def test_process_has_ended_when_its_answer_arrives():
    """Otherwise the next process, in the other interpreter, would begin while this one still uses the GPU."""
    task = Session([Size("two_layer", SIZES["two_layer"][0], parsed("numpy_arrays"))], CONFIG, "float32", HOST, seed=0)
    delayed = "import os, time; end = os._exit; os._exit = lambda status: (time.sleep(1), end(status))"
    with Server(sys.executable, ["-c", f"{delayed}; from pipeline.benchmark.process import main; main()"]) as server:
        assert server.measure(task.task(0, further=False))["samples"]
        assert psutil.Process(server.process.pid).children() == []


def test_calibrated_number_of_steps_is_reused_in_the_next_process():
    plan = [Size("two_layer", SIZES["two_layer"][0], parsed("numpy_arrays", "matmul/numpy"))]
    session = Session(plan, CONFIG, "float32", HOST, seed=0)
    answered(session, 0, 1.2)
    session.paces["two_layer batch_size=4 inputs=8 hidden=4 outputs=2 numpy_arrays"] = Pace(3, 17, 0.001, 0)
    taken = list(measure(session.task(0, further=False), Monitor("cpu")))
    assert {sample.steps for sample in taken if sample.candidate == Candidate("numpy_arrays")} == {17}


def test_variant_takes_as_many_steps_as_its_lesson():
    """A call of TensorFlow has a fixed cost, which is spread over the steps."""
    assert Pace(4, 10, 0.014, 5).of(Pace(10, 20, 0.01, 0)) == Pace(10, 20, 0.03, 10)
    plan = [Size("two_layer", SIZES["two_layer"][0], parsed("slowed/numpy_arrays+50", "numpy_arrays"))]
    taken = measure(Session(plan, CONFIG, "float32", HOST, seed=0).task(0, further=False), Monitor("cpu"))
    assert len({sample.steps for sample in taken}) == 1


def test_candidates_of_one_framework_take_consecutive_turns(measured: list[Sample]):
    orders = defaultdict(list)
    for sample in turns(measured):
        if sample.problem == "two_layer":
            orders[sample.size, sample.process, sample.round].append(sample.candidate.framework)
    for order in orders.values():
        blocks = [framework for framework, previous in zip(order, ["", *order], strict=False) if framework != previous]
        assert len(blocks) == len(set(blocks)) == 3


def test_further_process_measures_only_sizes_with_headlines():
    above, below = parsed("torch_loop", "matmul/torch")
    short, long = SIZES["recurrent"]
    plan = [
        Size("recurrent", short, [above, below], [Pair(above, below, 0.05)]),
        Size("recurrent", long, [above, below]),
    ]
    session = Session(plan, CONFIG, "float32", HOST, seed=0)
    assert [size.sizes for size in session.task(0, further=False).sizes] == [short, long]
    assert [size.sizes for size in session.task(0, further=True).sizes] == [short]


# Failures.


def test_benchmark_of_0_processes_has_no_samples():
    plan = [Size("two_layer", SIZES["two_layer"][0], parsed("numpy_arrays"))]
    none = replace(CONFIG, processes=0)
    taken, meanwhile = benchmark(plan, config=none, dtype="float32", environment=HOST)
    assert (taken, meanwhile["processes"], meanwhile["stopped"]) == ([], [], "benchmark.processes is 0 in params.yaml")


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("numpy_nowhere", SIZES["two_layer"][0], "The benchmark failed in its process 1"),
        (
            "numpy_arrays",
            {"batch_size": 2, "inputs": 2**40, "hidden": 1, "outputs": 1},
            r"process 1:\nthere is not enough memory: 8.00 TiB did not fit. Lower batch_size",
        ),
    ],
)
def test_candidate_that_cannot_run_gives_an_error(name: str, sizes: dict[str, int], message: str):
    with pytest.raises(UserError, match=message):
        taken([Size("two_layer", sizes, parsed(name))])


def test_only_out_of_memory_errors_get_the_memory_message():
    import tensorflow as tf
    import torch

    on_gpu = out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 256.00 MiB. GPU 0 has …"))
    assert on_gpu == (
        "there is not enough memory on the GPU: 256.00 MiB did not fit. Lower batch_size or the other sizes in "
        "params.yaml, or free the GPU: nvidia-smi shows what else uses it."
    )
    with pytest.raises(RuntimeError) as on_host:
        torch.empty(2**50)
    assert out_of_memory(on_host.value).startswith("there is not enough memory: 4503599627370496 bytes did not fit.")
    text = (
        "OOM when allocating tensor with shape[4096,8192] and type float on "
        "/job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc [Op:MatMul]"
    )
    assert out_of_memory(tf.errors.ResourceExhaustedError(None, None, text)).startswith(
        "there is not enough memory on the GPU: a tensor of the shape [4096,8192] did not fit."
    )
    assert out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) == ""
    assert out_of_memory(UserError("no")) == ""


# The candidates.


def test_chunk_has_the_sizes_of_its_case():
    weights, chunk = draw("recurrent", SimpleNamespace(**SIZES["recurrent"][0]), "float64")
    assert weights["wh"].shape == (6, 6)
    assert chunk["x"].shape[1:] == (8, 6, 4)
    assert chunk["lengths"].shape == chunk["y"].shape[:2] == (len(chunk["x"]), 8)
    assert {array.dtype for array in (*weights.values(), chunk["x"], chunk["y"])} == {np.dtype(np.float64)}


@pytest.mark.parametrize("problem", SIZES)
def test_matrix_products_of_a_step_have_the_operations_of_the_problem(problem: str):
    """Exactly these products: padding is not multiplied."""
    sizes = dict(SIZES[problem][0])
    weights, chunk = draw(problem, SimpleNamespace(**sizes), "float32")
    pairs = load_problem(problem).products(weights, *(array[0] for array in chunk.values()))
    operations = sum(2 * left.shape[0] * left.shape[1] * right.shape[1] for left, right in pairs)
    case = Case(problem, sizes, {}, {}, False)
    if "lengths" in chunk:  # those of this batch; the case has the expected number
        assert case.sequence_total == 8 * 3.5
        total = int(chunk["lengths"][0].sum())
        assert operations == 2 * (2 * total * 4 * 6 + 3 * (total - 8) * 6 * 6 + 3 * 8 * 6 * 3)
        case.sizes.update(min_length=6)
        whole = load_problem(problem).products(weights, chunk["x"][0], np.full(8, 6), chunk["y"][0])
        operations = sum(2 * left.shape[0] * left.shape[1] * right.shape[1] for left, right in whole)
    assert case.operations == operations


@pytest.mark.parametrize("kind", ["tuned", "peers"])
def test_tuned_variants_and_peers_take_the_steps_of_the_reference(kind: str):
    """Parity of every tuned variant and of every peer with the float64 reference."""
    plan = bench.plan(["small", "lengths"], HOST)
    beside = [(size.problem, candidate) for size in plan for candidate in size.candidates if candidate.kind == kind]
    assert len(beside) == {"tuned": 7, "peers": 7}[kind]
    for problem, candidate in beside:
        lesson = Lesson({"recurrent": "torch_loop", "two_layer": "torch_tensors"}[problem], problem, "float64")
        runner = Runner(candidate, problem, HOST, lesson.initial)
        runner.place(lesson.chunk)
        runner.run(3)
        weights = lesson.initial
        for step in range(3):
            _, gradients = lesson.reference(weights, step)
            weights = {key: weights[key] - 1e-3 * gradients[key] for key in weights}
        for key, weight in runner.loop.weights().items():
            np.testing.assert_allclose(weight, weights[key], rtol=1e-6, atol=1e-9, err_msg=str(candidate))


def test_planted_slowdown_is_spread_evenly_over_calls():
    lesson = Lesson("numpy_arrays", "two_layer", "float32")
    runner = Runner(Candidate("numpy_arrays", "slowed", "5"), "two_layer", HOST, lesson.initial)
    steps: list[int] = []
    runner.loop = SimpleNamespace(run=steps.append)
    for _ in range(40):
        runner.run(3)
    assert sum(steps) == 126


# Plans.


@pytest.fixture
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def test_default_plan_measures_all_sizes_of_params(in_repository: None):
    params = load_params()
    plan = default_plan(params, HOST)
    problems = [params.problems[problem] for problem in params.used_problems]
    assert [size.sizes for size in plan] == [case for problem in problems for case in problem.cases]
    assert [size.sizes for size in plan if size.pairs] == [problem.sizes for problem in problems]
    pairs = {(pair.above, pair.below) for size in plan for pair in size.pairs}
    assert pairs == {(headline.above, headline.below) for headline in HEADLINES if not headline.on_gpu}
    chosen = {candidate for size in plan for candidate in size.candidates}
    assert {*parsed("tensorflow_graph+no_xla", "padded/torch_loop")} < chosen


def test_default_plan_on_a_gpu_has_launch_floors_and_gpu_headlines(
    in_repository: None, monkeypatch: pytest.MonkeyPatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(plans, "find_spec", lambda name: name == "cuda" or find(name))
    kinds = defaultdict(set)
    plan = default_plan(load_params(), replace(HOST, device="cuda:0"))
    for size in plan:
        for candidate in size.candidates:
            kinds[candidate.kind].add(candidate.name)
    pairs = {(pair.above, pair.below) for size in plan for pair in size.pairs}
    assert kinds["matmul"] == {"numpy", "torch", "tensorflow"}
    assert kinds["launch_floor"] == {name for name in LESSONS if name.startswith("torch")}
    assert kinds["cpu"] == {"torch_tensors"}
    assert {(headline.above, headline.below) for headline in HEADLINES if headline.on_gpu} < pairs


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_each_interpreter_measures_matrix_products_for_its_candidates(
    in_repository: None, monkeypatch: pytest.MonkeyPatch, device: str
):
    monkeypatch.setenv("TORCH_PYTHON", "/torch")
    monkeypatch.setenv("TENSORFLOW_PYTHON", "/tensorflow")
    for size in default_plan(load_params(), replace(HOST, device=device)):
        products = [candidate for candidate in size.candidates if candidate.kind == "matmul"]
        pythons = {candidate.python for candidate in size.candidates}
        assert pythons == {candidate.python for candidate in products} == {"/torch", "/tensorflow"}
        frameworks = {candidate.framework for candidate in size.candidates if candidate.is_implementation}
        assert device == "cpu" or frameworks <= {candidate.name for candidate in products}


def test_provenance_names_machine_versions_and_commit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIPELINE_COMMIT", "abc1234")  # without a repository
    fields = json.loads(json.dumps(provenance.provenance(HOST, "cpu", "the CPU")))
    assert fields["commit"] == "abc1234"
    assert fields.keys() >= {
        "device_name",
        "cpu_name",
        "threads",
        "versions",
        "variables",
        "measured_at",
        "measured_on",
    }


# On a GPU.


def measured_on_gpu(plan: list[Size], config: BenchmarkConfig) -> list[Sample]:
    """The samples of one process with the GPU of tests/fake_cuda.py."""
    paces: dict[str, Pace] = {}
    taken = []
    for group in Session(plan, config, "float32", GPU, seed=5).groups:
        task = Task(group.sizes, config.rounds, config.turn_seconds, 100.0, "float32", GPU, 5, 0, paces)
        taken += measure(task, Monitor("cpu"))
    return taken


def test_gpu_benchmark_measures_replays_eager_steps_and_two_baselines(cuda: Any):
    chosen = [candidate for candidate in gpu._candidates(GPU) if candidate.framework != "tensorflow"]
    floors = [f"launch_floor/{name}" for name in gpu.NAMES]
    assert {*parsed("matmul/torch", "matmul/torch+tf32", *floors), gpu.HOST, gpu.NUMPY} < {*chosen}
    plan = [Size("two_layer", SIZES["two_layer"][1], chosen)]
    plan += [Size("recurrent", sizes, parsed("torch_loop", "launch_floor/torch_loop")) for sizes in SIZES["recurrent"]]
    taken = measured_on_gpu(plan, BenchmarkConfig(1, 2, 0.002, 0))
    captured = {*parsed(*gpu.NAMES, "torch_loop"), *gpu.VARIANTS, gpu.STATIC}
    for sample in taken:
        assert sample.replays == (sample.steps if sample.candidate in captured else 0), sample
    kinds = {sample.candidate for sample in taken}
    assert {Candidate(name, kind) for kind in ("eager", "capture") for name in (*gpu.NAMES, "torch_loop")} < kinds
    assert not any(candidate.kind == "build" for candidate in kinds)
    (case, *_) = collect(taken, quiet("cuda:0")).cases
    assert str(case.in_python("torch_autograd")) == "eager/torch_autograd"
    assert case.in_python("numpy_arrays") == gpu.NUMPY
    assert str(case.launch_floor("torch_autograd")) == "launch_floor/torch_autograd"
    assert str(case.matmul(Candidate.parse("torch_autograd+tf32"))) == "matmul/torch+tf32"


def test_each_variant_is_checked_for_parity_under_its_own_settings(monkeypatch: pytest.MonkeyPatch):
    import torch

    seen = {}
    run = Runner.run

    def spied(self: Runner, steps: int) -> None:
        seen[str(self.candidate)] = (torch.get_float32_matmul_precision(), torch.get_deterministic_debug_mode())
        run(self, steps)

    monkeypatch.setattr(Runner, "run", spied)
    names = ["torch_autograd", "torch_autograd+tf32", "torch_autograd+nondeterministic"]
    rows = list(gpu._parity([Size("two_layer", dict(zip(gpu.KEYS, gpu.SIZES[0], strict=True)), parsed(*names))], HOST))
    assert seen == {names[0]: ("highest", 2), names[1]: ("high", 2), names[2]: ("highest", 0)}
    assert torch.get_deterministic_debug_mode() == 2
    for row in rows[3:]:
        assert 1e-8 < float(row.split()[-1]) < 1e-4  # the rounding of float32, without that of the weights themselves


def test_busy_machine_gives_no_gpu_crossover():
    size = format_size(dict(zip(gpu.KEYS, gpu.TUTORIAL, strict=True)))
    candidates = [*parsed(*gpu.NAMES, "matmul/torch"), gpu.NUMPY, gpu.HOST]
    taken = [
        Sample("two_layer", size, candidate, number, 0, 0, 1, 1e-4, 0, 0, 0.0)
        for candidate in candidates
        for number in range(3)
    ]
    where = quiet("cuda:0")
    busy = Conditions(cpus_of_other_processes=1.4, stolen_cpus=0.0, gpu=None)
    text = "\n".join(gpu._report(collect(taken, quiet("cuda:0", processes=[busy] * 3)), taken))
    assert "faster than" not in text
    assert "beats" not in text
    assert "torch_tensors: cannot tell: other processes took 1.4 of 2 CPUs" in text
    assert "faster than numpy_arrays" in "\n".join(gpu._report(collect(taken, where), taken))


# The scripts.


def script(module: str, *arguments: str, folder: Path = REPOSITORY, **variables: str) -> Any:
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    environment = clock.os.environ | variables
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_gpu_benchmark_with_only_measures_one_size(tmp_path: Path):
    options = ["--device", "cpu", "--only", "1", "--processes", "1", "--rounds", "1", "--no-parity"]
    done = script("gpu", *options, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "16 × 256 × 32 × 10" in done.stdout
    assert "64 × 1000" not in done.stdout
    assert "Parity" not in done.stdout
    (machine,) = tmp_path.glob("*/machine.json")
    where = json.loads(machine.read_text())
    assert where["versions"].keys() >= {"numpy", "torch", "tensorflow"}
    assert [conditions["gpu"] for conditions in where["processes"]] == [None]


def test_gpu_benchmark_without_a_gpu_gives_an_error(tmp_path: Path):
    done = script("gpu", "--device", "cuda:77", "--output", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("ERROR: There is no cuda:77; found: ")
    assert "--device cpu" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.faults  # for its minutes
def test_gpu_benchmark_runs_without_optional_packages(tmp_path: Path):
    """Packages that may be missing are hidden from it and from the processes that it starts."""
    absent = ["dvc", "mlflow", "pandas", "ray", "rich", "safetensors", "tensorflow", "yaml"]
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        f"absent = {absent}\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name in absent else find(name, *rest)\n"
    )
    options = ["--device", "cpu", "--processes", "2", "--sizes", "2", "--rounds", "2", "--compile"]
    done = script("gpu", *options, "--output", str(tmp_path / "out"), PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    for name in gpu.NAMES:
        assert f"{name}: 0% of the timed steps were replays" in done.stdout
        assert re.search(rf"{name}: \d+\.\d µs a step at the tutorial's size", done.stdout)
        if "cannot tell" not in done.stdout:  # other tests run at the same time
            share = rf"{name}: \d+% \(\d+% … \d+%\) of the matrix products' speed at 64 × 1000 × 100 × 10"
            assert re.search(share, done.stdout)
    assert "“GPUs often provide speedups of 50x or greater.” not answered here" in done.stdout
    parity = done.stdout.partition("Parity")[2].splitlines()
    for name in ("torch_tensors", "torch_autograd+tf32", "numpy_arrays"):
        (row,) = (line for line in parity if line.startswith(f"{name} "))
        assert all(float(error) < 1e-4 for error in row.split()[1:])
    assert re.search(r"^peers/torch_compile +\d|^torch.compile is left out: .", done.stdout, re.MULTILINE)
    (folder,) = (tmp_path / "out").iterdir()
    measured = samples.read(folder / "samples.csv", folder / "machine.json")
    assert [case.label for case in measured.cases] == ["16 × 256 × 32 × 10", "64 × 1000 × 100 × 10"]
    assert {len(paces) for processes in measured.cases[0].seconds.values() for paces in processes.values()} == {2}


@pytest.mark.faults  # for its minutes
def test_make_bench_compares_the_lessons_with_all_goals(tmp_path: Path):
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("pipeline", "stages", "benchmarks", "params.yaml", ".git"):
        (clone / name).symlink_to(REPOSITORY / name)
    options = [
        "--at",
        "small",
        "--processes",
        "2",
        "--rounds",
        "1",
        "--seconds",
        "1",
        "--output",
        str(tmp_path / "out"),
    ]
    done = script("bench", *options, folder=clone)
    assert done.returncode == 0, done.stderr
    for goal in bench.GOALS:
        if goal.size == "small" and goal.beside not in (bench.BEST_MODULE, bench.JAX):
            assert re.search(rf"^{goal.lesson} +{re.escape(goal.beside)} +(\d|cannot tell)", done.stdout, re.MULTILINE)
    assert bench.WITHOUT in done.stdout
    assert (clone / "results/bench.csv").read_bytes() == (tmp_path / "out/samples.csv").read_bytes()
    assert json.loads((tmp_path / "out/machine.json").read_text())["threads"] >= 1


def test_output_of_a_library_is_not_read_as_samples():
    program = [
        "-c",
        "import pipeline.benchmark.process as p; make = p.Runner.__init__\n"
        "def noisy(*a, **k): print('hello from a library'); make(*a, **k)\n"
        "p.Runner.__init__ = noisy; p.main()",
    ]
    plan = [Size("two_layer", SIZES["two_layer"][0], parsed("numpy_arrays"))]
    taken, _ = benchmark(plan, config=CONFIG, dtype="float32", environment=HOST, program=program)
    assert {sample.process for sample in taken} == {0, 1}
