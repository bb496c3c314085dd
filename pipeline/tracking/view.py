"""What MLflow shows of the results. Files come first: all of it is read from what the stages left on disk.

A state of the pipeline (its parameters, environment, data and all results) is one parent run, with one run for each
implementation below it. `show_results` brings any store up to date: a new one, one that could not be reached during
training, or one that has never seen results that DVC brought back without running them. What a store shows is not sent
again. How stores are reached is mlflow_store.py's.
"""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline import files
from pipeline.benchmark import samples
from pipeline.checkout import LOCKFILE
from pipeline.environment import Environment, framework_of
from pipeline.git import LARGEST_PATCH, PATCH, changes
from pipeline.params import PARAMS, Params
from pipeline.provenance import current_run, git
from pipeline.report.findings import findings
from pipeline.tracking import run_description, store


def show_results(params: Params) -> None:
    """Make the store show the current result of every implementation."""
    if "PIPELINE_SWEEP" in os.environ:
        print("MLflow is told by the sweep, when this has come home")
        return
    uri = store.tracking_uri()
    results = {name: _result(name, problem) for name, problem in params.implementations.items()}
    state = _state(params, results)
    with store.lock():
        if store.shown(uri, state):
            where = store.address(uri, store.read_receipts()[uri].get("experiment", "1"))
            print(f"MLflow shows the current results: {where}")
            return
        with store.warning(uri):
            store.probe(uri)
            experiment, run_ids = _send(uri, state, params, results)
            receipt = {"state": state, "run_ids": run_ids, "experiment": experiment}
            files.write_json(store.receipts(), store.read_receipts() | {uri: receipt})
            count = len(run_ids) - 1
            print(f"MLflow shows {count} result{'s' * (count > 1)}: {store.address(uri, experiment)}")


def record_failure(name: str, problem: str, params: Params, environment: Environment, error: str) -> None:
    """Show a training that failed or was interrupted as a run marked failed."""
    if "PIPELINE_SWEEP" in os.environ:
        return  # the sweep does
    uri = store.tracking_uri()
    with store.lock(), store.warning(uri):
        store.probe(uri)
        client, experiment = store.open_store(uri)
        store.forget(uri)
        tags = tags_of(name, problem, params, environment) | {"role": "failure", "error": error[:5000]}
        run = client.create_run(experiment, run_name=name, tags=tags)
        client.log_batch(run.info.run_id, params=_params(params))
        client.set_terminated(run.info.run_id, "FAILED")


def record_failed_experiment(name: str, error: str) -> bool:
    """Show an experiment of a sweep that failed as a run marked failed. Returns whether the store could be told."""
    uri = store.tracking_uri()
    with store.lock(), store.warning(uri):
        store.probe(uri)
        client, experiment = store.open_store(uri)
        store.forget(uri)
        tags = {"role": "failure", "error": error[:5000], "dvc.experiment": name, "checkout": store.checkout()}
        run = client.create_run(experiment, run_name=name, tags=tags)
        client.set_terminated(run.info.run_id, "FAILED")
        return True
    return False


def _send(uri: str, state: str, params: Params, results: dict[str, dict[str, Any]]) -> tuple[str, list[str]]:
    """Create what the store lacks of this state. Returns the ids of the experiment and of its runs, parent first."""
    client, experiment = store.open_store(uri)
    mine = f"tags.checkout = '{store.checkout()}'"
    for run in client.search_runs([experiment], f"{mine} and attributes.status = 'RUNNING'"):
        # The lock is ours, so whoever was sending these is dead.
        client.set_terminated(run.info.run_id, "FAILED")
    parent = store.finished(client, experiment, f"tags.state = '{state}' and tags.role = 'pipeline'")
    benchmark = samples.read(files.read_samples(), files.read_json(files.BENCHMARK_PROVENANCE))
    if parent is None:
        parent = _send_parent(client, experiment, state, params, results, benchmark=benchmark)
    run_ids = [parent]
    for name, result in results.items():
        run_id = store.finished(
            client, experiment, f"tags.`mlflow.parentRunId` = '{parent}' and tags.implementation = '{name}'"
        )
        run_ids.append(run_id or _send_result(experiment, parent, name, params, result, benchmark=benchmark))
    for run in client.search_runs([experiment], f"{mine} and tags.role = 'live'"):
        client.delete_run(run.info.run_id)  # what it showed under way is there as a result
    return experiment, run_ids


def _send_parent(
    client: Any,
    experiment: str,
    state: str,
    params: Params,
    results: Mapping[str, Mapping[str, Any]],
    *,
    benchmark: samples.Benchmark,
) -> str:
    from mlflow.entities import Metric

    name = os.environ.get("DVC_EXP_NAME") or f"pipeline {state[:7]}"
    environment, comparison = files.read_environment(), files.read_json(files.COMPARISON)
    sizes = {problem: params.sizes(problem) for problem in params.implementations.values()}
    found = findings(benchmark, comparison, sizes)
    begin, end = run_description.state_span([result["timing"] for result in results.values()], current_run())
    tags = _state_tags(params, environment) | {"state": state, "role": "pipeline"}
    tags |= run_description.source("dvc repro", tags["git.commit"])
    patch = changes()
    tags |= {"mlflow.note.content": run_description.of_state(comparison, found), "reproducible": "yes"}
    if patch is None:
        tags["reproducible"] = "it was made outside a git repository"
    elif len(patch) > LARGEST_PATCH:
        tags["reproducible"] = f"what differs from its commit are {len(patch):,} bytes, and {LARGEST_PATCH:,} are kept"
    run_id = client.create_run(experiment, start_time=begin, run_name=name, tags=tags).info.run_id
    numbers = dict(_flat(files.read_json(files.SUMMARY))) | {"wall_seconds": (end - begin) / 1000}
    metrics = [Metric(key, float(value), end, 0) for key, value in numbers.items()]
    client.log_batch(run_id, metrics=metrics, params=_params(params))
    rows = comparison["implementations"]
    keys = [key for key in next(iter(rows.values())) if key != "breaches"]
    certificate = {"implementation": list(rows)} | {key: [row[key] for row in rows.values()] for key in keys}
    client.log_table(run_id, certificate, "certificate.json")
    for path in (
        PARAMS,
        files.ENVIRONMENT,
        LOCKFILE,
        files.COMPARISON,
        files.BENCHMARK,
        files.BENCHMARK_PROVENANCE,
        files.REPORT,
        files.LESSONS,
    ):
        client.log_artifact(run_id, str(path))
    client.log_artifacts(run_id, str(files.FIGURES), "figures")
    if patch is not None and len(patch) <= LARGEST_PATCH:
        with TemporaryDirectory() as folder:
            Path(folder, PATCH).write_bytes(patch)
            client.log_artifact(run_id, str(Path(folder, PATCH)))
    client.set_terminated(run_id, end_time=end)
    return run_id


def _send_result(
    experiment: str, parent: str, name: str, params: Params, result: dict[str, Any], *, benchmark: samples.Benchmark
) -> str:
    import mlflow
    import numpy as np
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.numpy_dataset import from_numpy
    from mlflow.entities import Metric
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    problem = params.implementations[name]
    timing, evaluation = result["timing"], result["evaluation"]
    row = files.read_json(files.COMPARISON)["implementations"][name]
    begin, end = run_description.training_span(timing)
    restored = timing["run_began"] != current_run()
    case = benchmark.at(problem, params.sizes(problem))
    tags = tags_of(name, problem, params, files.read_environment()) | {
        "mlflow.parentRunId": parent,
        **{f"md5.{path.stem}": store.md5(path) for path in _judged(name)},
        "mlflow.note.content": run_description.of_result(name, timing, row, case, restored),
        **run_description.source(f"stages/train.py {name}", timing["commit"].split()[0]),
        "role": "implementation",
        "parity": f"breached: {', '.join(row['breaches'])}" if row["breaches"] else "passed",
        "device": timing["device"],
        "device_name": timing["device_name"],
        "timing.measured_at": timing["measured_at"],
        "timing.measured_on": timing["measured_on"],
        "timing.commit": timing["commit"],
        "timing.restored": str(restored).lower(),
        "timing.continued_at": ", ".join(map(str, timing["continued_at"])) or "none",
    }
    client = mlflow.MlflowClient()
    run_id = client.create_run(experiment, start_time=begin, run_name=name, tags=tags).info.run_id
    with mlflow.start_run(run_id=run_id):
        arrays = _training_set(problem)
        dataset = from_numpy(
            {key: array for key, array in arrays.items() if key != "y"},
            source=CodeDatasetSource({"mlflow.source.name": "stages/generate.py"}),
            targets=arrays["y"],
            name=problem,
            digest=store.md5(files.data_folder(problem) / "manifest.json"),
        )
        mlflow.log_input(dataset, context="training")
        for path in (*sorted(files.result_file(name, "").iterdir()), files.outputs_file(name)):
            client.log_artifact(run_id, str(path))
        inputs = [TensorSpec(array.dtype, (-1, *array.shape[1:]), key) for key, array in arrays.items() if key != "y"]
        outputs = [TensorSpec(np.dtype(np.float64), (-1, *arrays["y"].shape[1:]))]
        with _code(problem) as code:
            model = mlflow.pyfunc.log_model(
                name=name,
                python_model="pipeline/tracking/served_model.py",
                artifacts={"weights": str(files.weights_file(name))},
                model_config={"problem": problem},
                code_paths=[code],
                input_example={key: np.array(array[:2]) for key, array in arrays.items() if key != "y"},
                signature=ModelSignature(Schema(inputs), Schema(outputs)),  # pyright: ignore[reportArgumentType]
                pip_requirements=[f"{package}=={_version(package)}" for package in ("mlflow", "numpy", "safetensors")],
            )
        # After the model, which MLflow would read all of them back for.
        store.send_losses(client, run_id, zip(*files.read_history(name), strict=True))
        # With the model and the data set, so that their pages show the numbers too.
        numbers = run_description.numbers(
            timing | evaluation, case.multiple(name) if case and name in case.seconds else None
        )
        whose = {"model_id": model.model_id, "dataset_name": problem, "dataset_digest": dataset.digest}
        metrics = [Metric(key, float(value), end, 0, run_id=run_id, **whose) for key, value in numbers.items()]
        client.log_batch(run_id, metrics=metrics, params=_params(params))
    client.set_terminated(run_id, end_time=end)
    if not row["breaches"]:
        store.register(client, name, model.model_id, run_id)
    return run_id


@contextmanager
def _code(problem: str) -> Iterator[str]:
    """A copy of what of pipeline/ it takes to predict."""
    with TemporaryDirectory() as folder:
        for file in ("__init__.py", "contract.py", "problems/__init__.py", f"problems/{problem}.py"):
            path = Path(folder, "pipeline", file)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path("pipeline", file), path)
        yield str(Path(folder, "pipeline"))


def _judged(name: str) -> list[Path]:
    """What is bitwise reproducible of an implementation's results."""
    results = [files.result_file(name, file) for file in ("history.csv", "metrics.json", "evaluation.json")]
    return [files.weights_file(name), *results]


def _result(name: str, problem: str) -> dict[str, Any]:
    """What the store shows of an implementation, and the md5 of every file that it comes from."""
    names = ("history.csv", "metrics.json", "timing.json", "evaluation.json")
    paths = [files.weights_file(name), *(files.result_file(name, file) for file in names)]
    return {
        "timing": files.read_json(files.result_file(name, "timing.json")),
        "evaluation": files.read_json(files.result_file(name, "evaluation.json")),
        "md5": {str(path): store.md5(path) for path in [*paths, files.data_folder(problem) / "manifest.json"]},
    }


def _state(params: Params, results: Mapping[str, dict[str, Any]]) -> str:
    """A name for all that a parent run stands for; the same state has the same name in every store."""
    shared = {str(path): store.md5(path) for path in (files.REPORT, files.LESSONS, files.BENCHMARK)}
    md5 = {name: result["md5"] for name, result in results.items()}
    content = [params.model_dump(), files.read_json(files.ENVIRONMENT), md5, shared]
    return hashlib.md5(json.dumps(content, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def tags_of(name: str, problem: str, params: Params, environment: Environment) -> dict[str, str]:
    framework = framework_of(name)
    return _state_tags(params, environment) | {
        "implementation": name,
        "problem": problem,
        "framework": framework,
        "framework_version": environment.versions.get(framework, "unknown"),
        "dvc.stage": f"train@{name}",
        "md5.data": store.md5(files.data_folder(problem) / "manifest.json"),
    }


def _state_tags(params: Params, environment: Environment) -> dict[str, str]:
    tags = {
        "checkout": store.checkout(),
        "host": platform.node(),
        "device_requested": params.device,
        "device": environment.device,
        "device_name": environment.device_name,
        "precision": environment.precision,
        "deterministic": str(environment.deterministic).lower(),
        "md5.environment": store.md5(files.ENVIRONMENT),
        "md5.params": store.md5(PARAMS),
        "git.commit": git("rev-parse", "HEAD"),
        "git.dirty": "unknown" if (status := git("status", "--porcelain")) == "unknown" else str(bool(status)).lower(),
    }
    optional = {"dvc.experiment": "DVC_EXP_NAME", "image.digest": "IMAGE_DIGEST"}
    return tags | {tag: os.environ[variable] for tag, variable in optional.items() if variable in os.environ}


def _params(params: Params) -> list[Any]:
    from mlflow.entities import Param

    return [Param(key, str(value)) for key, value in _flat(params.model_dump())]


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _training_set(problem: str) -> dict[str, Any]:
    import numpy as np

    folder = files.data_folder(problem)
    paths = ((key, folder / f"train_{key}.npy") for key in ("x", "lengths", "y"))
    return {key: np.load(path, mmap_mode="r", allow_pickle=False) for key, path in paths if path.exists()}


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
