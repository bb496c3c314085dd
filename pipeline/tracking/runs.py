"""Log results in MLflow, from the files that the stages wrote. A state of the pipeline (its parameters, environment,
data and all results) is a parent run: `_send_state`. Its child runs are the implementations: `_send_implementation`. A
training or an experiment that failed is a run with the status FAILED. `store.live_log` logs a training while it runs,
pipeline/archive/reproduce.py logs a reproduction.
"""

import hashlib
import io
import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline import files
from pipeline.clock import timestamp
from pipeline.environment import framework_of
from pipeline.errors import UserError
from pipeline.git import git
from pipeline.params import PARAMS, Params
from pipeline.provenance import current_run
from pipeline.results import Judged, ParityReport, Timing
from pipeline.running.checkout import LOCKFILE
from pipeline.tracking import store
from pipeline.tracking.changes import PATCH, changes

IMAGE = Path("/opt/image.digest")  # only in an image: a digest of all that is installed there
REPRODUCIBLE = ("weights", "history", "metrics", "evaluation")  # names in tags of the md5 of these files


def log_results(params: Params, *, again: bool = False) -> str:
    """Send the store the current results that it lacks. Returns the digest of their state. A receipt on disk says which
    results the store has. With `again` the store itself is asked.
    """
    state = _state(params)
    if "PIPELINE_SWEEP" in os.environ:
        print("Logged to MLflow when the sweep collects this experiment")
        return state
    if not again and (experiment := store.receipt(state)):
        print(f"MLflow shows the current results: {store.address(experiment)}")
        return state
    with store.warning(), store.sending() as (client, experiment):
        parent = store.finished(client, experiment, f"tags.state = '{state}' and tags.role = 'pipeline'")
        parent = parent or _send_state(client, experiment, state, params)
        order = client.get_run(parent).data.tags.get(store.ORDER, "").partition(" ")[0] or timestamp()
        for place, name in enumerate(params.implementations):
            query = f"tags.`mlflow.parentRunId` = '{parent}' and tags.implementation = '{name}'"
            if not store.finished(client, experiment, query):
                _send_implementation(client, experiment, parent, params, name, order=f"{order} {999 - place}")
        for run in client.search_runs([experiment], f"tags.checkout = '{store.checkout()}' and tags.role = 'live'"):
            client.delete_run(run.info.run_id)  # the implementation's run shows its losses
        store.write_receipt(state, experiment)
        count = len(params.implementations)
        print(f"MLflow shows {count} result{'s' * (count > 1)}: {store.address(experiment)}")
    return state


def log_failure(name: str, error: str, params: Params | None = None) -> bool:
    """Log a training that failed or was interrupted as a failed run. Without `params` it is an experiment of a sweep.

    Returns whether it was sent.
    """
    with store.warning(), store.sending() as (client, experiment):
        tags = _implementation_tags(name, params) if params else {"dvc.experiment": name, "checkout": store.checkout()}
        tags |= {"role": "failure", "error": error[:5000], store.ORDER: timestamp()}
        run_id = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        client.log_batch(run_id, params=_params(params) if params else [])
        client.set_terminated(run_id, "FAILED")
        return True
    return False


def _send_state(client: Any, experiment: str, state: str, params: Params) -> str:
    """The parent run: the numbers of summary.json, the parity report, the pages, and what `make reproduce` needs."""
    from mlflow.entities import Metric

    from pipeline.benchmark import samples
    from pipeline.graphs.graph import read_structure
    from pipeline.parity.report import sentences, table
    from pipeline.report.findings import findings

    report = ParityReport.read(files.PARITY_REPORT)
    rows = report.implementations
    try:
        patch, reproducible = changes(), "yes"
    except UserError as error:
        patch, reproducible = None, str(error)
    sizes = {problem: params.problems[problem].sizes for problem in params.used_problems}
    structures = {name: read_structure(name) for name in rows}
    claims = findings(samples.read(), report, sizes, structures)
    verdicts = [f"- {claim.claim.text} **{claim.verdict}**: {claim.text}" for claim in claims]
    newest = max(map(_timing, params.implementations), key=lambda timing: timing.measured_at)
    begin = _milliseconds(newest.run_began)
    end = _milliseconds(newest.measured_at if _restored(newest) else timestamp())
    tags = _state_tags(params)
    tags |= {
        "state": state,
        "role": "pipeline",
        store.ORDER: f"{timestamp()} state",  # after the digits of its implementations, so before them on the page
        "parity": _parity([name for name, row in rows.items() if row.failed]),
        **({"parity.explanation": " ".join(sentences(report))} if sentences(report) else {}),
        "reproducible": reproducible,
        "mlflow.note.content": "\n".join(["```", table(report), "```", *sentences(report), *verdicts]),
        "mlflow.source.name": "dvc repro",
        "mlflow.source.git.commit": tags["git.commit"],
    }
    name = os.environ.get("DVC_EXP_NAME") or f"state {state[:7]}"
    run_id = client.create_run(experiment, start_time=begin, run_name=name, tags=tags).info.run_id
    numbers = _flat(files.read_json(files.SUMMARY)) | {
        "wall_seconds": (end - begin) / 1000,
        "implementations": len(rows),
        "worst_parity": _worst_parity(report, *rows.values()),
    }
    metrics = [Metric(key, float(value), end, 0) for key, value in numbers.items()]
    client.log_batch(run_id, metrics=metrics, params=_params(params))
    flat = [_flat(row.model_dump(exclude={"failed", "first_wrong", "outputs_md5"})) for row in rows.values()]
    columns = {key: [row[key] for row in flat] for key in flat[0]}
    client.log_table(run_id, {"implementation": list(rows)} | columns, "parity_table.json")
    artifacts = [PARAMS, LOCKFILE, files.ENVIRONMENT, files.PARITY_REPORT, files.BENCHMARK, files.BENCHMARK_PROVENANCE]
    for path in (*artifacts, files.REPORT, files.LESSONS):
        client.log_artifact(run_id, str(path))
    client.log_artifacts(run_id, str(files.FIGURES), "figures")
    if patch is not None:
        with TemporaryDirectory() as folder:
            Path(folder, PATCH).write_bytes(patch)
            client.log_artifact(run_id, str(Path(folder, PATCH)))
    client.set_terminated(run_id, end_time=end)
    return run_id


def _send_implementation(client: Any, experiment: str, parent: str, params: Params, name: str, *, order: str) -> None:
    """A child run: losses, metrics, the training set's digest, all result files, and the model. A model that passed the
    parity check is registered as models:/NAME@parity-passed."""
    import mlflow
    import numpy as np
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.numpy_dataset import from_numpy
    from mlflow.entities import Metric
    from mlflow.models import infer_signature

    from pipeline.benchmark import samples
    from pipeline.benchmark.candidates import Candidate
    from pipeline.training.data import DataSet

    problem, timing = params.implementations[name], _timing(name)
    report = ParityReport.read(files.PARITY_REPORT)
    row = report.implementations[name]
    case = samples.read().at(problem, params.problems[problem].sizes)
    multiple = case.multiple(Candidate(name)) if case else None
    parity = _parity(row.failed)
    tags = _implementation_tags(name, params)
    tags |= {f"md5.{what}": files.md5(path) for what, path in zip(REPRODUCIBLE, _reproducible(name), strict=True)}
    tags |= {f"timing.{key}": getattr(timing, key) for key in ("measured_at", "measured_on", "commit")}
    tags |= {
        "mlflow.parentRunId": parent,
        store.ORDER: order,
        "mlflow.note.content": _description(timing, row, parity, multiple),
        "mlflow.source.name": f"stages/train.py {name}",
        "mlflow.source.git.commit": timing.commit.split()[0],
        "role": "implementation",
        "parity": parity,
        **_first_wrong(row),
        "device": timing.device,
        "device_name": timing.device_name,
        "timing.restored": str(_restored(timing)).lower(),
        "timing.continued_at": ", ".join(map(str, timing.continued_at)) or "none",
    }
    begin, end = _milliseconds(timing.measured_at, -timing.wall_seconds), _milliseconds(timing.measured_at)
    run_id = client.create_run(experiment, start_time=begin, run_name=name, tags=tags).info.run_id
    folder = files.data_folder(problem)
    inputs = dict(DataSet(problem).train)
    targets = inputs.pop("y")
    example = {key: np.array(array[:2]) for key, array in inputs.items()}
    with store.active_run(run_id), TemporaryDirectory() as code:
        source = CodeDatasetSource({"mlflow.source.name": "stages/generate.py"})
        digest = files.md5(folder / "manifest.json")
        dataset = from_numpy(inputs, source=source, targets=targets, name=problem, digest=digest)
        mlflow.log_input(dataset, context="training")
        client.log_artifacts(run_id, str(files.result_file(name, "")))
        client.log_artifact(run_id, str(files.outputs_file(name)))
        package = _write_package(problem, Path(code))
        weights = shutil.copy(files.weights_file(name), code)  # a copy: MLflow would refuse a link into DVC's cache
        model = mlflow.pyfunc.log_model(
            name=name,
            python_model="pipeline/tracking/served_model.py",
            artifacts={"weights": weights},
            model_config={"problem": f"{package}.problems.{problem}"},
            code_paths=[f"{code}/{package}"],
            input_example=example,
            signature=infer_signature(example, np.empty((2, *targets.shape[1:]))),
            pip_requirements=[
                f"{package}=={version(package)}" for package in ("mlflow", "numpy", "pydantic", "safetensors")
            ],
        )
        # After the model: otherwise MLflow would read all of these back to log it.
        store.log_losses(client, run_id, zip(*files.read_history(name), strict=True))
        # With the model and the data set, so that their pages show the numbers, too.
        of = {"model_id": model.model_id, "dataset_name": problem, "dataset_digest": digest, "run_id": run_id}
        numbers = _numbers(timing, row, multiple) | {"worst_parity": _worst_parity(report, row)}
        metrics = [Metric(key, float(value), end, 0, **of) for key, value in numbers.items()]
        client.log_batch(run_id, metrics=metrics, params=_params(params))
    client.set_terminated(run_id, end_time=end)
    if not row.failed:
        with redirect_stderr(io.StringIO()):  # it prints two lines for each model
            registered = mlflow.register_model(model.model_uri, name)
        client.set_registered_model_alias(name, "parity-passed", registered.version)


def _write_package(problem: str, folder: Path) -> str:
    """The part of pipeline/ that a model needs to predict, as a package with a unique name. Under the name `pipeline`,
    Python would use a module that another model or a checkout has already imported.
    """
    paths = [Path(path) for path in ("contract.py", "errors.py", "problems/__init__.py", f"problems/{problem}.py")]
    sources = {path: Path("pipeline", path).read_text(encoding="utf-8") for path in paths}
    digest = hashlib.md5("".join(sources.values()).encode(), usedforsecurity=False).hexdigest()
    package = f"seven_ways_{digest}"
    for path, source in sources.items():
        (folder / package / path).parent.mkdir(parents=True, exist_ok=True)
        renamed = source.replace("from pipeline.", f"from {package}.").replace("from pipeline ", f"from {package} ")
        (folder / package / path).write_text(renamed, encoding="utf-8")
    return package


def _numbers(timing: Timing, row: Judged, multiple: Iterable[float] | None) -> dict[str, float]:
    """The metrics of an implementation's run. Those that are compared most often have the names of the report."""
    names = {"test_loss": "held_out_loss", "test_r2": "r2", "step_seconds_median": "step_microseconds"}
    measured = _flat(timing.model_dump() | row.model_dump())
    measured["step_seconds_median"] = round(1e6 * timing.step_seconds_median, 2)
    numbers = {names.get(key, key): value for key, value in measured.items() if type(value) in (int, float)}
    keys = ("times_matrix_products", "times_matrix_products_from", "times_matrix_products_to")
    numbers |= {key: round(value, 3) for key, value in zip(keys, multiple or (), strict=False)}
    return numbers


def _description(timing: Timing, row: Judged, parity: str, multiple: object) -> str:
    """The description of an implementation's run, in Markdown."""
    in_benchmark = f"; in the benchmark {multiple} the matrix products alone" if multiple else ""
    rows = {
        "Device": f"{timing.device_name}, {timing.threads} threads",
        "Held-out loss": f"{row.initial_test_loss:.4g} → {row.test_loss:.4g}, R² {row.test_r2:.3f}",
        "Parity": parity,
        "First wrong": row.first_wrong.sentence.replace("|", "\\|") if row.first_wrong else "",
        "A step": f"{1e6 * timing.step_seconds_median:,.0f} µs{in_benchmark}",
        "Measured": f"{timing.measured_at[:19]} UTC on {timing.measured_on}" + ", restored" * _restored(timing),
        "Replayed": timing.replays,
        "Continued": ", ".join(f"at step {step:,}" for step in timing.continued_at),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {text} |" for key, text in rows.items() if text)])


def _timing(name: str) -> Timing:
    return Timing.read(files.result_file(name, "timing.json"))


def _restored(timing: Timing) -> bool:
    return timing.run_began != current_run()


def _reproducible(name: str) -> list[Path]:
    """The files of an implementation that are bitwise reproducible."""
    results = (files.result_file(name, file) for file in ("history.csv", "metrics.json"))
    return [files.weights_file(name), *results, files.parity_file(name)]


def _state(params: Params) -> str:
    """A digest of all that belongs to a state. The same state has the same digest in every store."""
    paths = [files.ENVIRONMENT, files.PARITY_REPORT, files.BENCHMARK, files.REPORT, files.LESSONS]
    for name, problem in params.implementations.items():
        manifest = files.data_folder(problem) / "manifest.json"
        paths += [*_reproducible(name), files.result_file(name, "timing.json"), manifest]
    try:
        content = [params.model_dump(), {str(path): files.md5(path) for path in paths}]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing. `dvc repro` makes it.") from None
    return hashlib.md5(json.dumps(content, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def _implementation_tags(name: str, params: Params) -> dict[str, str]:
    framework, problem = framework_of(name), params.problem_of(name)
    return _state_tags(params) | {
        "implementation": name,
        "problem": problem,
        "framework": framework,
        "framework_version": files.read_environment().versions.get(framework, "unknown"),
        "dvc.stage": f"train@{name}",
        "md5.data": files.md5(files.data_folder(problem) / "manifest.json"),
    }


def _state_tags(params: Params) -> dict[str, str]:
    environment = files.read_environment()
    status = git("status", "--porcelain", "--untracked-files=normal", "--", ".", default="unknown")
    optional = {"dvc.experiment": "DVC_EXP_NAME"}
    return {
        "checkout": store.checkout(),
        "mlflow.source.type": "LOCAL",
        "host": platform.node(),
        "device_requested": params.device,
        **{key: getattr(environment, key) for key in ("device", "device_name", "precision")},
        "deterministic": str(environment.deterministic).lower(),
        "md5.environment": files.md5(files.ENVIRONMENT),
        "md5.params": files.md5(PARAMS),
        "git.commit": git("rev-parse", "HEAD", default="unknown"),
        "git.dirty": "unknown" if status == "unknown" else str(bool(status)).lower(),
        **{tag: os.environ[variable] for tag, variable in optional.items() if variable in os.environ},
        **({"image.digest": IMAGE.read_text(encoding="utf-8").strip()} if IMAGE.exists() else {}),
    }


def _worst_parity(report: ParityReport, *rows: Judged) -> float:
    """The largest of the parity measures, each as a share of its tolerance. It is over 1 if the check fails."""
    largest = max(getattr(row.parity, name) / limit for row in rows for name, limit in report.tolerances)
    return float(f"{largest:.3g}")


def _parity(failed: list[str]) -> str:
    return f"failed: {', '.join(failed)}" if failed else "passed"


def _first_wrong(row: Judged) -> dict[str, str]:
    """Tags of a run that failed the parity check."""
    wrong = row.first_wrong
    if wrong is None:
        return {}
    line = {} if wrong.line is None else {"parity.line": str(wrong.line)}
    return {"parity.first_wrong": wrong.quantity or "none", "parity.explanation": wrong.sentence} | line


def _params(params: Params) -> list[Any]:
    from mlflow.entities import Param

    return [Param(key, str(value)) for key, value in _flat(params.model_dump()).items()]


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _milliseconds(at: str, seconds: float = 0) -> int:
    return int((datetime.fromisoformat(at).timestamp() + seconds) * 1000)
