"""Findings computed from samples: break-even, crossover, loops, and the verdicts on the text's claims."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from conftest import quiet

from pipeline.benchmark.candidates import Candidate
from pipeline.benchmark.headlines import HEADLINES
from pipeline.benchmark.samples import Benchmark, Case, disturbance
from pipeline.graphs.graph import Structure
from pipeline.measures import Measures, Tolerances
from pipeline.report import findings
from pipeline.report.findings import BELOW, CLAIMS, ILLUSTRATION, break_even, crossover, loops
from pipeline.results import Conditions, Judged, ParityReport

SIZES = {"batch_size": 64, "inputs": 1000, "hidden": 100, "outputs": 10}
LENGTHS = {"batch_size": 256, "inputs": 64, "hidden": 128, "outputs": 10}
ROW = Judged(
    initial_test_loss=2.0,
    test_loss=1.0,
    test_r2=0.5,
    parity=Measures(gradient=1e-7, loss_curve=1e-6, predictions=1e-6),
    outputs_md5="",
    problem="two_layer",
    failed=[],
)
ARRAYS, TENSORS = Candidate("numpy_arrays"), Candidate("torch_tensors")
TOLERANCES = Tolerances(gradient=1e-3, loss_curve=1e-2, predictions=5e-2)
STRUCTURES = {  # the current counts (test_graphs.py)
    "tensorflow_graph": Structure(5, 0, 1, operations_before=40, operations_after=20),
    "torch_autograd": Structure(5, 0, 5),
    "tensorflow_scan": Structure(5, 5, 1),
    "torch_loop": Structure(5, 5, 5),
}
BUSY = "other processes took 1.4 of 2 CPUs"


def parity_of(names: Iterable[str], problem: str = "two_layer", failed: tuple[str, ...] = ()) -> ParityReport:
    rows = {
        name: ROW.model_copy(update={"problem": problem, "failed": ["gradient"] * (name in failed)}) for name in names
    }
    return ParityReport(passed=not failed, dtype="float32", tolerances=TOLERANCES, implementations=rows)


def noisy(median: float, seed: int, processes: int = 4, rounds: int = 8) -> dict[int, Any]:
    generator = np.random.default_rng(seed)
    return {process: median * (1 + 0.02 * generator.standard_normal(rounds)) for process in range(processes)}


def case(medians: dict[str, float], *, disturbed: str = "", **sizes: int) -> Case:
    """A case with the candidates that `medians` names; of the recurrent network if `sizes` has lengths."""
    seconds = {Candidate.parse(name): noisy(median, seed) for seed, (name, median) in enumerate(medians.items())}
    problem, defaults = ("recurrent", LENGTHS) if "max_length" in sizes else ("two_layer", SIZES)
    reasons = dict.fromkeys(range(4), disturbed) if disturbed else {}
    return Case(problem, defaults | sizes, seconds, reasons, on_gpu=False)


def judged(
    cases: list[Case],
    *names: str,
    device: str = "cpu",
    failed: tuple[str, ...] = (),
    structures: dict[str, Structure] | None = None,
) -> dict[str, findings.Finding]:
    """The findings by the names of the functions that judge their claims; of computes_the_same by the subject."""
    benchmark = Benchmark(cases, quiet(device))
    parity = parity_of(names, cases[0].problem, failed)
    known = STRUCTURES | (structures or {})
    judged_claims = findings.findings(benchmark, parity, {cases[0].problem: cases[0].sizes}, known)
    keys = [finding.claim.judge.__name__ for finding in judged_claims]
    keys = [f.claim.subject if key == "computes_the_same" else key for key, f in zip(keys, judged_claims, strict=True)]
    return dict(zip(keys, judged_claims, strict=True))


def test_multiple_on_a_cpu_uses_the_fastest_matrix_products():
    measured = case({"step": 3e-4, "matmul/numpy": 1e-4, "matmul/torch": 2e-4})
    assert measured.matmul(Candidate("step")) == Candidate("numpy", "matmul")
    multiple = measured.multiple(Candidate("step"))
    assert multiple
    assert multiple.value == pytest.approx(3, rel=0.05)
    on_gpu = case({"torch_tensors": 3e-4, "matmul/numpy": 1e-4, "matmul/torch": 2e-4})._replace(on_gpu=True)
    assert on_gpu.matmul(TENSORS) == Candidate("torch", "matmul")
    assert case({"torch_tensors": 3e-4}).multiple(TENSORS) is None
    assert case({"matmul/torch": 3e-4}).multiple(TENSORS) is None


def test_multiple_on_a_gpu_uses_the_same_device_and_precision():
    names = ("torch_autograd", "cpu/torch_tensors", "torch_autograd+tf32", "matmul/torch")
    autograd, host, tf32, products = map(Candidate.parse, names)
    measured = case(dict.fromkeys(names, 1e-4))._replace(on_gpu=True)
    assert measured.matmul(autograd) == products
    assert measured.multiple(host) is None
    assert measured.multiple(tf32) is None
    both = case(dict.fromkeys((*names, "matmul/torch+tf32"), 1e-4))._replace(on_gpu=True)
    assert str(both.matmul(tf32)) == "matmul/torch+tf32"
    assert both.matmul(autograd) == products


REPLAYED = {
    "torch_tensors": 4e-5,
    "torch_autograd": 4e-5,
    "eager/torch_tensors": 2e-4,
    "eager/torch_autograd": 3e-4,
    "capture/torch_autograd": 2.6e-3,
    "numpy_arrays": 4e-3,
    "matmul/torch": 2e-5,
    "launch_floor/torch_autograd": 3e-5,
}


def replayed(medians: dict[str, float], **sizes: Any) -> Case:
    return case(medians, **sizes)._replace(
        on_gpu=True, replayed=frozenset(map(Candidate, ("torch_tensors", "torch_autograd", "torch_loop")))
    )


def test_ablation_of_autograd_on_a_gpu_uses_eager_steps():
    headlines = ablations_in([replayed(REPLAYED)], "cuda:0", "torch_tensors", "torch_autograd", "numpy_arrays")
    autograd = headlines["Autograd"]
    assert autograd.ratio
    assert autograd.ratio.value == pytest.approx(1.5, rel=0.05)
    assert "torch_autograd and torch_tensors ran eagerly: replaying a CUDA graph runs no Python" in autograd.text
    gpu = headlines["The GPU, over NumPy"]
    assert gpu.ratio
    assert gpu.ratio.value == pytest.approx(0.01, rel=0.05)  # a training on the GPU replays
    assert "eagerly" not in gpu.text


def test_ablation_of_cuda_graphs_compares_replayed_and_eager_steps():
    headlines = ablations_in([replayed(REPLAYED)], "cuda:0", "torch_tensors", "torch_autograd")
    replaying = headlines["Replaying torch_autograd"]
    assert replaying.ratio
    assert replaying.ratio.value == pytest.approx(4 / 30, rel=0.05)
    assert re.search(
        r"Capturing the step on a batch takes 2\.[56]\d* ms, paid back after (9|10|11) replays", replaying.text
    )
    assert "Replaying torch_autograd" not in ablations_of(REPLAYED)


def test_claim_on_step_times_on_a_gpu_uses_eager_steps():
    finding = judged([replayed(REPLAYED)], "torch_tensors", "torch_autograd", device="cuda:0")["torch_autograd"]
    assert re.search(r"A step takes 1\.[45]\d* × \(", finding.text)
    assert "ran eagerly: replaying" in finding.text
    assert finding.samples.startswith("eager/torch_autograd, eager/torch_tensors at 64")


def test_claim_on_the_python_loop_on_a_gpu_uses_eager_steps():
    loop = {"torch_loop": 1e-4, "tensorflow_scan": 9e-3}
    short = replayed(loop | {"eager/torch_loop": 4e-3}, min_length=1, max_length=32)
    long = replayed(loop | {"eager/torch_loop": 8e-3}, min_length=32, max_length=32)
    (sentence,) = loops([short, long], "torch_loop")
    assert re.search(r"takes (1\.9|2)\d* × .* as long \(slower\)", sentence)
    finding = judged([short, long], "torch_loop", "tensorflow_scan", device="cuda:0")["defines_graphs"]
    assert "torch_loop ran eagerly" in finding.text
    assert "the gradient of `tf.gather_nd`, on the CPU" in finding.text
    on_cpu = judged([short, long], "torch_loop", "tensorflow_scan")["defines_graphs"]
    assert "gather_nd" not in on_cpu.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gpu": {"other_processes": 1, "throttled_by": []}}, "1 other process used the GPU"),
        ({"gpu": {"other_processes": 0, "throttled_by": ["too hot"]}}, "the GPU was throttled: too hot"),
        ({"gpu": {"other_processes": None, "throttled_by": []}}, ""),
        ({"cpus_of_other_processes": 0.3}, "other processes took 0.3 of 2 CPUs"),
        ({"stolen_cpus": 0.3}, "the host of this virtual machine took 0.3 of 2 CPUs (steal time)"),
    ],
)
def test_process_is_disturbed_by_other_users_of_the_machine(changes: dict[str, Any], reason: str):
    conditions = Conditions(**{"cpus_of_other_processes": 0.1, "stolen_cpus": 0.0, "gpu": None} | changes)
    assert disturbance(conditions, threads=2, cpus=2) == reason


def test_other_processes_on_idle_cpus_do_not_disturb():
    """A laptop: 8 CPUs, of which a browser takes half a one."""
    browser = Conditions(cpus_of_other_processes=0.5, stolen_cpus=0.0, gpu=None)
    assert disturbance(browser, threads=8, cpus=8) == ""
    assert disturbance(browser, threads=2, cpus=8) == ""
    assert disturbance(browser, threads=2, cpus=2) == "other processes took 0.5 of 2 CPUs"


def test_candidates_that_were_not_interleaved_get_no_ratio():
    measured = case({"numpy_arrays": 1e-4, "torch_tensors": 2e-4})
    apart = {process + 10: samples for process, samples in measured.seconds[TENSORS].items()}
    other = measured._replace(seconds=measured.seconds | {TENSORS: apart})
    assert measured.ratio(ARRAYS, TENSORS)
    assert other.ratio(ARRAYS, TENSORS) is None
    assert measured._replace(disturbed={0: BUSY}).ratio(ARRAYS, TENSORS) is None


def test_break_even_is_build_time_over_time_saved_per_step():
    count = break_even(case({"build/graph": 0.2, "eager/graph": 2e-3, "graph": 1e-3}), "graph")
    assert count
    assert count.steps
    assert count.steps.value == pytest.approx(199, rel=0.1)
    assert count.steps.low < count.steps.value < count.steps.high
    assert count.builds == 4
    assert re.fullmatch(r"after \d+ steps \(\d+ … \d+\)", str(count))
    never = break_even(case({"build/graph": 0.2, "eager/graph": 1e-3, "graph": 2e-3}), "graph")
    assert str(never) == "never"
    assert break_even(case({"graph": 1e-3}), "graph") is None
    disturbed = case({"build/graph": 0.2, "eager/graph": 2e-3, "graph": 1e-3}, disturbed=BUSY)
    assert break_even(disturbed, "graph") is None


def test_break_even_is_never_if_one_process_does_not_reach_it():
    measured = case({"build/graph": 0.2, "eager/graph": 2e-3, "graph": 1e-3})
    seconds = measured.seconds[Candidate("graph", "eager")]
    seconds[2] = seconds[2] * 0.4
    assert str(break_even(measured, "graph")) == "never"


GPU = [
    case({"torch_tensors": 1e-4, "numpy_arrays": 5e-5, "cpu/torch_tensors": 5e-5}, batch_size=1),
    case({"torch_tensors": 1e-4, "numpy_arrays": 2e-4, "cpu/torch_tensors": 5e-5}, batch_size=2),
    case({"torch_tensors": 1e-4, "numpy_arrays": 7e-3, "cpu/torch_tensors": 7e-3}, batch_size=3),
]


def test_crossover_is_the_smallest_size_from_which_all_are_faster():
    assert crossover(GPU, ARRAYS, TENSORS) is GPU[1]
    assert crossover(GPU, ARRAYS, TENSORS, 50) is GPU[2]
    assert crossover(GPU, ARRAYS, TENSORS, 100) is None
    slow_again = case({"torch_tensors": 1e-4, "numpy_arrays": 1e-5}, batch_size=4)
    assert crossover([*GPU, slow_again], ARRAYS, TENSORS) is None


def test_loops_are_compared_only_between_sizes_that_differ_in_lengths():
    def lengths(shortest: int, longest: int, step: float, hidden: int = 128) -> Case:
        return case({"loop": step}, min_length=shortest, max_length=longest, hidden=hidden)

    cases = [lengths(16, 16, 4e-3), lengths(1, 32, 4e-3), lengths(32, 32, 8e-3)]
    sum_said, longest_said = loops(cases, "loop")
    assert sum_said.startswith("1.9 times the sum of lengths at the same longest (32) takes 2")
    assert longest_said.startswith("2 times the longest at the same sum (about 4096) takes 1")
    assert loops(cases[:1], "loop") == []
    assert loops([cases[1], lengths(32, 32, 8e-3, hidden=7)], "loop") == []


def test_claim_of_50_times_is_answered_only_with_a_gpu():
    name = "times_as_fast_as_numpy"
    assert judged(GPU, "torch_tensors")[name].verdict == "not answered here"
    holds = judged(GPU, "torch_tensors", device="cuda:0")[name]
    assert holds.verdict == "holds"
    assert "beats NumPy on this host at 2 × 1000" in holds.text
    assert "beats PyTorch on this host at 3 × 1000" in holds.text
    assert "50 × over NumPy is reached at 3 × 1000" in holds.text
    assert "float32 at precision highest; NumPy on 2 threads. `make bench-gpu` measures larger sizes." in holds.text
    doubtful = case({"torch_tensors": 1e-4, "numpy_arrays": 5e-3, "cpu/torch_tensors": 7e-3}, batch_size=3)
    assert judged([*GPU[:2], doubtful], "torch_tensors", device="cuda:0")[name].verdict == "cannot tell"
    fails = judged(GPU[:2], "torch_tensors", device="cuda:0")[name]
    assert fails.verdict == "does not hold"
    assert "PyTorch on this host not at the largest size, 2 × 1000" in fails.text
    assert "50 × over NumPy is reached at no size up to 2 × 1000" in fails.text


@pytest.mark.parametrize(
    ("eager", "expected"), [((2e-3, 2e-3), "holds"), ((2e-3, 1e-4), "partly"), ((1e-4, 1e-4), "does not hold")]
)
def test_claim_of_the_static_graph_holds_if_it_pays_for_itself_at_all_sizes(eager: tuple[float, float], expected: str):
    name = "tensorflow_graph"
    cases = [
        case({f"build/{name}": 0.1, f"eager/{name}": seconds, name: 1e-3}, batch_size=batch)
        for batch, seconds in enumerate(eager, 1)
    ]
    finding = judged(cases, name)["pays_for_itself"]
    assert finding.verdict == expected
    assert ("so it never is" in finding.text) == (expected != "holds")


def test_claim_of_the_static_graph_does_not_hold_with_equal_times():
    name = "tensorflow_graph"
    finding = judged([case({f"build/{name}": 0.1, f"eager/{name}": 1e-3, name: 1e-3})], name)["pays_for_itself"]
    assert finding.verdict in ("cannot tell", "does not hold")  # the same within 5 %, and so never paid back
    assert "after" not in finding.text


def test_claim_on_two_implementations_names_its_samples():
    cases = [case({"torch_tensors": 2e-4, "torch_autograd": 4e-4})]
    finding = judged(cases, "torch_tensors", "torch_autograd")["torch_autograd"]
    assert re.search(r"A step takes (1\.9|2|2\.0)\d* × \(.*: slower\.", finding.text)
    assert finding.samples == "torch_autograd, torch_tensors at 64 × 1000 × 100 × 10, 4 processes"


@pytest.mark.parametrize("failed", ["torch_tensors", "torch_autograd"])
def test_claim_of_an_implementation_that_fails_the_parity_check_does_not_hold(failed: str):
    cases, names = [case({"torch_tensors": 2e-4, "torch_autograd": 4e-4})], ("torch_tensors", "torch_autograd")
    assert judged(cases, *names)["torch_autograd"].verdict == "holds"
    finding = judged(cases, *names, failed=(failed,))["torch_autograd"]
    assert finding.verdict == "does not hold"
    assert f"{failed} failed the parity check" in finding.text


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ({}, "holds"),
        ({"tensorflow_graph": Structure(5, 0, 5)}, "does not hold"),  # traced anew in every step
        ({"torch_autograd": Structure(5, 0, 1)}, "does not hold"),  # one graph for all steps
        ({"torch_autograd": Structure(0, 0, None)}, "not answered here"),
    ],
)
def test_claim_of_static_and_dynamic_graphs_follows_from_the_graph_counts(planted: dict[str, Structure], expected: str):
    names = ("tensorflow_graph", "torch_autograd")
    assert judged([case({"numpy_arrays": 1e-4})], *names, structures=planted)["defines_graphs"].verdict == expected


@pytest.mark.parametrize(
    ("planted", "failed", "expected"),
    [
        ({}, (), "holds"),
        ({"tensorflow_scan": Structure(5, 5, 5)}, (), "does not hold"),  # a graph for each length
        ({}, ("torch_loop",), "does not hold"),
    ],
)
def test_claim_of_the_loop_in_the_graph_follows_from_counts_and_parity(
    planted: dict[str, Structure], failed: tuple[str, ...], expected: str
):
    measured = case({"torch_loop": 4e-3, "tensorflow_scan": 9e-3}, min_length=1, max_length=32)
    finding = judged([measured], "tensorflow_scan", "torch_loop", structures=planted, failed=failed)["defines_graphs"]
    assert finding.verdict == expected
    assert "on batches of 5 different lengths" in finding.text


@pytest.mark.parametrize(
    ("operations", "without", "expected"),
    [
        ((40, 20), 2e-3, "holds"),
        ((40, 20), 1e-3, ("partly", "cannot tell")),  # the same, or the intervals do not decide
        ((40, 20), 5e-4, "does not hold"),  # slower with XLA
        ((40, 40), 2e-3, "does not hold"),  # nothing fused
        ((40, None), 2e-3, "not answered here"),
    ],
)
def test_claim_of_fusion_follows_from_operation_counts_and_times(
    operations: tuple[int, int | None], without: float, expected: str | tuple[str, ...]
):
    measured = case({"tensorflow_graph": 1e-3, "tensorflow_graph+no_xla": without})
    before, after = operations
    structure = Structure(5, 0, 1, operations_before=before, operations_after=after)
    finding = judged([measured], "tensorflow_graph", structures={"tensorflow_graph": structure})["fuses"]
    assert finding.verdict in ((expected,) if isinstance(expected, str) else expected)


def test_claim_without_a_criterion_is_an_illustration():
    measured = case({"numpy_arrays": 2e-4, "torch_tensors": 2e-4, "torch_autograd": 4e-4})
    claims = judged([measured], "numpy_arrays", "torch_tensors", "torch_autograd")
    for name, finding in claims.items():
        assert (finding.verdict == ILLUSTRATION) == (not finding.claim.criterion), name
    same = claims["looks_the_same"]
    assert any(line.startswith("+") for line in same.lines)
    assert any(line.startswith("-") for line in same.lines)
    assert re.search(r"`numpy_arrays` \d+, `torch_tensors` \d+, `torch_autograd` 1", claims["gets_hairy"].text)


def test_busy_machine_gives_the_reason_and_no_ratio():
    cases = [case({"torch_tensors": 2e-4, "torch_autograd": 4e-4}, disturbed=BUSY)]
    finding = judged(cases, "torch_tensors", "torch_autograd")["torch_autograd"]
    assert "×" not in finding.text
    assert f"cannot tell: {BUSY}" in finding.text


def test_disturbed_size_does_not_remove_ratios_of_other_sizes():
    measured = case({"torch_tensors": 2e-4, "torch_autograd": 4e-4})
    disturbed = case({"torch_tensors": 2e-4, "torch_autograd": 4e-4}, disturbed=BUSY, batch_size=128)
    assert disturbed.ratio(TENSORS, Candidate("torch_autograd")) is None
    headline = ablations_in([measured, disturbed], "cpu", "torch_tensors", "torch_autograd")["Autograd"]
    assert headline.ratio


def ablations_in(cases: list[Case], device: str, *names: str) -> dict[str, findings.Ablation]:
    benchmark = Benchmark(cases, quiet(device))
    rows = parity_of(names)
    return {headline.idea: headline for headline in findings.ablations(benchmark, rows, {"two_layer": SIZES})}


def ablations_of(
    medians: dict[str, float], *, device: str = "cpu", disturbed: str = "", names: tuple[str, ...] = ()
) -> dict[str, findings.Ablation]:
    cases = [case(medians, disturbed=disturbed)] if medians else []
    rows = parity_of(names or [name for name in medians if "/" not in name and "+" not in name])
    return {
        ablation.idea: ablation
        for ablation in findings.ablations(Benchmark(cases, quiet(device)), rows, {"two_layer": SIZES})
    }


MEDIANS = {
    "numpy_arrays": 4e-3,
    "torch_tensors": 1e-3,
    "torch_autograd": 2e-3,
    "tensorflow_graph": 1e-3,
    "eager/tensorflow_graph": 5e-3,
    "build/tensorflow_graph": 0.4,
}


def test_ablation_has_a_ratio_an_interval_and_a_verdict():
    headlines = ablations_of(MEDIANS)
    # No own Function and no loop was run; XLA was not left out.
    assert [*headlines] == ["Autograd", "The static graph", "Fusing operations up front", "The GPU"]
    autograd = headlines["Autograd"]
    assert autograd.ratio
    assert autograd.ratio.low < 2 < autograd.ratio.high
    assert autograd.verdict == "slower"
    assert re.match(r"A step takes (1\.9|2)\d* × \([\d.]+ … [\d.]+\) as long as one whose", autograd.text)
    graph = headlines["The static graph"]
    assert graph.ratio
    assert graph.ratio.value == pytest.approx(0.2, rel=0.05)
    assert re.search(r"\. The cost of building the graph is paid back after (9\d|10\d) steps \(", graph.text)
    assert headlines["Fusing operations up front"].text == "Cannot tell: the graph is too large for XLA to be used."


def test_headline_compares_one_difference_or_states_several():
    for headline in HEADLINES:
        assert headline.idea in BELOW
        same_lines = headline.above.name == headline.below.name  # the same lesson with one idea left out
        next_lesson = headline.idea in (
            "Autograd",
            "An operator of our own",
        )  # lessons of one framework, one idea apart
        says_so = "framework, padding and graph all differ" in BELOW[headline.idea]
        over_numpy = headline.idea == "The GPU, over NumPy"  # what the text claims
        assert (
            same_lines + (next_lesson and headline.above.framework == headline.below.framework) + says_so + (over_numpy)
            == 1
        ), headline


def test_ablation_of_the_gpu_has_a_ratio_only_with_a_gpu():
    assert ablations_of(MEDIANS)["The GPU"] == ("The GPU", "This run had no CUDA device.", None)
    headlines = ablations_of(MEDIANS | {"cpu/torch_tensors": 2e-3}, device="cuda:0")
    for idea, expected in (("The GPU", 0.5), ("The GPU, over NumPy", 0.25)):
        ratio = headlines[idea].ratio
        assert ratio
        assert ratio.value == pytest.approx(expected, rel=0.05)


def test_ablation_on_a_busy_machine_or_without_a_benchmark_has_no_ratio():
    busy = ablations_of(MEDIANS, disturbed=BUSY)["Autograd"]
    assert busy == ("Autograd", f"Cannot tell: {BUSY}.", None)
    assert busy.verdict == "cannot tell"
    names = ("torch_tensors", "torch_autograd")
    assert ablations_of({}, names=names)["Autograd"].text == "Cannot tell: there was no benchmark."
    apart = ablations_of({"torch_tensors": 1e-3}, names=names)["Autograd"]
    assert (apart.text, apart.ratio) == ("Cannot tell: they were not interleaved.", None)
    assert ablations_of({"numpy_arrays": 1e-3}) == {}


def test_claim_without_its_implementations_is_not_judged():
    text = "".join(claim.text for claim in CLAIMS)
    assert "50x or greater" in text
    assert judged([case({"numpy_arrays": 1e-4})], "numpy_arrays") == {}
