"""The order of imports, the independence of lessons, and the dependencies of stages."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import LESSONS, REPOSITORY

FILES = sorted(
    path.relative_to(REPOSITORY)
    for folder in ("pipeline", "stages", "commands")
    for path in (REPOSITORY / folder).rglob("*.py")
)
STAGES: dict[str, Any] = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
# The order of imports: a folder may import itself and the folders before it. All may import the modules directly in
# pipeline/.
LAYERS = (
    "contract",
    "problems",
    "foundation",
    "lessons",
    "runtimes",
    "quantities",
    "graphs",
    "training",
    "parity",
    "benchmark",
    "report",
    "lessons_page",
    "tracking",
    "archive",
    "sweep",
    "stages",
    "commands",
)
# These functions find a lesson or a problem by its name, so their callers depend on those files.
FOUND_BY = {
    "load_problem": "pipeline/problems",
    "load_implementation": "the lessons",
    "implementation_file": "the lessons",
    "load_runtime": "pipeline/runtimes",
    "open_implementation": "the lessons",
}
# Imports of a stage that are not dependencies, and why a change of them makes no result stale.
NO_RESULT = {
    "pipeline/__init__.py": "settings of a process, which environment.json's stage would have to see",
    "pipeline/contract.py": "protocols, and what is found by its name, which FOUND_BY has",
    "pipeline/problems/__init__.py": "types; the stages that compute with a problem depend on its file",
    "pipeline/errors.py": "a class",
    "pipeline/params.py": "what it reads of params.yaml DVC compares by itself",
    "pipeline/training/resource_check.py": "whether there is room for it",
    "pipeline/results.py": "the form of files",
    "pipeline/measures.py": "names; params.yaml has the tolerances",
    "pipeline/clock.py": "how a second is counted",
    "pipeline/running/checkout.py": "what a killed run left",
    "pipeline/running/machine.py": "how many CPUs and how much memory there are; environment.json has the threads",
    "pipeline/running/locks.py": "when a process begins",
    "pipeline/running/processes.py": "when a process ends",
    "pipeline/environment.py": "what it finds out is environment.json",
    "pipeline/gpus.py": "what it finds out is environment.json, or is noted beside a measurement",
    "pipeline/provenance.py": "facts that are noted beside a result",
    "pipeline/files.py": "names and formats of files",
    "pipeline/array_files.py": "the format of a file",
    "pipeline/training/progress.py": "what a terminal shows",
    "pipeline/tracking/__init__.py": "a docstring",
    "pipeline/tracking/store.py": "what a live run shows",
    "pipeline/git.py": "facts that are noted beside a result",
    "pipeline/running/stage.py": "how a stage starts and ends",
    "pipeline/text.py": "how a table is printed",
    "stages/__init__.py": "a name for pipeline/running/stage.py",
}


def imports(file: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse((REPOSITORY / file).read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def own(file: Path) -> set[Path]:
    """The project's own files that a file imports."""
    candidates = (name.replace(".", "/") for name in imports(file))
    return {
        Path(path)
        for name in candidates
        for path in (f"{name}.py", f"{name}/__init__.py")
        if (REPOSITORY / path).is_file()
    }


def layer(file: Path) -> str:
    if str(file) in ("pipeline/__init__.py", "pipeline/contract.py", "pipeline/errors.py"):
        return "contract"
    folder = file.parts[1] if file.parts[0] == "pipeline" else file.parts[0]
    return folder if folder in LAYERS else "foundation"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_follow_the_order_of_layers(file: Path):
    for imported in own(file):
        assert LAYERS.index(layer(imported)) <= LAYERS.index(layer(file)), f"{file} imports {imported}"


@pytest.mark.parametrize("name", LESSONS)
def test_lesson_imports_only_its_framework_and_the_contract(name: str):
    framework = name.split("_", maxsplit=1)[0]
    names = imports(Path("pipeline/lessons", LESSONS[name], f"{name}.py"))
    assert {module.split(".")[0] for module in names} <= {framework, "pipeline"}
    assert {module for module in names if module.startswith("pipeline") and module.count(".") == 1} == {
        "pipeline.contract"
    }


@pytest.mark.parametrize(
    ("module", "users"),
    [("mlflow", {"store", "runs", "served_model"}), ("rich", {"progress", "display"})],
)
def test_service_is_imported_only_by_its_modules(module: str, users: set[str]):
    assert {file.stem for file in FILES if any(name.split(".")[0] == module for name in imports(file))} == users


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_framework_is_imported_only_by_its_lessons_runtime_and_graphs(framework: str):
    compared = ("tuned", "peers")  # programs that the benchmark compares with the lessons
    users = {file for file in FILES if framework in {name.split(".")[0] for name in imports(file)}}
    users = {file for file in users if file.parts[2] not in compared}
    lessons = {
        Path("pipeline/lessons", problem, f"{name}.py")
        for name, problem in LESSONS.items()
        if name.startswith(framework)
    }
    assert users == lessons | {Path("pipeline", folder, f"{framework}.py") for folder in ("runtimes", "graphs")}


@pytest.mark.parametrize("folder", ["pipeline", "stages", "commands", "benchmarks"])
def test_text_files_are_opened_as_utf_8(folder: str):
    readers = {"read_text", "write_text", "open", "fdopen", "TemporaryFile"}
    for path in (REPOSITORY / folder).rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            keywords = {keyword.arg for keyword in call.keywords}
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            modes = [text for argument in call.args if "b" in (text := str(getattr(argument, "value", "")))]
            binary = modes or (name == "TemporaryFile" and not call.args)  # its default is a file of bytes
            is_text = (name in readers and not binary) or (name in ("run", "Popen") and "text" in keywords)
            assert not is_text or "encoding" in keywords, f"{path}, line {call.lineno}"


def test_only_clock_imports_time():
    assert {file.stem for file in FILES if "time" in imports(file)} == {"clock"}


def test_package_has_at_most_1500_lines():
    for package in {(REPOSITORY / file).parent for file in FILES}:
        lines = sum(len(path.read_text().splitlines()) for path in package.glob("*.py"))
        assert lines <= 1500, package


STAGE_FILES = [file for file in FILES if file.parts[0] == "stages" and file.stem != "__init__"]


@pytest.mark.parametrize("file", STAGE_FILES, ids=str)
def test_stage_file_is_a_stage_of_dvc_yaml_and_is_short(file: Path):
    assert file.stem in STAGES
    lines = [line for line in (REPOSITORY / file).read_text().splitlines() if line.strip()]
    assert len(lines) < (50 if file.stem in ("environment", "report") else 30)


def test_problem_is_named_only_in_its_own_files():
    """A third problem is a file in pipeline/problems, its section in params.yaml and its lessons: .ci/third tests
    it."""
    special_folders = (
        "pipeline/problems/",
        "pipeline/lessons/",
        "pipeline/benchmark/tuned/",
        "pipeline/benchmark/peers/",
    )
    folders = (REPOSITORY / folder for folder in ("pipeline", "stages", "commands"))
    files = [path for folder in folders for path in folder.rglob("*.*") if path.suffix in (".py", ".html", ".js")]
    for file in [*files, REPOSITORY / "dvc.yaml"]:
        name = file.relative_to(REPOSITORY).as_posix()
        if not name.startswith(special_folders):
            assert not re.search(r"two_layer|\brecurrent\b", file.read_text()), name


# The dependencies of a stage.


def needs(stage: str) -> set[str]:
    """The project's files that a stage imports, directly or indirectly, as paths of dvc.yaml."""
    seen: set[Path] = set()
    ahead = [Path("stages", f"{stage}.py")]
    if stage == "benchmark":  # its worker, which also imports the programs beside the lessons
        ahead.append(Path("pipeline/benchmark/benchmark.py"))
    while ahead:
        file = ahead.pop()
        if file not in seen:
            seen.add(file)
            ahead += own(file)
    reached = {str(file) for file in seen}
    for file in (file for file in seen if str(file) not in NO_RESULT):
        reached |= {FOUND_BY[name] for name in FOUND_BY if any(module.endswith(f".{name}") for module in imports(file))}
    return {file for file in reached if file not in NO_RESULT and not file.startswith("stages/")}


def missing(stage: str, deps: list[str]) -> set[str]:
    """Imports of a stage without a dependency."""

    def is_there(file: str) -> bool:
        if file == "the lessons":
            return bool({"pipeline/lessons/${item}/${key}.py", "pipeline/lessons"} & set(deps))
        if file == "pipeline/problems":
            return bool({"pipeline/problems/${key}.py", "pipeline/problems"} & set(deps))
        return any(file == dep or file.startswith(f"{dep}/") for dep in deps)

    return {file for file in needs(stage) if not is_there(file)}


def deps_of(stage: str) -> list[str]:
    return STAGES[stage].get("do", STAGES[stage]).get("deps", [])


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("environment", "track", "gate")])
def test_stage_depends_on_the_files_that_it_imports(stage: str):
    assert missing(stage, deps_of(stage)) == set()


def test_removed_dependency_is_reported_as_missing():
    for stage, dependency in (
        ("train", "pipeline/training"),
        ("evaluate", "pipeline/problems"),
        ("train", "pipeline/lessons/${item}/${key}.py"),
        ("reference", "pipeline/problems/${key}.py"),
        ("benchmark", "pipeline/benchmark"),
        ("report", "pipeline/report"),
    ):
        deps = [dep for dep in deps_of(stage) if dep != dependency]
        assert len(deps) == len(deps_of(stage)) - 1
        assert missing(stage, deps)


@pytest.mark.parametrize("stage", STAGES)
def test_dependencies_of_a_stage_exist(stage: str):
    for dep in deps_of(stage):
        if dep.startswith(("stages", "pipeline", "benchmarks")) and "$" not in dep:
            assert (REPOSITORY / dep).exists(), dep
