"""The report of a small run of all implementations, in a real browser."""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from conftest import LESSONS, Clone

from pipeline import files
from pipeline.array_files import read_arrays
from pipeline.benchmark import samples
from pipeline.benchmark.candidates import Candidate
from pipeline.benchmark.headlines import HEADLINES
from pipeline.clock import TIME_BREAKDOWN
from pipeline.contract import Array
from pipeline.errors import UserError
from pipeline.git import git
from pipeline.graphs.graph import read_structure
from pipeline.params import load_params
from pipeline.problems import PROBLEMS
from pipeline.report import report_page
from pipeline.report.figures import Result
from pipeline.report.findings import CLAIMS, findings
from pipeline.results import BenchmarkProvenance, Conditions, ParityReport, Timing

needs_browser = pytest.mark.browser
CALM = Conditions(cpus_of_other_processes=0.0, stolen_cpus=0.0, gpu=None)


@pytest.fixture(scope="module")
def content(finished_pipeline: Clone) -> Iterator[dict[str, Any]]:
    """The inputs of the report: the finished pipeline's results, as if the machine had been quiet. The tests of this
    file run in its folder, and write nothing there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished_pipeline.path)
        params = load_params()
        facts = BenchmarkProvenance.read(files.BENCHMARK_PROVENANCE)
        rows = [samples.Sample.from_row(row) for row in files.read_samples()]
        yield {
            "params": params,
            "environment": files.read_environment(),
            "parity": ParityReport.read(files.PARITY_REPORT),
            "results": {
                name: Result(problem, Timing.read(files.result_file(name, "timing.json")), *files.read_history(name))
                for name, problem in params.implementations.items()
            },
            "predictions": {problem: files.read_predictions(problem) for problem in params.used_problems},
            "benchmark": samples.collect(rows, facts.model_copy(update={"processes": [CALM] * len(facts.processes)})),
            "structures": {name: read_structure(name) for name in params.implementations},
            "bench": [],
            "seeds": None,
        }


def written(content: dict[str, Any], **changes: Any) -> tuple[str, dict[str, str]]:
    """The page and its figures for results with these changes."""
    changed = content | changes
    params = changed["params"]
    sizes = {problem: params.problems[problem].sizes for problem in params.used_problems}
    statements = findings(changed["benchmark"], changed["parity"], sizes, changed.pop("structures"))
    return report_page.write(statements=statements, **changed)


@pytest.fixture(scope="module")
def page(content: dict[str, Any]) -> str:
    return written(content)[0]


@pytest.fixture(scope="module")
def opened(page: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page)
    with browser.chromium() as opened:
        opened.get(path.as_uri())
        yield opened


@pytest.mark.parametrize("name", LESSONS)
def test_time_breakdown_adds_up_to_the_wall_clock(content: dict[str, Any], name: str):
    timing = content["results"][name].timing
    assert timing.breakdown_seconds.keys() == TIME_BREAKDOWN.keys()
    assert sum(timing.breakdown_seconds.values()) == pytest.approx(timing.wall_seconds, abs=1e-6)
    assert min(timing.breakdown_seconds.values()) >= 0


def test_first_lines_name_the_fastest_implementation_of_each_problem(content: dict[str, Any], page: str):
    quickest = changed_timing(content, "torch_loop", step_seconds_median=1e-6)
    without = content["benchmark"]._replace(cases=[])
    shown = written(content, results=quickest, benchmark=without)[0]
    assert "A step of recurrent took 1 µs with torch_loop, the fastest." in shown
    shown = written(content, results=quickest)[0]
    for problem in PROBLEMS:
        case = content["benchmark"].at(problem, content["params"].problems[problem].sizes)
        names = content["params"].names_of(problem)
        fastest = min(names, key=lambda name: case.median(Candidate(name)))
        assert re.search(rf"A step of {problem} took [^.]*(\.\d+)? .s with {fastest}, the fastest\.", shown)
    assert page.count(", the fastest.") == len(PROBLEMS)


def test_report_names_device_versions_date_and_commit(content: dict[str, Any], page: str):
    timing, environment = content["results"]["numpy_arrays"].timing, content["environment"]
    commit = git("rev-parse", "HEAD")
    assert f"<code>{commit[:12]}</code> with changes" in page  # params.yaml is not the committed one
    for fact in (environment.device_name, environment.versions["torch"], "30 steps of 16 examples"):
        assert fact in page
    assert timing.measured_at[:16].replace("T", " ") in page


def test_figures_are_also_written_as_files(content: dict[str, Any]):
    _, figures = written(content)
    assert figures.keys() == {
        "loss_two_layer", "loss_recurrent", "predictions", "time_breakdown", "step_time_two_layer",
        "speed_up_two_layer", "break_even", "loops_recurrent",
    }  # fmt: skip
    assert all(figure.startswith('<svg style="background: white"') for figure in figures.values())


@pytest.mark.parametrize("problem", PROBLEMS)
def test_shown_predictions_are_those_of_the_first_implementation(content: dict[str, Any], problem: str):
    y = np.load(files.data_folder(problem) / "test_y.npy")
    name = content["params"].names_of(problem)[0]
    predictions = read_arrays(files.outputs_file(name))["predictions"]
    shown = np.array(content["predictions"][problem], np.float32)
    np.testing.assert_array_equal(shown, [y.reshape(-1), predictions.reshape(-1)])


def with_data(content: dict[str, Any], **data: Any) -> dict[str, Any]:
    params = content["params"]
    return content | {"params": params.model_copy(update={"data": params.data.model_copy(update=data)})}


def test_noise_floor_is_the_variance_of_the_noise_in_the_targets(content: dict[str, Any], page: str):
    assert "noise of standard deviation 0.1. So no prediction can have an expected loss below 0.01," in page
    noisier, figures = written(with_data(content, noise=0.5))
    assert "noise of standard deviation 0.5. So no prediction can have an expected loss below 0.25," in noisier
    random, without_band = written(with_data(content, target="random", noise=0.5))
    assert "normal noise of variance 1 that" in random
    assert "have an expected loss below 1, and R² on held-out data is about 0 or below" in random
    assert "shaded band" in noisier
    assert "shaded band" not in random
    assert figures["predictions"] != without_band["predictions"]


def test_report_shows_the_numbers_of_weights_and_examples(page: str):
    """For the sizes in conftest.py: 20 × 8 + 8 × 3 weights, and 4 × 6 + 6 × 6 + 6 × 3."""
    assert "Training fits 184 weights to 96 examples (two_layer) and 78 weights to 96 examples (recurrent)." in page


def test_problem_with_another_loss_has_no_noise_floor(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """Its predictions may be logits, which are no targets."""

    def cross_entropy(y_pred: Array, y: Array) -> float:
        raise NotImplementedError

    monkeypatch.setattr("pipeline.problems.recurrent.loss", cross_entropy)
    page, figures = written(content)
    assert "The targets of two_layer are" in page
    assert "recurrent: " not in figures["predictions"]
    monkeypatch.setattr("pipeline.problems.two_layer.loss", cross_entropy)
    page, figures = written(content)
    assert "expected loss below" not in page
    assert "predictions" not in figures


def test_same_results_give_the_same_report(content: dict[str, Any], page: str):
    """Byte by byte, at any time."""
    os.utime(files.ENVIRONMENT)
    assert written(content)[0] == page


def test_matplotlib_settings_of_the_user_change_no_figure(finished: Clone, tmp_path: Path):
    before = finished.digests("report/*.svg")
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.grid: true\nlines.linewidth: 9\n")
    settings = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "MPLCONFIGDIR": str(tmp_path)}
    finished.run(sys.executable, "-m", "stages.report", env=settings)
    assert finished.digests("report/*.svg") == before


def changed_timing(content: dict[str, Any], name: str, **changes: Any) -> dict[str, Result]:
    result = content["results"][name]
    return content["results"] | {name: result._replace(timing=result.timing.model_copy(update=changes))}


def test_timings_of_an_earlier_run_are_labelled(content: dict[str, Any], page: str):
    assert "in an earlier run" not in page
    earlier = "2026-01-02T03:04:05.678+00:00"
    labelled, _ = written(
        content, results=changed_timing(content, "torch_loop", measured_at=earlier, run_began=earlier)
    )
    assert labelled.count("<strong>in an earlier run</strong>") == 1
    assert "2026-01-02 03:04 UTC<br>on " in labelled


def test_failed_parity_check_is_shown_in_the_report(content: dict[str, Any]):
    rows = {
        name: row.model_copy(update={"failed": ["gradient"]}) for name, row in content["parity"].implementations.items()
    }
    page, _ = written(content, parity=content["parity"].model_copy(update={"implementations": rows}))
    assert "✗ Parity failed:" in page
    assert page.count("✗ gradient") == len(LESSONS)
    assert 'class="verdict does-not-hold"' in page


RATIO = re.compile(r"[\d.e+-]+ × \([\d.e+-]+ … [\d.e+-]+\)")


def test_benchmark_on_a_busy_machine_gives_no_ratio(content: dict[str, Any], page: str):
    measured = content["benchmark"]
    busy = CALM.model_copy(update={"cpus_of_other_processes": 1.4})
    processes = {"processes": [busy] * len(measured.provenance.processes), "cpus": 2}
    rows = [samples.Sample.from_row(row) for row in files.read_samples()]
    disturbed = samples.collect(rows, measured.provenance.model_copy(update=processes))
    doubted, figures = written(content, benchmark=disturbed)
    assert "cannot tell: other processes took 1.4 of 2 CPUs" in doubted
    assert RATIO.search(page)
    assert not RATIO.search(doubted)
    assert "speed_up_two_layer" not in figures


def on_a_gpu(taken: Iterable[samples.Sample]) -> Iterator[samples.Sample]:
    """Samples like those of a GPU: torch's steps replayed, beside eager steps and two baselines."""
    for sample in taken:
        kind, name, seconds = sample.candidate.kind, sample.candidate.name, sample.seconds
        if kind == "build" or (kind, name) in (("matmul", "numpy"), ("matmul", "tensorflow")):
            continue
        factors = {"": 1.0}
        if not kind and name.startswith("torch"):
            yield sample._replace(seconds=0.01 * seconds, replays=sample.steps)
            factors = {"eager": 0.05, "launch_floor": 0.008}
            if sample.round == 0:
                capture = Candidate(name, "capture")
                yield sample._replace(candidate=capture, seconds=20 * seconds / sample.steps, steps=1)
            if name == "torch_tensors":
                factors["cpu"] = 1.0
        elif (kind, name) == ("matmul", "torch"):
            for framework, factor in (("torch", 0.004), ("tensorflow", 0.006), ("numpy", 1.0)):
                yield sample._replace(candidate=Candidate(framework, kind), seconds=factor * seconds)
            continue
        for of, factor in factors.items():
            candidate = Candidate(name, of) if of else sample.candidate
            yield sample._replace(candidate=candidate, seconds=factor * seconds)


def test_gpu_benchmark_names_replays_and_both_baselines(content: dict[str, Any]):
    """The figures are scaled from those of this machine; the page is real."""
    gpu = {"other_processes": 0, "busy_before_percent": 0, "throttled_by": [], "power_capped": False}
    device = {"device": "cuda:0", "device_name": "NVIDIA H100"}
    where = content["benchmark"].provenance
    on_gpu_alone = [CALM.model_copy(update={"gpu": gpu})] * len(where.processes)
    where = where.model_copy(update=device | {"processes": on_gpu_alone})
    taken = (samples.Sample.from_row(row) for row in files.read_samples())
    page, figures = written(
        content,
        environment=replace(content["environment"], driver="580.1", **device),
        benchmark=samples.collect(on_a_gpu(taken), where),
        results=changed_timing(content, "torch_autograd", replayed_steps=24, captured_graphs=6, **device),
    )
    step_time = figures["step_time_two_layer"]
    for framework in ("torch", "tensorflow"):
        assert f"the matrix products alone, {framework}" in step_time
    assert re.search("launch floor: as many empty kernels as torch_[a-z]+ has", step_time)
    for text in (
        "Replaying torch_autograd",
        "The GPU: other processes on it: 0, throttled by: nothing.",
        "ran eagerly: replaying a CUDA graph runs no Python and no autograd",
        "Capturing the step on a batch takes",
        "the gradient of <code>tf.gather_nd</code>, on the CPU",
        "24 steps were replays of 6 CUDA graphs",
    ):
        assert text in page, text
    cpu_row = page[page.index(">cpu/torch_tensors<") :].partition("</tr>")[0]
    assert "×" not in cpu_row.rpartition("<td")[2], "a step on the host is no multiple of the GPU's matrix products"


def test_results_of_make_bench_are_shown(content: dict[str, Any], page: str):
    """Its table has the samples of `benchmark`, and those that only `make bench` measures."""
    module = Candidate("torch_module", "peers", "fused")
    taken = [samples.Sample.from_row(row) for row in files.read_samples()]
    beside = {"torch_tensors": Candidate("torch_autograd", "tuned"), "torch_function": module}
    taken = [sample._replace(candidate=beside.get(str(sample.candidate), sample.candidate)) for sample in taken]
    shown, _ = written(content, bench=[samples.collect(taken, content["benchmark"].provenance)])
    link = '<a href="pipeline/benchmark/peers/torch_module.py">peers/torch_module+fused</a>'
    assert link in shown
    assert '<a href="pipeline/benchmark/tuned/torch_autograd.py">' in shown
    assert link not in page
    assert "What else one could write" not in page


@pytest.mark.parametrize("name", ["numpy_arrays", "tensorflow_graph", "torch_loop"])
def test_report_of_one_implementation_is_written(content: dict[str, Any], name: str):
    params = content["params"].model_copy(update={"implementations": {name: LESSONS[name]}})
    measured = content["benchmark"]
    cases = [
        case._replace(
            seconds={key: value for key, value in case.seconds.items() if key.name in (name, "numpy", "torch")}
        )
        for case in measured.of(LESSONS[name])
    ]
    parity = content["parity"].model_copy(update={"implementations": {name: content["parity"].implementations[name]}})
    page, figures = written(
        content,
        params=params,
        parity=parity,
        results={name: content["results"][name]},
        benchmark=samples.Benchmark(cases, measured.provenance),
    )
    assert "1 implementation of" in page
    assert ("can be judged by these implementations alone" in page) == (name != "tensorflow_graph")
    assert "speed_up_two_layer" not in figures  # there is nothing to compare it with
    assert {"time_breakdown", f"loss_{LESSONS[name]}"} <= figures.keys()


def test_missing_benchmark_gives_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^results/benchmark\.csv is missing\. `dvc repro benchmark` makes it\.$"):
        samples.read()


def test_report_states_that_a_sweep_left_the_benchmark_out(finished: Clone):
    for path in (files.BENCHMARK, files.BENCHMARK_PROVENANCE):
        (finished.path / path).write_bytes(b"")
    finished.run(sys.executable, "-m", "stages.report")
    assert (
        "There was no benchmark: it was left out (make sweep SHARE=… does" in (finished.path / files.REPORT).read_text()
    )
    done = finished.run(sys.executable, "-m", "stages.track")
    assert "MLflow shows" in done.stdout


@needs_browser
def test_report_fetches_nothing_and_logs_no_error(opened: Any, page: str):
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    requested = {
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    }
    own_schemes = ("chrome:", "data:")  # the browser's own first page
    assert {url for url in requested if not url.startswith(own_schemes)} == {opened.current_url}
    assert opened.get_log("browser") == []
    assert not re.search(r"""(src|href)=["']https?:""", page)


@needs_browser
def test_report_shows_every_claim_implementation_and_figure(opened: Any):
    text = opened.find_element("tag name", "body").text
    for name in LESSONS:
        assert name in text
    verdicts = opened.execute_script("return [...document.querySelectorAll('.verdict')].map(each => each.innerText)")
    assert len(verdicts) == len(CLAIMS)
    judged = {"Holds.", "Does not hold.", "Partly.", "Cannot tell.", "Not answered here."}
    assert set(verdicts) <= judged | {"An illustration, without a verdict."}
    assert text.count("It holds if: ") == sum(bool(claim.criterion) for claim in CLAIMS)
    assert "50x or greater" in text
    assert "amortized" in text
    heights = opened.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(each => each.getBoundingClientRect().height)"
    )
    assert len(heights) == 8
    assert min(heights) > 100


@needs_browser
def test_report_begins_with_parity_and_ablations(opened: Any):
    text = opened.find_element("tag name", "body").text
    parts = [
        "Parity passed",
        "What each idea costs or saves",
        "Claims of the text",
        "The implementations",
        "Loss curves",
    ]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    lines = opened.execute_script("return [...document.querySelectorAll('.ablations li')].map(each => each.innerText)")
    # Without a GPU one line says so, in place of two.
    shown = [headline.idea for headline in HEADLINES if headline.idea != "The GPU, over NumPy"]
    assert [line.splitlines()[0] for line in lines] == shown
    ratio = re.compile(
        r"(Faster|Slower|The same within 5 %|Cannot tell)\. "
        r"A step takes [\d.e+-]+ × \([\d.e+-]+ … [\d.e+-]+\) as long"
    )
    assert [bool(ratio.search(line)) for line in lines] == [idea != "The GPU" for idea in shown]
    assert len(opened.find_elements("css selector", ".ablations .interval")) == len(shown) - 1


@needs_browser
def test_report_links_to_the_lessons(opened: Any):
    (link,) = opened.execute_script("return [...document.querySelectorAll('.pages a')].map(each => each.href)")
    assert link == opened.current_url.replace("report.html", "lessons.html")
    assert f'<section id="{next(iter(LESSONS))}"' in Path("lessons.html").read_text()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_has_no_serious_accessibility_violation(opened: Any, scheme: str):
    """With the ratios and figures that a page of the lessons' tests lacks."""
    browser.prefer(opened, scheme)
    assert browser.violations(opened) == []


@needs_browser
@pytest.mark.parametrize("width", [360, 380, 1100, 1200, 1900])
def test_report_fits_narrow_and_wide_screens(opened: Any, width: int):
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    table = "const table = document.querySelector('#seven ~ .scroll'); return table.scrollWidth - table.clientWidth"
    assert width < 1100 or opened.execute_script(table) == 0
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@needs_browser
def test_text_of_figures_is_at_least_9_pixels_high_on_a_phone(opened: Any):
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    pixels = opened.execute_script(
        "return [...document.querySelectorAll('figure svg')].flatMap(svg => [...svg.querySelectorAll('text')].map("
        "text => parseFloat(getComputedStyle(text).fontSize) * svg.clientWidth / svg.viewBox.baseVal.width))"
    )
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert len(pixels) > 20
    assert min(pixels) >= 9


@needs_browser
def test_report_follows_the_light_and_dark_scheme(opened: Any):
    seen = {}
    for scheme in ("light", "dark"):
        opened.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        script = (
            "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
            "getComputedStyle(document.querySelector('figure svg text')).fill]"
        )
        seen[scheme] = opened.execute_script(script)
    assert lightness(seen["light"][0]) > 200
    assert lightness(seen["dark"][0]) < 50
    for background, ink, figure_ink in seen.values():
        assert ink == figure_ink
        assert abs(lightness(background) - lightness(ink)) > 150


def lightness(colour: str) -> float:
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3]) / 3
