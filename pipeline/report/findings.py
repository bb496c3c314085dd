"""What the measurements say: break-even, crossover, loops, and a verdict on each claim of the text.

Nothing is measured here and nothing drawn: samples in, statements out. "Faster", or "beyond this size", is said only
where a confidence interval allows it, and a ratio is given only of candidates that were interleaved.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.benchmark.candidates import Candidate
from pipeline.benchmark.intervals import Estimate, format_ratio
from pipeline.benchmark.samples import Benchmark, Case, network, ratio_between
from pipeline.measures import Measures
from pipeline.report.claims import CLAIMS, Claim
from pipeline.results import BenchmarkProvenance, Judged, ParityReport, Summary, Timing

GPU_CLAIM = 50.0  # times as fast as NumPy
ON_THE_HOST = (  # scatter_nd_op.cc of TensorFlow 2.21
    "On a GPU, with `deterministic: true`, TensorFlow computes one part of this lesson's backward pass, the gradient "
    "of `tf.gather_nd`, on the CPU: copies to the host and back in every step."
)
OF_PYTHON = ("Autograd", "The loop in the graph")  # ideas that are about what Python and autograd do in a step
REPLAYED = ("torch_autograd", "torch_loop")  # the lessons of which the report says what replaying buys
ALIKE = 0.1  # two sums of lengths that differ by less are taken to be the same

HOLDS, FAILS, PARTLY, OPEN = "holds", "does not hold", "partly", "not answered here"


class Finding(NamedTuple):
    claim: Claim
    verdict: str
    text: str
    samples: str  # which ones it rests on


class Run(NamedTuple):
    """What a claim is judged by: its problem's benchmark, the case `at` the training's size, the parity rows."""

    cases: list[Case]
    at: Case | None
    rows: Mapping[str, Judged]
    provenance: BenchmarkProvenance

    @property
    def on_gpu(self) -> bool:
        return self.provenance.device != "cpu"


class Bought(NamedTuple):
    """What one idea bought at the training's size: the ratio of a step's times with it and without it."""

    idea: str
    text: str
    ratio: Estimate | None


class BreakEven(NamedTuple):
    """The steps after which a graph has paid back what it costs before its second step; infinite where it never does.

    Each process has its own, of which this is the median; `all_pay` is whether it is finite in every process.
    """

    steps: float
    all_pay: bool
    builds: int

    def __str__(self) -> str:
        return f"after {self.steps:.0f} steps" if np.isfinite(self.steps) else "never"


def summary(parity: ParityReport, timings: Mapping[str, Timing], found: Sequence[Finding]) -> Summary:
    """The numbers by which states are compared: the worst of each kind, the step times, how many claims hold."""
    rows = parity.implementations.values()
    return Summary(
        held_out_loss={
            problem: max(row.test_loss for row in rows if row.problem == problem)
            for problem in dict.fromkeys(row.problem for row in rows)
        },
        worst_parity=Measures(
            **{name: max(getattr(row.parity, name) for row in rows) for name in Measures.model_fields}
        ),
        step_microseconds={name: 1e6 * timing.step_seconds_median for name, timing in timings.items()},
        claims_that_hold=sum(each.verdict == HOLDS for each in found),
    )


def findings(
    benchmark: Benchmark, parity: ParityReport, training_sizes: Mapping[str, Mapping[str, int]]
) -> list[Finding]:
    """A finding for each claim whose implementations were run.

    `training_sizes` has the sizes of each problem's training.
    """
    rules = {
        rule.__name__: rule
        for rule in (times_as_fast_as_numpy, computes_the_same, pays_for_itself, follows_the_lengths)
    }
    rows = parity.implementations
    found = []
    for claim in CLAIMS:
        if {claim.subject, claim.other or claim.subject} <= rows.keys():
            problem = rows[claim.subject].problem
            at = benchmark.at(problem, training_sizes[problem])
            found.append(rules[claim.rule](claim, Run(benchmark.of(problem), at, rows, benchmark.provenance)))
    return [each._replace(text=f"{each.text}{_doubted(benchmark, each)}") for each in found]


def _doubted(benchmark: Benchmark, finding: Finding) -> str:
    return f" (Times: {benchmark.doubt}.)" if benchmark.doubt and finding.verdict != OPEN else ""


def bought(benchmark: Benchmark, parity: ParityReport, training_sizes: Mapping[str, Mapping[str, int]]) -> list[Bought]:
    """What autograd, the static graph, the GPU and the loop in the graph bought, of those that were run."""
    on_gpu = benchmark.provenance.device != "cpu"
    ideas = (
        ("Autograd", "torch_autograd", Candidate("torch_tensors"), "one whose backward pass is written by hand"),
        ("The static graph", "tensorflow_graph", Candidate("tensorflow_graph", "eager"), "the same lines run eagerly"),
        ("The GPU", "torch_tensors", Candidate("numpy_arrays"), "NumPy's on this host"),
        ("The loop in the graph", "tensorflow_scan", Candidate("torch_loop"), "one of the loop in Python"),
        *(
            (f"Replaying {name}", name, Candidate(name, "eager"), "the same lines run eagerly")
            for name in REPLAYED
            if on_gpu
        ),
    )
    rows = parity.implementations
    found = []
    for idea, subject, other, of_other in ideas:
        if not {subject, other.name} <= rows.keys():
            continue
        problem = rows[subject].problem
        at = benchmark.at(problem, training_sizes[problem])
        in_python = idea in OF_PYTHON
        ratio = at and (_in_python(at, subject, other.name) if in_python else at.ratio(Candidate(subject), other))
        if idea == "The GPU" and not on_gpu:
            found.append(Bought(idea, "This run had no CUDA device.", None))
        elif ratio is None:
            why = benchmark.doubt or (
                "the two were not interleaved at this size" if benchmark.cases else "there was no benchmark"
            )
            found.append(Bought(idea, f"{why[0].upper()}{why[1:]}.", None))
        else:
            even = break_even(at, subject) if at and other.kind == "eager" else None
            paid = f" What it costs to build is paid back {even}." if even else ""
            captured = capture_cost(at, subject) if at and other.kind == "eager" else ""
            eagerly = _eagerly([at], subject, other.name) if at and in_python else ""
            found.append(
                Bought(idea, f"A step takes {format_ratio(ratio)} as {of_other}.{eagerly}{paid}{captured}", ratio)
            )
    return found


def _in_python(at: Case, subject: str, other: str) -> Estimate | None:
    """The ratio of two implementations' steps, each as it takes where its Python runs."""
    return at.ratio(at.in_python(subject), at.in_python(other))


def _taken(cases: list[Case], *names: str) -> list[Candidate]:
    """The candidates that `_in_python` takes for some implementations."""
    return list(dict.fromkeys(case.in_python(name) for name in names for case in cases))


def _eagerly(cases: list[Case], *names: str) -> str:
    """A sentence on the implementations that `_in_python` takes otherwise than they train, or nothing."""
    changed = [name for name in names if any(case.in_python(name) != Candidate(name) for case in cases)]
    if not changed:
        return ""
    return f" For this, {' and '.join(changed)} ran eagerly: replaying a CUDA graph runs no Python and no autograd."


def capture_cost(case: Case, name: str) -> str:
    """A sentence on what the CUDA graph of a step costs, or nothing where none was captured."""
    lesson, eager, capture = Candidate(name), Candidate(name, "eager"), Candidate(name, "capture")
    if not {eager, capture, lesson} <= case.seconds.keys():
        return ""
    saved, seconds = case.median(eager) - case.median(lesson), case.median(capture)
    paid = f"paid back after {seconds / saved:.0f} replays" if saved > 0 else "never paid back"
    return f" Capturing the step on a batch takes {1e3 * seconds:.2f} ms, {paid}."


def times_as_fast_as_numpy(claim: Claim, run: Run) -> Finding:
    if not run.on_gpu:
        return Finding(claim, OPEN, "This run had no CUDA device; `make gpu` runs all of it on one.", "none")
    subject, numpy, host = Candidate(claim.subject), Candidate("numpy_arrays"), Candidate(claim.subject, "cpu")
    ratios = [(case, case.ratio(numpy, subject)) for case in run.cases]
    measured = [(case, ratio) for case, ratio in ratios if ratio is not None]
    samples = _samples(run.cases, subject, numpy, host)
    if not measured:
        return Finding(claim, OPEN, "The benchmark gave no ratio.", samples)
    best, highest = max(measured, key=lambda pair: pair[1].value)
    words = []
    compared = (("NumPy", numpy), ("PyTorch", host))
    for whom, candidate in ((whom, each) for whom, each in compared if each in run.cases[-1].seconds):
        beyond = crossover(run.cases, candidate, subject)
        where = f"at {beyond.label} and beyond" if beyond else f"not at the largest size, {run.cases[-1].label}"
        words.append(f"The GPU beats {whom} on this host {where}.")
    beyond = crossover(run.cases, numpy, subject, GPU_CLAIM)
    if beyond:
        words.append(f"{GPU_CLAIM:.0f} × over NumPy is reached at {beyond.label} and beyond, at best {highest}.")
    else:
        words.append(
            f"{GPU_CLAIM:.0f} × over NumPy is not reached at the largest size, {run.cases[-1].label}; "
            f"at best it is {highest}, at {best.label}."
        )
    words.append(
        f"float32 at precision {run.provenance.precision}; NumPy on {run.provenance.threads} threads. "
        "`make bench-gpu` measures larger sizes."
    )
    return Finding(claim, HOLDS if beyond else FAILS, " ".join(words), samples)


def crossover(cases: list[Case], slower: Candidate, faster: Candidate, factor: float = 1.0) -> Case | None:
    """The smallest case in which, and in every larger one, `faster` is more than `factor` times as fast as `slower`."""
    reached = None
    for case in reversed(cases):
        ratio = case.ratio(slower, faster)
        if ratio is None or ratio.low < factor:
            break
        reached = case
    return reached


def computes_the_same(claim: Claim, run: Run) -> Finding:
    ratio = _in_python(run.at, claim.subject, claim.other) if run.at else None
    cases = [run.at] if run.at else []
    rows = [(name, run.rows[name]) for name in (claim.other, claim.subject)]
    differences = " and ".join(
        f"{name} by {row.parity.gradient:.1e} and {row.parity.loss_curve:.1e}" for name, row in rows
    )
    text = f"Gradient and loss curve are off the float64 reference: {differences}."
    if ratio:
        text += f" A step takes {format_ratio(ratio)} as {claim.of_other}."
        text += _eagerly(cases, claim.subject, claim.other)
    samples = _samples(cases, *_taken(cases, claim.subject, claim.other))
    return Finding(claim, _parity(run.rows, claim), text, samples)


def pays_for_itself(claim: Claim, run: Run) -> Finding:
    counts = [(case, break_even(case, claim.subject)) for case in run.cases]
    known = [(case, count) for case, count in counts if count is not None]
    samples = _samples(run.cases, *(Candidate(claim.subject, kind) for kind in ("build", "eager", "")))
    if not known:
        return Finding(claim, OPEN, "The benchmark gave no break-even.", samples)
    paid = [count.all_pay for _, count in known]
    words = "; ".join(f"at {case.label} {count}" for case, count in known)
    text = f"Defining, tracing and compiling it is paid back, against the same lines run eagerly: {words}."
    return Finding(claim, HOLDS if all(paid) else PARTLY if any(paid) else FAILS, text, samples)


def break_even(case: Case, name: str) -> BreakEven | None:
    """None where the benchmark lacks a candidate for it, or was not to be relied on."""
    wanted = [Candidate(name, kind) for kind in ("build", "eager", "")]
    if not case.trusted or not set(wanted) <= case.seconds.keys():
        return None
    found = []
    for process in case.seconds[Candidate(name)]:
        build, eager, step = (float(np.median(case.seconds[each][process])) for each in wanted)
        found.append((build - step) / (eager - step) if eager > step else float("inf"))
    return BreakEven(float(np.median(found)), bool(np.isfinite(found).all()), len(found))


def follows_the_lengths(claim: Claim, run: Run) -> Finding:
    said = {name: loops(run.cases, name) for name in (claim.other, claim.subject)}
    words = "; ".join(f"{name}: {' and '.join(each)}" for name, each in said.items() if each)
    ratio = _in_python(run.at, claim.subject, claim.other) if run.at else None
    text = f"Both compute the same, and pay for different things. {words}." if words else "Both compute the same."
    if ratio:
        text += f" At the training's size a step of {claim.subject} takes {format_ratio(ratio)} as {claim.of_other}."
    text += _eagerly(run.cases, claim.subject, claim.other)
    if run.on_gpu and run.provenance.deterministic:
        text += f" {ON_THE_HOST}"
    samples = _samples(run.cases, *_taken(run.cases, claim.subject, claim.other))
    return Finding(claim, _parity(run.rows, claim), text, samples)


def loops(cases: list[Case], name: str) -> list[str]:
    """What the time of a step follows: the sum of the lengths at the same longest, or the longest at the same sum.

    Only cases that differ in the lengths alone are compared, and nothing is said where there are none.
    """
    pairs = [
        (a, b, ratio_between(b, b.in_python(name), a, a.in_python(name)))
        for a in cases
        for b in cases
        if a is not b and network(a.problem, a.sizes) == network(b.problem, b.sizes)
    ]
    known = [
        (a, b, b.sequence_total / a.sequence_total, ratio)
        for a, b, ratio in pairs
        if ratio is not None and a.sequence_total and b.sequence_total
    ]
    same_longest = [
        pair for pair in known if pair[0].sizes["max_length"] == pair[1].sizes["max_length"] and pair[2] > 1 + ALIKE
    ]
    same_sum = [
        pair for pair in known if pair[0].sizes["max_length"] < pair[1].sizes["max_length"] and abs(pair[2] - 1) < ALIKE
    ]
    said = []
    if same_longest:
        a, _, more, ratio = max(same_longest, key=lambda pair: pair[1].sequence_total or 0.0)
        said.append(
            f"{more:.2g} times the sum of lengths at the same longest "
            f"({a.sizes['max_length']}) takes {format_ratio(ratio)}"
        )
    if same_sum:
        a, b, _, ratio = max(same_sum, key=lambda pair: pair[1].sequence_total or 0.0)
        said.append(
            f"{b.sizes['max_length'] / a.sizes['max_length']:.2g} times the longest at the same sum "
            f"(about {a.sequence_total:.0f}) takes {format_ratio(ratio)}"
        )
    return said


def _parity(rows: Mapping[str, Judged], claim: Claim) -> str:
    return FAILS if rows[claim.subject].failed or rows[claim.other].failed else HOLDS


def _samples(cases: list[Case], *candidates: Candidate) -> str:
    """Which rows of results/benchmark.csv these are."""
    there = [name for name in candidates if any(name in case.seconds for case in cases)]
    if not there:
        return "none"
    processes = max(len(case.seconds[name]) for case in cases for name in there if name in case.seconds)
    sizes = cases[0].label if len(cases) == 1 else f"all {len(cases)} sizes"
    return f"{', '.join(map(str, there))} at {sizes}, {processes} process{'es' * (processes > 1)}"
