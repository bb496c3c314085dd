"""`dvc repro` on small params in a fresh clone: which stages run again, and what happens after failures."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import LESSONS, Clone, outside_variables

from pipeline.array_files import write_arrays

NUMPY = "numpy_arrays"
COMPARES = ["evaluate", "compare", "benchmark", "graphs", "report"]

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def small(make_clone: Callable[..., Clone]) -> Clone:
    """Two implementations in NumPy, so that a whole run takes seconds. Tests must leave it unchanged."""
    clone = make_clone(NUMPY)
    (clone.path / "pipeline/lessons/two_layer/numpy_again.py").write_text(
        (clone.path / "pipeline/lessons/two_layer/numpy_arrays.py").read_text()
    )
    clone.write_params(clone.params() | {"implementations": {NUMPY: "two_layer", "numpy_again": "two_layer"}})
    clone.run("dvc", "repro")
    clone.commit()
    return clone


@pytest.fixture
def changed(small: Clone):
    """The small clone. A test may change it: afterwards its files are restored and its results are up to date."""
    yield small
    small.run("git", "checkout", "-q", ".")
    small.run("dvc", "repro", "report")


LESSON = f"lessons/two_layer/{NUMPY}.py"


@pytest.mark.parametrize(
    ("file", "old", "new", "stages"),
    [
        # Code that gives the same result is measured again but not evaluated again. The parity report runs again,
        # because it names lines.
        (LESSON, "# Update.", "# The update.", [f"train@{NUMPY}", *COMPARES[1:]]),
        (LESSON, "2 * (y_pred - y) / y.size", "(y_pred - y) * (2 / y.size)", [f"train@{NUMPY}", *COMPARES]),
        ("lessons_page/drawing.py", "\nfrom html ", "\nfrom  html ", ["report"]),
        ("graphs/on_paper.py", "\nfrom ", "\nfrom  ", ["graphs", "report"]),
    ],
)
def test_edit_reruns_only_the_stages_that_depend_on_it(
    changed: Clone, file: str, old: str, new: str, stages: list[str]
):
    changed.edit(f"pipeline/{file}", old, new)
    assert sorted(changed.stages_run("dvc", "repro", "report")) == sorted(stages)


def test_changed_learning_rate_reruns_training_but_not_data(changed: Clone):
    changed.write_params(changed.params() | {"train": changed.params()["train"] | {"learning_rate": 0.02}})
    ran = changed.stages_run("dvc", "repro", "report")
    assert {f"train@{NUMPY}", "train@numpy_again", "compare"} <= set(ran)
    assert not any(stage.startswith(("generate", "benchmark")) for stage in ran)


def test_reverted_params_restore_the_results_without_running(changed: Clone):
    before = changed.digests("models/**/*.*", "results/**/*.*")
    changed.write_params(changed.params() | {"seed": 3})
    changed.run("dvc", "repro", "report")
    assert changed.digests("models/**/*.*", "results/**/*.*") != before
    changed.run("git", "checkout", "-q", "params.yaml")
    assert changed.stages_run("dvc", "repro", "report") == []
    assert changed.digests("models/**/*.*", "results/**/*.*") == before


def test_eighth_lesson_needs_one_file_and_one_line_of_params(changed: Clone):
    source = (changed.path / f"pipeline/lessons/two_layer/{NUMPY}.py").read_text()
    (changed.path / "pipeline/lessons/two_layer/numpy_eighth.py").write_text(source)
    changed.edit("params.yaml", "numpy_again: two_layer", "numpy_again: two_layer\n  numpy_eighth: two_layer")
    assert sorted(changed.stages_run("dvc", "repro", "report")) == sorted(["train@numpy_eighth", *COMPARES])
    comparison = json.loads((changed.path / "results/parity.json").read_text())
    assert set(comparison["implementations"]) == {NUMPY, "numpy_again", "numpy_eighth"}
    changed.edit("params.yaml", "\n  numpy_again: two_layer", "")
    assert sorted(changed.stages_run("dvc", "repro", "report")) == sorted(COMPARES)
    comparison = json.loads((changed.path / "results/parity.json").read_text())
    assert set(comparison["implementations"]) == {NUMPY, "numpy_eighth"}
    (changed.path / "pipeline/lessons/two_layer/numpy_eighth.py").unlink()


def test_new_framework_needs_one_runtime_module_and_one_lesson(changed: Clone):
    """NumPy under another name: a runtime and a lesson, and nothing else."""
    runtime = (changed.path / "pipeline/runtimes/numpy.py").read_text()
    lesson = (changed.path / f"pipeline/lessons/two_layer/{NUMPY}.py").read_text()
    (changed.path / "pipeline/runtimes/toy.py").write_text(runtime)
    (changed.path / "pipeline/lessons/two_layer/toy_arrays.py").write_text(lesson)
    changed.edit("params.yaml", "numpy_again: two_layer", "numpy_again: two_layer\n  toy_arrays: two_layer")
    changed.set("benchmark.processes", 2)
    changed.run("dvc", "repro", "report")
    comparison = json.loads((changed.path / "results/parity.json").read_text())
    assert comparison["passed"]
    assert "toy_arrays" in comparison["implementations"]
    assert "toy_arrays" in (changed.path / "results/benchmark.csv").read_text()
    assert "toy_arrays" in (changed.path / "report.html").read_text()
    for file in ("pipeline/runtimes/toy.py", "pipeline/lessons/two_layer/toy_arrays.py"):
        (changed.path / file).unlink()


def test_float64_passes_its_smaller_tolerances(changed: Clone):
    changed.write_params(changed.params() | {"dtype": "float64"})
    changed.run("dvc", "repro", "compare")
    comparison = json.loads((changed.path / "results/parity.json").read_text())
    assert comparison["passed"]
    assert comparison["dtype"] == "float64"
    assert comparison["tolerances"]["predictions"] < 1e-9


def test_experiment_with_another_learning_rate_is_listed(changed: Clone):
    changed.run("dvc", "exp", "run", "-S", "train.learning_rate=0.01", "-n", "slower")
    shown = json.loads(changed.run("dvc", "exp", "show", "--json").stdout)
    assert "slower" in json.dumps(shown)
    assert changed.params()["train"]["learning_rate"] == 0.01


# Failures: a sentence, an exit status that is not 0, and the last good results unchanged.


def results(clone: Clone) -> dict[str, bytes]:
    return clone.digests(
        "models/**/*.*",
        "results/**/*.*",
        "report*/*",
        "report.html",
        "lessons.html",
        "data/**/*.*",
        "reference/*",
        "environment.json",
    )


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("learning_rate: 0.05", "learning_rat: 0.05", "unknown key train.learning_rat"),
        ("learning_rate: 0.05", "learning_rate: fast", "train.learning_rate is 'fast'"),
        ("steps: 30", "steps: 0", "steps is 0"),
        (
            "numpy_again: two_layer",
            "numpy_nowhere: two_layer",
            "there is no pipeline/lessons/two_layer/numpy_nowhere.py",
        ),
        ("seed: 0", "seed: [", "params.yaml"),
        ("device: auto", "device: cuda:99", "device is cuda:99; found: "),
    ],
)
def test_invalid_params_leave_the_results_unchanged(changed: Clone, old: str, new: str, sentence: str):
    before = results(changed)
    changed.edit("params.yaml", old, new)
    done = changed.run("dvc", "repro", succeeds=False)
    assert sentence in done.stderr
    assert results(changed) == before


def test_missing_params_file_leaves_the_results_unchanged(changed: Clone):
    before = results(changed)
    (changed.path / "params.yaml").unlink()
    assert "params.yaml" in changed.run("dvc", "repro", succeeds=False).stderr
    done = changed.run(sys.executable, "-m", "commands", "params", succeeds=False)
    assert done.stderr == "ERROR: params.yaml is missing. `git checkout params.yaml` brings the default back.\n"
    assert results(changed) == before


def test_memory_limit_of_the_shell_gives_an_error(changed: Clone):
    """With a limit of the shell, which the estimate before the run does not see."""
    before = results(changed)
    changed.edit("params.yaml", "hidden: 8\n", "hidden: 8000000\n")
    done = changed.run("bash", "-c", "ulimit -v 2000000; python -m stages.generate two_layer", succeeds=False)
    assert re.search(r"ERROR: there is not enough memory: \d+ [MG]iB did not fit. Lower batch_size", done.stderr)
    assert results(changed) == before


def test_diverging_loss_leaves_the_results_unchanged(changed: Clone):
    before = results(changed)
    changed.edit("params.yaml", "learning_rate: 0.05", "learning_rate: 1.0e+30")
    done = changed.run("dvc", "repro", f"train@{NUMPY}", succeeds=False)
    assert f"{NUMPY}: the loss is" in done.stderr
    assert "learning rate 1e+30" in done.stderr
    assert results(changed) == before


def test_altered_data_are_refused_by_a_stage_and_restored_by_repro(changed: Clone):
    before = results(changed)
    path = changed.path / "data/two_layer/train_x.npy"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    altered = results(changed)
    done = changed.run(sys.executable, "-m", "stages.train", NUMPY, succeeds=False)
    assert "train_x.npy was changed after it was generated" in done.stderr
    assert results(changed) == altered
    changed.run("dvc", "repro", "-s", "--force", f"train@{NUMPY}", succeeds=False)
    assert results(changed) == altered
    changed.run("dvc", "repro")
    assert results(changed) == before


def test_damaged_weights_are_refused(changed: Clone):
    path = changed.path / f"models/{NUMPY}/weights.safetensors"
    write_arrays(path, {"w1": np.zeros((2, 2)), "w2": np.zeros((2, 2))})
    assert "is needed" in changed.run(sys.executable, "-m", "stages.evaluate", NUMPY, succeeds=False).stderr
    write_arrays(path, {"w1": np.full((20, 8), np.nan), "w2": np.zeros((8, 3))})
    assert "not finite" in changed.run(sys.executable, "-m", "stages.evaluate", NUMPY, succeeds=False).stderr


def test_implementation_missing_from_params_is_refused(small: Clone):
    done = small.run(sys.executable, "-m", "stages.train", "torch_loop", succeeds=False)
    assert "torch_loop is not an implementation in params.yaml" in done.stderr


def test_pipeline_without_git_runs_with_no_scm(make_clone: Callable[..., Clone]):
    clone = make_clone(NUMPY)
    (clone.path / ".git").rename(clone.path / "git")
    assert "not a git repository" in clone.run("dvc", "repro", succeeds=False).stderr
    clone.run("dvc", "config", "--local", "core.no_scm", "true", succeeds=True)
    clone.run("dvc", "repro")
    assert (clone.path / "results/parity.json").exists()


@pytest.mark.filterwarnings("ignore:The ``noload``", "ignore:.*Any type hint is inferred")
def test_dropped_relu_mask_fails_the_pipeline_and_names_line_35(changed: Clone):
    changed.edit(f"pipeline/lessons/two_layer/{NUMPY}.py", "grad_h_relu * (h > 0)", "grad_h_relu")
    line = "grad_h is the first quantity that differs: line 35, `grad_h = grad_h_relu`, should compute"
    for _ in range(2):  # a second run gives the same message
        done = changed.run("dvc", "repro", succeeds=False)
        assert f"These implementations fail the parity check: {NUMPY} by gradient" in done.stderr
        assert f"{NUMPY}: {line}" in done.stderr
        assert "failed to reproduce 'gate'" in done.stderr
    assert not json.loads((changed.path / "results/parity.json").read_text())["passed"]
    page = (changed.path / "report.html").read_text()
    assert f"✗ Parity failed:</strong> {NUMPY} fails" in page
    assert "grad_h is the first quantity that differs: line 35, <code>grad_h = grad_h_relu</code>" in page
    mlflow.set_tracking_uri(f"sqlite:///{changed.path}/mlflow.db")
    (run,) = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.implementation = '{NUMPY}' and tags.parity LIKE 'failed%'",
        output_format="list",
    )
    tags = run.data.tags
    assert tags["parity"].startswith("failed: gradient")
    assert (tags["parity.first_wrong"], tags["parity.line"]) == ("grad_h", "35")
    assert line in tags["mlflow.note.content"]
    changed.run("git", "checkout", "-q", ".")
    changed.run("dvc", "repro")


def test_interrupted_stage_keeps_the_last_good_results(changed: Clone):
    before = results(changed)
    changed.edit("params.yaml", "steps: 30", "steps: 100000000")
    # A background job of a shell, such as CI's, makes its children ignore Ctrl-C.
    program = ["env", "--default-signal=INT", sys.executable, "-m", "dvc", "repro", f"train@{NUMPY}"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = subprocess.Popen(
        program,
        cwd=changed.path,
        env=outside_variables() | {"PATH": path},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while (changed.path / f"models/{NUMPY}/weights.safetensors").exists():
            assert time.monotonic() < deadline, "the stage never started"
            time.sleep(0.1)
        time.sleep(2)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        assert process.wait(60) != 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert results(changed) == before


@pytest.mark.faults  # for its time
def test_stages_run_without_dvc_mlflow_ray_and_tensorflow(make_clone: Callable[..., Clone], tmp_path: Path):
    """The lessons of NumPy and PyTorch where there is no TensorFlow, no DVC, no MLflow and no Ray: only the stages."""
    absent = ["dvc", "mlflow", "ray", "tensorflow", "pandas"]
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata, importlib.util, sys\n"
        f"absent = {absent}\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        "find, found = importlib.util.find_spec, importlib.metadata.distributions\n"
        "importlib.util.find_spec = lambda name, *rest: None if name in absent else find(name, *rest)\n"
        "def distributions(**about):\n"
        "    return [] if about.get('name', '').startswith('tensorflow') else found(**about)\n"
        "importlib.metadata.distributions = distributions\n"
    )
    names = [name for name in LESSONS if not name.startswith("tensorflow")]
    clone = make_clone(*names, benchmark=True)
    environment = {"PYTHONPATH": str(tmp_path), "PIPELINE_COMMIT": "abc1234"}
    problems = sorted(set(LESSONS.values()))
    stages = ["environment", *(f"{stage} {of}" for of in problems for stage in ("generate", "reference"))]
    stages += [f"train {name}" for name in names]
    for stage in [*stages, "evaluate", "compare", "benchmark", "graphs", "report", "gate"]:
        clone.run("python", "-m", *f"stages.{stage}".split(), env=environment)
    timing = json.loads((clone.path / "results/torch_autograd/timing.json").read_text())
    assert timing["commit"] == "abc1234"
    assert timing["versions"].keys() == {"numpy", "torch"}
    assert "Parity passed" in (clone.path / "report.html").read_text()
