"""The report of a small run of all implementations, in a real browser."""

import csv
import json
import os
import re
from collections.abc import Callable
from typing import Any

import browser
import pytest
from conftest import LESSONS, Clone

from pipeline.clock import TIME_BREAKDOWN

needs_browser = pytest.mark.skipif(
    bool(browser.is_missing()), reason=f"the report is not looked at: {browser.is_missing()}"
)


@pytest.fixture(scope="module")
def clone(make_clone: Callable[..., Clone]) -> Clone:
    """As on a quiet machine: other tests run beside this one, and a busy machine gets no ratios."""
    clone = make_clone(*LESSONS)
    clone.run("dvc", "repro")
    file = clone.path / "results/benchmark.json"
    content = json.loads(file.read_text()) | {"cpus_of_other_processes": 0.0}
    file.unlink()  # it may be a link to DVC's cache
    file.write_text(json.dumps(content))
    clone.run("dvc", "commit", "-f", "benchmark")
    clone.run("dvc", "repro")
    return clone


@pytest.fixture(scope="module")
def page(clone: Clone) -> str:
    return (clone.path / "report.html").read_text()


@pytest.fixture(scope="module")
def opened(clone: Clone):
    with browser.chromium() as opened:
        opened.get((clone.path / "report.html").as_uri())
        yield opened


def timing(clone: Clone, name: str) -> dict[str, Any]:
    return json.loads((clone.path / f"results/{name}/timing.json").read_text())


@pytest.mark.parametrize("name", LESSONS)
def test_the_time_breakdown_adds_up_to_the_wall_clock(clone: Clone, name: str):
    seconds = timing(clone, name)
    breakdown = [seconds[f"{line}_seconds"] for line in TIME_BREAKDOWN]
    assert sum(breakdown) == pytest.approx(seconds["wall_seconds"], abs=1e-6)
    assert min(breakdown) >= 0


def test_it_says_what_was_run_on_what_when_and_from_which_commit(clone: Clone, page: str):
    commit = clone.run("git", "rev-parse", "HEAD").stdout.strip()
    environment = json.loads((clone.path / "environment.json").read_text())
    assert f"<code>{commit[:12]}</code> with changes" in page  # params.yaml is not the committed one
    for fact in (environment["device_name"], environment["versions"]["torch"], "30 steps of 16 examples"):
        assert fact in page
    assert timing(clone, "numpy_arrays")["measured_at"][:16].replace("T", " ") in page


def test_figures_are_files_too(clone: Clone):
    figures = {path.stem: path.read_text() for path in (clone.path / "report").glob("*.svg")}
    assert set(figures) == {
        "loss_two_layer", "loss_recurrent", "time_breakdown", "step_time", "speed_up", "break_even", "loops",
    }  # fmt: skip
    for figure in figures.values():
        assert figure.startswith('<svg style="background: white"')
    shown = clone.run("dvc", "plots", "show").stdout
    assert "index.html" in shown


def test_the_same_results_make_the_same_report(clone: Clone, page: str):
    """To the byte, whatever the time is, and also of results that another run of the pipeline restored."""
    os.utime(clone.path / "environment.json")
    clone.run("dvc", "repro", "-f", "-s", "environment")
    clone.run("dvc", "repro", "-f", "-s", "report")
    assert (clone.path / "report.html").read_text() == page


def test_what_an_earlier_run_measured_is_labelled(clone: Clone, page: str):
    assert "in an earlier run" not in page
    file = clone.path / "results/torch_loop/timing.json"
    before = file.read_text()
    earlier = "2026-01-02T03:04:05.678+00:00"
    file.unlink()  # it may be a link to DVC's cache
    file.write_text(json.dumps(json.loads(before) | {"measured_at": earlier, "run_began": earlier}))
    clone.run("python", "-m", "stages.report")
    labelled = (clone.path / "report.html").read_text()
    file.write_text(before)
    clone.run("dvc", "repro", "-f", "-s", "report")
    assert labelled.count("<strong>in an earlier run</strong>") == 1
    assert "2026-01-02 03:04 UTC<br>on " in labelled


def test_a_breach_is_on_the_page(clone: Clone):
    """`dvc repro` stops at a breach; asked for alone, the report says so."""
    params = clone.params()
    none = dict.fromkeys(params["parity"]["float32"], 1e-12)
    clone.write_params(params | {"parity": params["parity"] | {"float32": none}})
    clone.run("dvc", "repro", "compare", succeeds=False)
    clone.run("python", "-m", "stages.report")
    page = (clone.path / "report.html").read_text()
    clone.write_params(params)
    clone.run("dvc", "repro")
    assert page.count("✗ gradient_relative_error") == len(LESSONS)
    assert 'class="verdict does-not-hold"' in page


def test_a_benchmark_on_a_busy_machine_gives_no_ratio(clone: Clone, page: str):
    file = clone.path / "results/benchmark.json"
    before = file.read_text()
    file.unlink()  # it may be a link to DVC's cache
    file.write_text(json.dumps(json.loads(before) | {"cpus_of_other_processes": 1.4, "cpus": 2}))
    clone.run("python", "-m", "stages.report")
    doubted = (clone.path / "report.html").read_text()
    figures = {path.stem for path in (clone.path / "report").glob("*.svg")}
    file.write_text(before)
    clone.run("dvc", "repro", "-f", "-s", "report")
    assert "cannot tell: other processes took 1.4 of 2 CPUs" in doubted
    ratio = re.compile(r"[\d.e+-]+ × \([\d.e+-]+ … [\d.e+-]+\)")
    assert ratio.search(page)
    assert not ratio.search(doubted)
    assert "speed_up" not in figures


def on_a_gpu(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Samples as a GPU would have given them: torch's steps replayed, beside eager ones and two baselines."""
    found = []
    for row in rows:
        name, seconds = row["candidate"], float(row["seconds"])

        def also(candidate: str, factor: float, row: Any = row, seconds: float = seconds, **other: str) -> None:
            found.append(row | {"candidate": candidate, "seconds": str(factor * seconds)} | other)

        if name.startswith(("tuned/torch", "build/", "lower_bound/numpy")):
            continue
        if name.startswith("torch"):
            also(name, 0.01, replays=row["steps"])
            also(f"eager/{name}", 0.05)
            also(f"launch_floor/{name}", 0.008)
            if row["round"] == "0":
                also(f"capture/{name}", 20 / int(row["steps"]), steps="1")
            if name == "torch_tensors":
                also("cpu/torch_tensors", 1)
        elif name == "lower_bound/torch":
            also(name, 0.004)
            also("lower_bound/tensorflow", 0.006)
            also("lower_bound/numpy", 1)
        else:
            also(name, 1)
    return found


def test_a_benchmark_on_a_gpu_says_what_was_replayed_and_names_both_baselines(clone: Clone):
    """The figures are made up of this machine's; the page is not."""
    names = (
        "results/benchmark.csv",
        "results/benchmark.json",
        "environment.json",
        "results/torch_autograd/timing.json",
    )
    before = {name: (clone.path / name).read_bytes() for name in names}
    with (clone.path / names[0]).open() as table:
        rows = on_a_gpu(list(csv.DictReader(table)))
    for name in names:
        (clone.path / name).unlink()  # it may be a link to DVC's cache
    with (clone.path / names[0]).open("w", newline="") as table:
        writer = csv.DictWriter(table, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    gpu = {"other_processes": 0, "busy_before_percent": 0, "throttled_by": [], "power_capped": False}
    device = {"device": "cuda:0", "device_name": "NVIDIA H100"}
    for name, changed in zip(
        names[1:],
        (device | {"gpu": gpu}, device | {"driver": "580.1"}, device | {"replayed_steps": 24, "captured_graphs": 6}),
        strict=True,
    ):
        (clone.path / name).write_text(json.dumps(json.loads(before[name]) | changed))
    clone.run("python", "-m", "stages.report")
    page, lessons = ((clone.path / f"{each}.html").read_text() for each in ("report", "lessons"))
    step_time = (clone.path / "report/step_time.svg").read_text()
    for name, content in before.items():
        (clone.path / name).write_bytes(content)
    clone.run("dvc", "repro", "-f", "-s", "report")
    for baseline in (
        "lower bound: the matrix products alone, torch",
        "lower bound: the matrix products alone, tensorflow",
    ):
        assert baseline in step_time
    assert re.search("launch floor: as many empty kernels as torch_[a-z]+ has", step_time)
    for text in (
        "Replaying torch_autograd",
        "The GPU: other processes on it: 0, throttled by: nothing.",
        "ran eagerly: replaying a CUDA graph runs no Python and no autograd",
        "Capturing the step on a batch takes",
        "the gradient of <code>tf.gather_nd</code>, on the CPU",
        "hand-tuned variants are left out on a GPU",
        "24 steps were replays of 6 CUDA graphs",
    ):
        assert text in page, text
    assert "24 steps were replays of 6 CUDA graphs" in lessons
    assert "torch_loop ran eagerly" in lessons
    cpu_row = page[page.index(">cpu/torch_tensors<") :].partition("</tr>")[0]
    assert "×" not in cpu_row.rpartition("<td")[2], "a step on the host has no multiple of the GPU's lower bound"


def test_what_make_bench_measured_is_shown(clone: Clone, page: str):
    """Its table has the samples of `benchmark`, beside what only `make bench` measures."""
    table = (clone.path / "results/benchmark.csv").read_text()
    (clone.path / "results/bench.csv").write_text(table.replace(",tuned/torch_autograd,", ",peers/torch_module+fused,"))
    (clone.path / "results/bench.json").write_text((clone.path / "results/benchmark.json").read_text())
    clone.run("python", "-m", "stages.report")
    shown = (clone.path / "report.html").read_text()
    for file in ("bench.csv", "bench.json"):
        (clone.path / "results" / file).unlink()
    clone.run("dvc", "repro", "-f", "-s", "report")
    link = '<a href="pipeline/benchmark/peers/torch_module.py">peers/torch_module+fused</a>'
    assert link in shown
    assert link not in page
    assert '<a href="pipeline/benchmark/tuned/torch_autograd.py">' in page


@pytest.mark.parametrize("name", ["numpy_arrays", "tensorflow_graph", "torch_loop"])
def test_a_report_of_one_alone(clone: Clone, name: str):
    params = clone.params()
    clone.write_params(params | {"implementations": {name: params["implementations"][name]}})
    done = clone.run("dvc", "repro", "report")
    page = (clone.path / "report.html").read_text()
    figures = {path.stem for path in (clone.path / "report").glob("*.svg")}
    clone.write_params(params)
    clone.run("dvc", "repro")
    assert "Warning" not in done.stdout + done.stderr
    assert "1 implementation of" in page
    assert ("can be judged by this implementation alone" in page) == (name != "tensorflow_graph")
    assert "speed_up" not in figures  # there is nothing to compare it with
    assert {"time_breakdown", f"loss_{params['implementations'][name]}"} <= figures


def test_a_missing_benchmark_is_a_sentence(clone: Clone):
    file = clone.path / "results/benchmark.csv"
    before = file.read_bytes()
    file.unlink()
    done = clone.run("python", "-m", "stages.report", succeeds=False)
    file.write_bytes(before)
    assert done.stderr == ("ERROR: results/benchmark.csv is missing. `dvc repro benchmark` makes it.\n")


@needs_browser
def test_nothing_is_fetched_and_nothing_goes_wrong(opened: Any, clone: Clone, page: str):
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = {each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"}
    theirs = ("chrome:", "data:")  # the browser's own first page
    assert {url for url in asked if not url.startswith(theirs)} == {(clone.path / "report.html").as_uri()}
    assert opened.get_log("browser") == []
    assert not re.search(r"""(src|href)=["']https?:""", page)


@needs_browser
def test_every_claim_every_implementation_and_every_figure_is_seen(opened: Any):
    text = opened.find_element("tag name", "body").text
    for name in LESSONS:
        assert name in text
    verdicts = opened.execute_script("return [...document.querySelectorAll('.verdict')].map(each => each.innerText)")
    assert len(verdicts) == 6
    assert set(verdicts) <= {"Holds.", "Does not hold.", "Partly.", "Not answered here."}
    assert "50x or greater" in text
    assert "amortised" in text
    heights = opened.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(each => each.getBoundingClientRect().height)"
    )
    assert len(heights) == 7
    assert min(heights) > 100


@needs_browser
def test_it_begins_with_parity_and_what_each_idea_bought(opened: Any):
    text = opened.find_element("tag name", "body").text
    parts = ["Parity passed", "What each idea bought", "What the text claims", "The implementations", "Loss curves"]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    lines = opened.execute_script("return [...document.querySelectorAll('.bought li')].map(each => each.innerText)")
    assert [line.splitlines()[0] for line in lines] == [
        "Autograd",
        "The static graph",
        "The GPU",
        "The loop in the graph",
    ]
    ratio = re.compile(r"A step takes [\d.e+-]+ × \([\d.e+-]+ … [\d.e+-]+\) as long")
    assert [bool(ratio.search(line)) for line in lines] == [True, True, False, True]
    assert len(opened.find_elements("css selector", ".bought .interval")) == 3


@needs_browser
def test_it_leads_to_the_lessons(opened: Any, clone: Clone):
    (link,) = opened.execute_script("return [...document.querySelectorAll('.pages a')].map(each => each.href)")
    assert link == (clone.path / "lessons.html").as_uri()
    assert f'<section id="{next(iter(LESSONS))}"' in (clone.path / "lessons.html").read_text()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened: Any, scheme: str):
    """With the ratios and figures that a page of the lessons' tests lacks."""
    browser.prefer(opened, scheme)
    assert browser.violations(opened) == []


@needs_browser
@pytest.mark.parametrize("width", [360, 380, 1100, 1200, 1900])
def test_it_fits_a_phone_a_desk_and_a_projector(opened: Any, width: int):
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    table = "const table = document.querySelector('#seven ~ .scroll'); return table.scrollWidth - table.clientWidth"
    assert width < 1100 or opened.execute_script(table) == 0
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@needs_browser
def test_light_and_dark(opened: Any):
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
