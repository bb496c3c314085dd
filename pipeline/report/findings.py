"""What the measurements say: what each idea costs or saves, and a verdict on each claim of the text.

This module measures nothing and draws nothing: samples in, sentences out. "Faster", or "beyond this size", is written
only where a confidence interval allows it. A ratio is given only of candidates that were interleaved.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.benchmark.candidates import Candidate
from pipeline.benchmark.intervals import Estimate, format_ratio
from pipeline.benchmark.samples import Benchmark, Case, network, ratio_between
from pipeline.measures import Measures
from pipeline.results import BenchmarkProvenance, Judged, ParityReport, Summary, Timing

GPU_CLAIM = 50.0  # times as fast as NumPy
ON_THE_HOST = (  # scatter_nd_op.cc of TensorFlow 2.21
    "On a GPU, with `deterministic: true`, TensorFlow computes one part of this lesson's backward pass, the gradient "
    "of `tf.gather_nd`, on the CPU: copies to the host and back in every step."
)
CAPTURED = ("torch_autograd", "torch_loop")  # the lessons of which the report says what replaying saves
ALIKE = 0.1  # two sums of lengths that differ by less are taken to be the same

HOLDS, FAILS, PARTLY, OPEN = "holds", "does not hold", "partly", "not answered here"
Sizes = Mapping[str, Mapping[str, int]]  # of each problem's training


class Run(NamedTuple):
    """What a claim is judged by: its problem's benchmark, the case `at` the training's size, the parity rows."""

    cases: list[Case]
    at: Case | None
    rows: Mapping[str, Judged]
    provenance: BenchmarkProvenance

    @property
    def on_gpu(self) -> bool:
        return self.provenance.device != "cpu"


class Claim(NamedTuple):
    """A claim of the text. `subject` and `other` are implementations; it is judged where both were run."""

    text: str
    judge: Callable[["Claim", Run], "Finding"]
    subject: str
    other: str = ""
    of_other: str = ""  # what the finding calls a step of the other


class Finding(NamedTuple):
    claim: Claim
    verdict: str
    text: str
    samples: str  # the samples behind it


class Ablation(NamedTuple):
    """The ratio of a step's times with one idea and without it, at the training's size."""

    idea: str
    text: str
    ratio: Estimate | None


class BreakEven(NamedTuple):
    """The steps after which a graph has paid back what it costs before its second step; infinite where it never does.

    The median over processes; `all_pay` is whether it is finite in every process.
    """

    steps: float
    all_pay: bool
    builds: int

    def __str__(self) -> str:
        return f"after {self.steps:.0f} steps" if np.isfinite(self.steps) else "never"


def summary(parity: ParityReport, timings: Mapping[str, Timing], statements: Sequence[Finding]) -> Summary:
    """The numbers by which states are compared: the worst of each kind, the step times, how many claims hold."""
    rows = parity.implementations.values()
    problems = dict.fromkeys(row.problem for row in rows)
    worst = {measure: max(getattr(row.parity, measure) for row in rows) for measure in Measures.model_fields}
    return Summary(
        held_out_loss={name: max(row.test_loss for row in rows if row.problem == name) for name in problems},
        worst_parity=Measures(**worst),
        step_microseconds={name: 1e6 * timing.step_seconds_median for name, timing in timings.items()},
        claims_that_hold=sum(finding.verdict == HOLDS for finding in statements),
    )


def findings(benchmark: Benchmark, parity: ParityReport, training_sizes: Sizes) -> list[Finding]:
    """A finding for each claim whose implementations were run."""
    rows, statements = parity.implementations, []
    for claim in CLAIMS:
        if {claim.subject, claim.other or claim.subject} <= rows.keys():
            problem = rows[claim.subject].problem
            at = benchmark.at(problem, training_sizes[problem])
            finding = claim.judge(claim, Run(benchmark.of(problem), at, rows, benchmark.provenance))
            doubt = f" (Times: {benchmark.doubt}.)" if benchmark.doubt and finding.verdict != OPEN else ""
            statements.append(finding._replace(text=finding.text + doubt))
    return statements


def ablations(benchmark: Benchmark, parity: ParityReport, training_sizes: Sizes) -> list[Ablation]:
    """What autograd, the static graph, the GPU, the loop in the graph and CUDA graphs cost or save.

    Only of the implementations that were run. Autograd and the loop are about what Python does in a step, so they are
    judged by steps in which Python runs.
    """
    on_gpu, rows, answers = benchmark.provenance.device != "cpu", parity.implementations, []
    ideas = [
        ("Autograd", "torch_autograd", Candidate("torch_tensors"), "one whose backward pass is written by hand"),
        ("The static graph", "tensorflow_graph", Candidate("tensorflow_graph", "eager"), "the same lines run eagerly"),
        ("The GPU", "torch_tensors", Candidate("numpy_arrays"), "NumPy's on this host"),
        ("The loop in the graph", "tensorflow_scan", Candidate("torch_loop"), "one of the loop in Python"),
    ]
    if on_gpu:
        ideas += [
            (f"Replaying {name}", name, Candidate(name, "eager"), "the same lines run eagerly") for name in CAPTURED
        ]
    for idea, name, other, of_other in ideas:
        if not {name, other.name} <= rows.keys():
            continue
        problem = rows[name].problem
        at = benchmark.at(problem, training_sizes[problem])
        in_python = idea in ("Autograd", "The loop in the graph")
        ratio = at and (_ratio_in_python(at, name, other.name) if in_python else at.ratio(Candidate(name), other))
        if idea == "The GPU" and not on_gpu:
            answers.append(Ablation(idea, "This run had no CUDA device.", None))
        elif at is None or ratio is None:
            reason = "the two were not interleaved at this size" if benchmark.cases else "there was no benchmark"
            reason = benchmark.doubt or reason
            answers.append(Ablation(idea, f"{reason[0].upper()}{reason[1:]}.", None))
        else:
            more = _eager_note([at], name, other.name) if in_python else ""
            if other.kind == "eager":
                count = break_even(at, name)
                more += f" What it costs to build is paid back {count}." if count else ""
                more += capture_cost(at, name)
            answers.append(Ablation(idea, f"A step takes {format_ratio(ratio)} as {of_other}.{more}", ratio))
    return answers


def _ratio_in_python(case: Case, name: str, other: str) -> Estimate | None:
    return case.ratio(case.in_python(name), case.in_python(other))


def _taken(cases: list[Case], *names: str) -> list[Candidate]:
    """The candidates that `_ratio_in_python` takes for some implementations."""
    return list(dict.fromkeys(case.in_python(name) for name in names for case in cases))


def _eager_note(cases: list[Case], *names: str) -> str:
    """A sentence on the implementations that train by replaying and were judged by their eager steps, or nothing."""
    eager = [name for name in names if any(case.in_python(name) != Candidate(name) for case in cases)]
    if not eager:
        return ""
    return f" For this, {' and '.join(eager)} ran eagerly: replaying a CUDA graph runs no Python and no autograd."


def capture_cost(case: Case, name: str) -> str:
    """A sentence on what the CUDA graph of a step costs, or nothing where none was captured."""
    lesson, eager, capture = Candidate(name), Candidate(name, "eager"), Candidate(name, "capture")
    if not {eager, capture, lesson} <= case.seconds.keys():
        return ""
    saved, seconds = case.median(eager) - case.median(lesson), case.median(capture)
    paid = f"paid back after {seconds / saved:.0f} replays" if saved > 0 else "never paid back"
    return f" Capturing the step on a batch takes {1e3 * seconds:.2f} ms, {paid}."


def break_even(case: Case, name: str) -> BreakEven | None:
    """None where the benchmark lacks a candidate for it, or the machine was too busy."""
    candidates = [Candidate(name, kind) for kind in ("build", "eager", "")]
    if not case.trusted or not set(candidates) <= case.seconds.keys():
        return None
    counts = []
    for process in case.seconds[Candidate(name)]:
        build, eager, step = (float(np.median(case.seconds[candidate][process])) for candidate in candidates)
        counts.append((build - step) / (eager - step) if eager > step else float("inf"))
    return BreakEven(float(np.median(counts)), bool(np.isfinite(counts).all()), len(counts))


def crossover(cases: list[Case], slower: Candidate, faster: Candidate, factor: float = 1.0) -> Case | None:
    """The smallest case in which, and in every larger one, `faster` is more than `factor` times as fast as `slower`."""
    reached = None
    for case in reversed(cases):
        ratio = case.ratio(slower, faster)
        if ratio is None or ratio.low < factor:
            break
        reached = case
    return reached


def times_as_fast_as_numpy(claim: Claim, run: Run) -> Finding:
    if not run.on_gpu:
        return Finding(claim, OPEN, "This run had no CUDA device; `make gpu` runs all of it on one.", "none")
    subject, numpy, host = Candidate(claim.subject), Candidate("numpy_arrays"), Candidate(claim.subject, "cpu")
    samples = _samples(run.cases, subject, numpy, host)
    measured = [(ratio, case.label) for case in run.cases if (ratio := case.ratio(numpy, subject))]
    if not measured:
        return Finding(claim, OPEN, "The benchmark gave no ratio.", samples)
    (highest, best), largest, sentences = max(measured), run.cases[-1], []
    for library, candidate in (("NumPy", numpy), ("PyTorch", host)):
        if candidate in largest.seconds:
            beyond = crossover(run.cases, candidate, subject)
            where = f"at {beyond.label} and beyond" if beyond else f"not at the largest size, {largest.label}"
            sentences.append(f"The GPU beats {library} on this host {where}.")
    reached = crossover(run.cases, numpy, subject, GPU_CLAIM)
    at_most = f"at {reached.label} and beyond" if reached else f"at no size up to {largest.label}"
    sentences += [
        f"{GPU_CLAIM:.0f} × over NumPy is reached {at_most}; the highest ratio is {highest}, at {best}.",
        f"float32 at precision {run.provenance.precision}; NumPy on {run.provenance.threads} threads.",
        "`make bench-gpu` measures larger sizes.",
    ]
    return Finding(claim, HOLDS if reached else FAILS, " ".join(sentences), samples)


def computes_the_same(claim: Claim, run: Run) -> Finding:
    names, cases = (claim.other, claim.subject), [run.at] if run.at else []
    parities = [(name, run.rows[name].parity) for name in names]
    differences = " and ".join(
        f"{name} by {parity.gradient:.1e} and {parity.loss_curve:.1e}" for name, parity in parities
    )
    text = f"Gradient and loss curve are off the float64 reference: {differences}."
    if run.at and (ratio := _ratio_in_python(run.at, claim.subject, claim.other)):
        text += f" A step takes {format_ratio(ratio)} as {claim.of_other}."
        text += _eager_note(cases, claim.subject, claim.other)
    return Finding(claim, _both_pass(claim, run), text, _samples(cases, *_taken(cases, claim.subject, claim.other)))


def pays_for_itself(claim: Claim, run: Run) -> Finding:
    counts = [(case.label, count) for case in run.cases if (count := break_even(case, claim.subject))]
    samples = _samples(run.cases, *(Candidate(claim.subject, kind) for kind in ("build", "eager", "")))
    if not counts:
        return Finding(claim, OPEN, "The benchmark gave no break-even.", samples)
    paid = [count.all_pay for _, count in counts]
    at_sizes = "; ".join(f"at {label} {count}" for label, count in counts)
    text = f"Defining, tracing and compiling it is paid back, against the same lines run eagerly: {at_sizes}."
    return Finding(claim, HOLDS if all(paid) else PARTLY if any(paid) else FAILS, text, samples)


def follows_the_lengths(claim: Claim, run: Run) -> Finding:
    costs = [(name, loops(run.cases, name)) for name in (claim.other, claim.subject)]
    sentences = "; ".join(f"{name}: {' and '.join(parts)}" for name, parts in costs if parts)
    text = (
        f"Both compute the same. Their time depends on the lengths. {sentences}."
        if sentences
        else "Both compute the same."
    )
    if run.at and (ratio := _ratio_in_python(run.at, claim.subject, claim.other)):
        text += f" At the training's size a step of {claim.subject} takes {format_ratio(ratio)} as {claim.of_other}."
    text += _eager_note(run.cases, claim.subject, claim.other)
    if run.on_gpu and run.provenance.deterministic:
        text += f" {ON_THE_HOST}"
    samples = _samples(run.cases, *_taken(run.cases, claim.subject, claim.other))
    return Finding(claim, _both_pass(claim, run), text, samples)


def loops(cases: list[Case], name: str) -> list[str]:
    """What the time of a step follows: the sum of the lengths at the same longest, or the longest at the same sum.

    Only cases that differ in the lengths alone are compared; the list is empty where there are none.
    """
    same_longest, same_sum = [], []
    for a in cases:
        for b in cases:
            ratio = ratio_between(b, b.in_python(name), a, a.in_python(name))
            if a is b or not ratio or not a.sequence_total or not b.sequence_total:
                continue
            if network(a.problem, a.sizes) != network(b.problem, b.sizes):
                continue
            more, longest, other_longest = (
                b.sequence_total / a.sequence_total,
                a.sizes["max_length"],
                b.sizes["max_length"],
            )
            if longest == other_longest and more > 1 + ALIKE:
                of_what = f"{more:.2g} times the sum of lengths at the same longest ({longest})"
                same_longest.append((b.sequence_total, f"{of_what} takes {format_ratio(ratio)}"))
            elif longest < other_longest and abs(more - 1) < ALIKE:
                of_what = (
                    f"{other_longest / longest:.2g} times the longest at the same sum (about {a.sequence_total:.0f})"
                )
                same_sum.append((b.sequence_total, f"{of_what} takes {format_ratio(ratio)}"))
    return [max(pairs, key=lambda pair: pair[0])[1] for pairs in (same_longest, same_sum) if pairs]


def _both_pass(claim: Claim, run: Run) -> str:
    return FAILS if run.rows[claim.subject].failed or run.rows[claim.other].failed else HOLDS


def _samples(cases: list[Case], *candidates: Candidate) -> str:
    """The rows of results/benchmark.csv behind a finding."""
    measured = [candidate for candidate in candidates if any(candidate in case.seconds for case in cases)]
    if not measured:
        return "none"
    processes = max(len(case.seconds.get(candidate, ())) for case in cases for candidate in measured)
    sizes = cases[0].label if len(cases) == 1 else f"all {len(cases)} sizes"
    return f"{', '.join(map(str, measured))} at {sizes}, {processes} process{'es' * (processes > 1)}"


CLAIMS = (
    Claim("GPUs often provide speedups of 50x or greater.", times_as_fast_as_numpy, "torch_tensors"),
    Claim(
        "A PyTorch Tensor is conceptually identical to a NumPy array.",
        computes_the_same,
        "torch_tensors",
        "numpy_arrays",
        "a step in arrays",
    ),
    Claim(
        "Automatic differentiation computes the backward pass that was written by hand.",
        computes_the_same,
        "torch_autograd",
        "torch_tensors",
        "one by hand",
    ),
    Claim(
        "We can define our own autograd operator by its forward and its backward function.",
        computes_the_same,
        "torch_function",
        "torch_autograd",
        "one with PyTorch's own relu",
    ),
    Claim(
        "A static graph's up-front cost is amortised as the same graph is run over and over.",
        pays_for_itself,
        "tensorflow_graph",
    ),
    Claim(
        "A loop over time can be part of the graph, or be the host language's own.",
        follows_the_lengths,
        "tensorflow_scan",
        "torch_loop",
        "one of the loop in Python",
    ),
)
