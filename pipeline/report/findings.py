"""The findings: what each idea costs or saves, and a verdict on each claim of the text. This module turns samples into
sentences. It measures nothing and draws nothing. Every verdict follows from an interval, the parity report or a count.
A claim has a criterion that these can refute. A claim that cannot be measured is an illustration and has no verdict. A
ratio is given only for candidates that were interleaved.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, inf, isfinite
from typing import NamedTuple

import numpy as np

from pipeline.benchmark.candidates import Candidate
from pipeline.benchmark.headlines import HEADLINES, Headline
from pipeline.benchmark.intervals import FASTER, SLOWER, UNKNOWN, Estimate, comparison, geometric_mean, verdict
from pipeline.benchmark.samples import Benchmark, Case, network, ratio_between
from pipeline.graphs.graph import Structure
from pipeline.measures import Measures
from pipeline.report.illustrations import backward_lines, difference
from pipeline.results import BenchmarkProvenance, Judged, ParityReport, Summary, Timing

GPU_CLAIM = 50.0  # times as fast as NumPy
ON_THE_HOST = (  # scatter_nd_op.cc of TensorFlow 2.21
    "On a GPU, with `deterministic: true`, TensorFlow computes one part of this lesson's backward pass, the gradient "
    "of `tf.gather_nd`, on the CPU: copies to the host and back in every step."
)
EAGERLY = "the same lines run eagerly"
BELOW = {  # the denominator of a headline, in words
    "Autograd": "one whose backward pass is written by hand",
    "An operator of our own": "one with PyTorch's own relu",
    "The static graph": EAGERLY,
    "Fusing operations up front": "the same graph without XLA",
    "The loop in the graph": EAGERLY,
    "A graph as long as each example": "the same loop on batches that are padded to the longest example",
    "The GPU": "the same tensors on this host's CPU",
    "The GPU, over NumPy": "NumPy's on this host",
    "Two ways to loop, as they are": "one of `torch_loop`; framework, padding and graph all differ",
}
IN_PYTHON = ("Autograd", "An operator of our own")  # judged by steps in which Python runs
CAPTURED = ("torch_autograd", "torch_loop")  # the lessons for which the report says what replaying saves
ALIKE = 0.1  # two sums of lengths that differ by less count as the same

HOLDS, FAILS, PARTLY, OPEN = "holds", "does not hold", "partly", "not answered here"
ILLUSTRATION = "illustration"  # the verdict on a claim that no measurement can refute
Sizes = Mapping[str, Mapping[str, int]]  # of each problem's training
Structures = Mapping[str, Structure]  # of each implementation


class Run(NamedTuple):
    """The evidence for a claim: its problem's benchmark, the case `at` the training's size, the parity rows, and the
    graphs that the frameworks defined."""

    cases: list[Case]
    at: Case | None
    rows: Mapping[str, Judged]
    structures: Structures
    provenance: BenchmarkProvenance

    @property
    def on_gpu(self) -> bool:
        return self.provenance.device != "cpu"


class Claim(NamedTuple):
    """A claim of the text. `subject` and `other` are implementations; it is judged where both were run. `criterion` is
    the condition under which it holds."""

    text: str
    criterion: str
    judge: Callable[["Claim", Run], "Finding"]
    subject: str
    other: str = ""


class Finding(NamedTuple):
    claim: Claim
    verdict: str
    text: str
    samples: str  # the samples behind it
    lines: Sequence[str] = ()  # an illustration


class Ablation(NamedTuple):
    """The ratio of a step's times with one idea and without it, at the training's size, and the verdict."""

    idea: str
    text: str
    ratio: Estimate | None

    @property
    def verdict(self) -> str:
        return verdict(self.ratio) if self.ratio else UNKNOWN


class BreakEven(NamedTuple):
    """The steps after which a graph has paid back its cost before the second step. `steps` is None if in some process
    the graph is no faster than the same lines run eagerly: then it never pays.
    """

    steps: Estimate | None
    builds: int

    def __str__(self) -> str:
        if self.steps is None:
            return "never"
        value, low, high = self.steps
        return f"after {value:.0f} steps" + f" ({low:.0f} … {high:.0f})" * isfinite(high)


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


def findings(
    benchmark: Benchmark, parity: ParityReport, training_sizes: Sizes, structures: Structures
) -> list[Finding]:
    """A finding for each claim whose implementations were run."""
    rows, statements = parity.implementations, []
    for claim in CLAIMS:
        if {claim.subject, claim.other or claim.subject} <= rows.keys():
            problem = rows[claim.subject].problem
            at = benchmark.at(problem, training_sizes[problem])
            finding = claim.judge(claim, Run(benchmark.of(problem), at, rows, structures, benchmark.provenance))
            doubt = next((case.doubt for case in benchmark.of(problem) if case.doubt), "")
            note = f" (Times: {doubt}.)" if doubt and finding.verdict not in (OPEN, ILLUSTRATION) else ""
            statements.append(finding._replace(text=finding.text + note))
    return statements


def ablations(benchmark: Benchmark, parity: ParityReport, training_sizes: Sizes) -> list[Ablation]:
    """The headlines: what one idea costs or saves, for the implementations that were run."""
    on_gpu, rows, answers = benchmark.provenance.device != "cpu", parity.implementations, []
    headlines = [*HEADLINES]
    if on_gpu:
        headlines += [
            Headline(f"Replaying {name}", Candidate(name), Candidate(name, "eager"), 0.1) for name in CAPTURED
        ]
    for headline in headlines:
        if {headline.above.name, headline.below.name} <= rows.keys():
            problem = rows[headline.above.name].problem
            answer = _ablation(headline, benchmark, benchmark.at(problem, training_sizes[problem]), on_gpu=on_gpu)
            # On a CPU one line says that there is no GPU.
            answers += [answer] if on_gpu or not headline.on_gpu or headline.below.kind == "cpu" else []
    return answers


def _ablation(headline: Headline, benchmark: Benchmark, at: Case | None, *, on_gpu: bool) -> Ablation:
    idea, above, below, _, needs_gpu = headline
    in_python = idea in IN_PYTHON
    if needs_gpu and not on_gpu:
        return Ablation(idea, "This run had no CUDA device.", None)
    if at is None:
        reason = "the benchmark has no size that equals the training's" if benchmark.cases else "there was no benchmark"
        return Ablation(idea, f"Cannot tell: {reason}.", None)
    ratio = _ratio_in_python(at, above.name, below.name) if in_python else at.ratio(above, below)
    if ratio is None:
        absent = (
            "the graph is too large for XLA to be used" if below.option == "no_xla" else "they were not interleaved"
        )
        return Ablation(idea, f"Cannot tell: {at.doubt.partition(': ')[2] or absent}.", None)
    more = _eager_note([at], above.name, below.name) if in_python else ""
    if below.kind == "eager":
        count = break_even(at, above.name)
        more += f" The cost of building the graph is paid back {count}." if count else ""
        more += capture_cost(at, above.name)
    return Ablation(idea, f"A step takes {ratio} as long as {BELOW.get(idea, EAGERLY)}.{more}", ratio)


def _ratio_in_python(case: Case, name: str, other: str) -> Estimate | None:
    return case.ratio(case.in_python(name), case.in_python(other))


def _taken(cases: list[Case], *names: str) -> list[Candidate]:
    """The candidates that `_ratio_in_python` uses for some implementations."""
    return list(dict.fromkeys(case.in_python(name) for name in names for case in cases))


def _eager_note(cases: list[Case], *names: str) -> str:
    """A sentence on the implementations that train by replays and were judged by their eager steps; empty if none."""
    eager = [name for name in names if any(case.in_python(name) != Candidate(name) for case in cases)]
    if not eager:
        return ""
    return f" For this, {' and '.join(eager)} ran eagerly: replaying a CUDA graph runs no Python and no autograd."


def capture_cost(case: Case, name: str) -> str:
    """A sentence on the cost of the CUDA graph of a step; empty if none was captured."""
    lesson, eager, capture = Candidate(name), Candidate(name, "eager"), Candidate(name, "capture")
    if not {eager, capture, lesson} <= case.seconds.keys():
        return ""
    saved, seconds = case.median(eager) - case.median(lesson), case.median(capture)
    replays = ceil(seconds / saved) if saved > 0 else 0
    paid = f"paid back after {replays} replay{'s' * (replays > 1)}" if replays else "never paid back"
    return f" Capturing the step on a batch takes {1e3 * seconds:.2f} ms, {paid}."


def break_even(case: Case, name: str) -> BreakEven | None:
    """None where the benchmark lacks a candidate for it, or its processes were disturbed."""
    build, eager, step = (case.seconds.get(Candidate(name, kind), {}) for kind in ("build", "eager", ""))
    processes = sorted(build.keys() & eager.keys() & step.keys())
    if not processes or case.disturbed.keys() & processes:
        return None
    counts = []
    for process in processes:
        up_front, slower, faster = (float(np.median(seconds[process])) for seconds in (build, eager, step))
        counts.append((up_front - faster) / (slower - faster) if slower > faster else inf)
    return BreakEven(geometric_mean(counts) if max(counts) < inf else None, len(counts))


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
    refuted = max(ratio.high for ratio, _ in measured) < GPU_CLAIM
    at_most = f"at {reached.label} and beyond" if reached else f"at no size up to {largest.label}"
    if not reached and not refuted:
        at_most = "perhaps at some size: an interval contains it"
    sentences += [
        f"{GPU_CLAIM:.0f} × over NumPy is reached {at_most}; the highest ratio is {highest}, at {best}.",
        f"float32 at precision {run.provenance.precision}; NumPy on {run.provenance.threads} threads.",
        "`make bench-gpu` measures larger sizes.",
    ]
    return Finding(claim, HOLDS if reached else FAILS if refuted else UNKNOWN, " ".join(sentences), samples)


def looks_the_same(claim: Claim, run: Run) -> Finding:
    problem = run.rows[claim.subject].problem
    shown = difference(problem, claim.other, claim.subject)
    text = f"{shown.same} of the {shown.of} lines of `{claim.subject}` are lines of `{claim.other}`. The others differ."
    if run.at and (ratio := _ratio_in_python(run.at, claim.subject, claim.other)):
        text = f"{comparison(ratio, 'one in arrays')} {text}"
    samples = _samples([run.at] if run.at else [], Candidate(claim.subject), Candidate(claim.other))
    return Finding(claim, ILLUSTRATION, text, samples, shown.lines)


def gets_hairy(claim: Claim, run: Run) -> Finding:
    counted = {name: backward_lines(row.problem, name) for name, row in run.rows.items()}
    counts = ", ".join(f"`{name}` {count}" for name, count in counted.items() if count)
    return Finding(claim, ILLUSTRATION, f"Lines of code in which the backward pass is written down: {counts}.", "none")


def computes_the_same(claim: Claim, run: Run) -> Finding:
    names, cases = (claim.other, claim.subject), [run.at] if run.at else []
    parities = [(name, run.rows[name].parity) for name in names]
    differences = " and ".join(
        f"{name} by {parity.gradient:.1e} and {parity.loss_curve:.1e}" for name, parity in parities
    )
    text = f"Gradient and loss curve are off the float64 reference: {differences}."
    if failed := [name for name in names if run.rows[name].failed]:
        text += f" {' and '.join(failed)} failed the parity check."
    if run.at and (ratio := _ratio_in_python(run.at, claim.subject, claim.other)):
        text += f" {comparison(ratio, f'one of `{claim.other}`')}"
        text += _eager_note(cases, claim.subject, claim.other)
    samples = _samples(cases, *_taken(cases, claim.subject, claim.other))
    return Finding(claim, FAILS if failed else HOLDS, text, samples)


def defines_graphs(claim: Claim, run: Run) -> Finding:
    """A finding on a static graph, `subject`, and a dynamic graph, `other`."""
    static, dynamic = run.structures[claim.subject], run.structures[claim.other]
    batches = f", on batches of {static.lengths} different lengths," * bool(static.lengths)
    text = (
        f"In {static.steps} steps{batches} `{claim.subject}` defined {_graphs(static)}; in {dynamic.steps} steps "
        f"`{claim.other}` defined {_graphs(dynamic)}."
    )
    if static.graphs is None or dynamic.graphs is None:
        return Finding(claim, OPEN, text, "none")
    holds = (static.graphs, dynamic.graphs) == (1, dynamic.steps)
    if failed := [name for name in (claim.subject, claim.other) if run.rows[name].failed]:
        text += f" {' and '.join(failed)} failed the parity check."
    more, samples = "", "none"
    if static.lengths:
        costs = [(name, loops(run.cases, name)) for name in (claim.other, claim.subject)]
        more = "".join(f" {name}: {' and '.join(parts)}." for name, parts in costs if parts)
        more += _eager_note(run.cases, claim.subject, claim.other)
        samples = _samples(run.cases, *_taken(run.cases, claim.subject, claim.other)) if more else "none"
        if run.on_gpu and run.provenance.deterministic:
            more += f" {ON_THE_HOST}"
    return Finding(claim, HOLDS if holds and not failed else FAILS, text + more, samples)


def _graphs(structure: Structure) -> str:
    number = structure.graphs
    return "an unknown number of graphs" if number is None else f"{number} graph{'s' * (number != 1)}"


def fuses(claim: Claim, run: Run) -> Finding:
    structure, cases = run.structures[claim.subject], [run.at] if run.at else []
    graph, without = Candidate(claim.subject), Candidate(claim.subject, option="no_xla")
    ratio, before, after = (
        run.at and run.at.ratio(graph, without),
        structure.operations_before,
        structure.operations_after,
    )
    samples = _samples(cases, graph, without)
    if before is None or after is None:
        return Finding(claim, OPEN, "The operations were not counted.", samples)
    text = f"The graph of a step has {before} operations before XLA optimises it, and {after} afterwards."
    if not ratio:
        return Finding(claim, OPEN, f"{text} The benchmark gave no ratio of its times.", samples)
    text += f" {comparison(ratio, 'the same graph without XLA')}"
    fewer, word = after < before, verdict(ratio)
    answer = HOLDS if fewer and word == FASTER else FAILS if not fewer or word == SLOWER else PARTLY
    return Finding(claim, UNKNOWN if word == UNKNOWN else answer, text, samples)


def pays_for_itself(claim: Claim, run: Run) -> Finding:
    graph, eager = Candidate(claim.subject), Candidate(claim.subject, "eager")
    samples = _samples(run.cases, Candidate(claim.subject, "build"), eager, graph)
    measured = [(case, verdict(ratio)) for case in run.cases if (ratio := case.ratio(graph, eager))]
    if not measured:
        return Finding(claim, OPEN, "The benchmark gave no break-even.", samples)
    words = [word for _, word in measured]
    counts = [(case, word, break_even(case, claim.subject)) for case, word in measured]
    at_sizes = "; ".join(
        f"at {case.label} {count}" if count and word == FASTER else f"at {case.label} a step is {_told(word)}"
        for case, word, count in counts
    )
    text = f"The cost of building the graph, compared with the same lines run eagerly, is paid back: {at_sizes}."
    if all(word == FASTER for word in words):
        answer = HOLDS
    elif FASTER in words:
        answer = PARTLY
    else:
        answer = UNKNOWN if UNKNOWN in words else FAILS
    return Finding(claim, answer, text, samples)


def _told(word: str) -> str:
    return "not known to be faster" if word == UNKNOWN else f"{word}, so it never is" if word == SLOWER else word


def loops(cases: list[Case], name: str) -> list[str]:
    """Sentences on what the time of a step depends on: the sum of the lengths at the same longest length, or the
    longest length at the same sum. Only cases that differ in nothing but the lengths are compared; empty if there are
    none.
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
                same_longest.append((b.sequence_total, f"{of_what} takes {ratio} as long ({verdict(ratio)})"))
            elif longest < other_longest and abs(more - 1) < ALIKE:
                of_what = (
                    f"{other_longest / longest:.2g} times the longest at the same sum (about {a.sequence_total:.0f})"
                )
                same_sum.append((b.sequence_total, f"{of_what} takes {ratio} as long ({verdict(ratio)})"))
    return [max(pairs, key=lambda pair: pair[0])[1] for pairs in (same_longest, same_sum) if pairs]


def _samples(cases: list[Case], *candidates: Candidate) -> str:
    """The rows of results/benchmark.csv on which a finding rests."""
    measured = [candidate for candidate in candidates if any(candidate in case.seconds for case in cases)]
    if not measured:
        return "none"
    processes = max(len(case.seconds.get(candidate, ())) for case in cases for candidate in measured)
    sizes = cases[0].label if len(cases) == 1 else f"all {len(cases)} sizes"
    return f"{', '.join(map(str, measured))} at {sizes}, {processes} process{'es' * (processes > 1)}"


CLAIMS = (
    Claim(
        "GPUs often provide speedups of 50x or greater.",
        "At some size, and at every larger one, NumPy's step takes more than 50 times as long as the GPU's.",
        times_as_fast_as_numpy,
        "torch_tensors",
    ),
    Claim(
        "A PyTorch Tensor is conceptually identical to a numpy array.",
        "",
        looks_the_same,
        "torch_tensors",
        "numpy_arrays",
    ),
    Claim("Manually implementing the backward pass can quickly get very hairy.", "", gets_hairy, "torch_tensors"),
    Claim(
        "We can use automatic differentiation to automate the computation of backward passes.",
        "Both the lesson that differentiates automatically and the one whose backward pass is by hand pass the parity "
        "check: gradient, loss curve and predictions.",
        computes_the_same,
        "torch_autograd",
        "torch_tensors",
    ),
    Claim(
        "We can define our own autograd operator by implementing the forward and backward functions.",
        "Both the lesson with an operator of its own and the one with PyTorch's pass the parity check.",
        computes_the_same,
        "torch_function",
        "torch_autograd",
    ),
    Claim(
        "In TensorFlow, we define the computational graph once. In PyTorch, each forward pass defines a new one.",
        "In several steps TensorFlow defines one graph, and PyTorch as many as there are steps.",
        defines_graphs,
        "tensorflow_graph",
        "torch_autograd",
    ),
    Claim(
        "A framework might decide to fuse some graph operations for efficiency.",
        "After XLA's optimisation the graph has fewer operations, and a step takes less time than without it.",
        fuses,
        "tensorflow_graph",
    ),
    Claim(
        "This potentially costly up-front optimization can be amortized as the same graph is rerun over and over.",
        "At every size a step of the graph takes less time than the same lines run eagerly, which pays its cost back.",
        pays_for_itself,
        "tensorflow_graph",
    ),
    Claim(
        "With a static graph the loop construct needs to be a part of the graph; with dynamic graphs we build graphs "
        "on-the-fly for each example.",
        "On batches of different lengths the static graph is defined once and the dynamic one in every step. Both pass "
        "the parity check.",
        defines_graphs,
        "tensorflow_scan",
        "torch_loop",
    ),
)
