"""What the tree promises: imports point one way, lessons stand alone, stages are short."""

import ast
from pathlib import Path

import pytest
from conftest import LESSONS, REPOSITORY

PACKAGE = REPOSITORY / "pipeline"
FILES = sorted(
    path.relative_to(REPOSITORY) for folder in ("pipeline", "stages") for path in (REPOSITORY / folder).rglob("*.py")
)


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((REPOSITORY / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_imports_its_framework_and_the_contract_alone(name: str):
    framework = name.split("_", maxsplit=1)[0]
    names = imports(Path("pipeline", LESSONS[name], f"{name}.py"))
    roots = {module.split(".")[0] for module in names}
    assert roots <= {framework, "pipeline", "typing"}
    assert {module for module in names if module.startswith("pipeline") and module.count(".") == 1} == {
        "pipeline.contract"
    }


@pytest.mark.parametrize(("module", "files"), [("mlflow", {"tracking", "served_model"}), ("rich", {"progress"})])
def test_a_service_is_imported_in_one_place(module: str, files: set[str]):
    assert {file.stem for file in FILES if any(name.split(".")[0] == module for name in imports(file))} == files


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_a_framework_is_imported_by_its_lessons_and_its_runtime_alone(framework: str):
    users = {file for file in FILES if framework in {name.split(".")[0] for name in imports(file)}}
    lessons = {
        Path("pipeline", problem, f"{name}.py") for name, problem in LESSONS.items() if name.startswith(framework)
    }
    assert users == lessons | {Path("pipeline/runtimes", f"{framework}.py")}


def test_only_one_clock():
    users = {file.stem for file in FILES if "time" in imports(file)}
    assert users == {"timing"}


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.parts[0] == "stages" and file.stem != "__init__"], ids=str
)
def test_a_stage_is_short(file: Path):
    assert sum(1 for line in (REPOSITORY / file).read_text().splitlines() if line.strip()) < 40
