"""README, the tutorial and the how-to pages: their commands run in a fresh clone, and their links resolve."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import browser
import mlflow
import pytest
import yaml
from conftest import REPOSITORY, Clone, outside_variables

from pipeline.parity.report import table
from pipeline.results import ParityReport

README = REPOSITORY / "README.md"
TUTORIAL = REPOSITORY / "docs/tutorial.md"
HOW_TO = [REPOSITORY / "docs/how-to" / f"{name}.md" for name in ("experiments", "sweeps", "seeds")]
HOW_TO += sorted(set((REPOSITORY / "docs/how-to").glob("*.md")) - set(HOW_TO))
DOCUMENTS = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
# Commands that need many minutes, a GPU or an advisory service, and run elsewhere. Here only their existence is
# checked.
LONG = {
    "make bench",
    "make bench-gpu",
    "make test",
    "make test-pipeline",
    "make test-docker",
    "make test-benchmark",
    "make test-faults",
    "make test-environments",
    "make check",
    "make check-gpu",
    "make audit",
    "make check-platforms",
}
ENVIRONMENT = Path(sys.prefix)


def blocks(document: Path, language: str) -> list[list[str]]:
    return [block.splitlines() for block in re.findall(rf"```{language}\n(.*?)```", document.read_text(), re.DOTALL)]


def commands() -> list[str]:
    """Each command once, in the order of the documents."""
    lines = [line for document in (README, TUTORIAL, *HOW_TO) for block in blocks(document, "sh") for line in block]
    return list(dict.fromkeys(command for line in lines if (command := re.split(r"(?:^|\s{2,}|\t)#", line)[0].strip())))


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    headings = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line) for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_relative_links_and_anchors_of_documents_resolve(document: Path):
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md"])
def test_readme_and_architecture_have_at_most_150_lines(name: str):
    assert len((REPOSITORY / name).read_text().splitlines()) <= 150


def test_readme_shows_the_parity_report_of_the_committed_results():
    report = ParityReport.read(REPOSITORY / "docs/results/parity.json")
    assert [line.rstrip() for line in blocks(README, "text")[0]] == [
        line.rstrip() for line in table(report).splitlines()
    ]


def test_readme_shows_the_step_of_the_lesson():
    source = (REPOSITORY / "pipeline/lessons/two_layer/torch_autograd.py").read_text()
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    step = next(function for function in functions if function.name == "step")
    lines = source.splitlines()[step.lineno - 1 : step.end_lineno]
    assert blocks(README, "python")[0] == textwrap.dedent("\n".join(lines)).splitlines()


@pytest.mark.browser
def test_rendered_documents_request_nothing_from_a_network(tmp_path: Path):
    subprocess.run([REPOSITORY / "requirements/setup.sh", "docs"], check=True)
    mkdocs = [REPOSITORY / ".venv-docs/bin/mkdocs", "build", "--quiet", "--strict", "--site-dir", tmp_path]
    subprocess.run(mkdocs, cwd=REPOSITORY, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True)
    with browser.chromium() as opened:
        for name in ("index.html", "overview.html", "reference/params.html"):
            opened.get((tmp_path / name).as_uri())
            assert opened.find_element("tag name", "h1").text
        messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    requests = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    urls = [request["request"]["url"] for request in requests]
    assert any(url.endswith("overview.html") for url in urls)
    assert [url for url in urls if not url.startswith(("file:", "data:", "chrome:", "blob:"))] == []


@pytest.fixture(scope="module")
def clone(make_clone: Callable[..., Clone]) -> Clone:
    """A fresh clone with small params, and with the existing .venv and .venv-export."""
    clone = make_clone("numpy_arrays", "torch_loop", benchmark=True)
    subprocess.run([REPOSITORY / "requirements/setup.sh", "export"], check=True)
    for name, target in {".venv": ENVIRONMENT, ".venv-export": REPOSITORY / ".venv-export"}.items():
        (clone.path / name).symlink_to(target)
    with (clone.path / ".git/info/exclude").open("a") as file:
        file.write("/.venv\n/.venv-export\n")
    clone.run("git", "config", "user.name", "test")
    clone.run("git", "config", "user.email", "test@localhost")
    return clone


@pytest.fixture(scope="module")
def shell(clone: Clone) -> Callable[[str], str]:
    """Runs a line unchanged, and returns its output."""
    outside = outside_variables() | {
        "EDITOR": "true",
        "PORT": "5077",
        "PATH": f"{ENVIRONMENT}/bin:{os.environ['PATH']}",
    }

    def run(line: str) -> str:
        command = ["bash", "-c", line]
        done = subprocess.run(
            command, cwd=clone.path, env=outside, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, f"{line}:\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


def newest(clone: Clone) -> str:
    mlflow.set_tracking_uri(f"sqlite:///{clone.path / 'mlflow.db'}")
    runs = mlflow.search_runs(experiment_names=["seven-ways"], filter_string="tags.role = 'pipeline'")
    return runs["run_id"].iloc[0]


def start(clone: Clone, line: str) -> None:
    """Starts a server and waits until it answers at the address that it prints."""
    environment = outside_variables() | {"PORT": "5077"}
    with subprocess.Popen(
        ["bash", "-c", line], cwd=clone.path, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout
            address = process.stdout.readline().split()[0]
            server = address.split("/#/")[0]
            for _ in range(60):
                try:
                    assert urllib.request.urlopen(f"{server}/health", timeout=1).status == 200
                    break
                except OSError:
                    time.sleep(1)
            else:
                raise TimeoutError(f"nothing answers at {server}")
        finally:
            os.killpg(process.pid, signal.SIGINT)


def is_a_target(line: str) -> bool:
    command = ["make", "-n", *line.split()[1:]]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False).returncode == 0


def check_container(line: str) -> None:
    """test_docker.py runs containers. Here only the service and its command are checked."""
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
    form = r"docker compose (?:--profile \S+ )?(?:run --rm|up -d(?: --scale)?) ([a-z]+)(?:=\d+)?(?: (.*))?"
    match = re.fullmatch(form, line)
    assert match, f"{line} is no form that is known here"
    service, command = match.groups()
    assert service in services, f"{line}: compose.yaml has no service {service}"
    if command and command.startswith("make "):
        assert is_a_target(command), line


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore:The ``noload``", "ignore:.*Any type hint is inferred")
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not (ENVIRONMENT / "requirements.sha256").exists(), reason="there is no .venv, as in a container")
@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_commands_of_documents_run(clone: Clone, shell: Callable[[str], str]):
    output = {}
    for line in commands():
        if line.startswith("docker compose"):
            check_container(line)
        elif line in LONG:
            assert is_a_target(line), f"there is no `{line}`"
        elif line == "make ui":
            start(clone, line)
        else:
            few = line.replace("N=24", "N=2")
            output[line] = shell(few.replace("ID", newest(clone)) if "ID" in line else few)
    assert "numpy_arrays" in output["make repro"]
    assert "torch_loop" in output["make repro"]
    explained = output["make explain NAME=numpy_arrays"]
    assert explained.endswith("numpy_arrays: every quantity agrees with the equations.\n")
    diff = output["dvc exp diff HEAD half"]
    for line in blocks(TUTORIAL, "text")[0]:
        for word in line.split()[:2]:
            assert word in (*diff.split(), "…"), f"`dvc exp diff HEAD half` does not print {word}: {diff}"
    assert re.search(r"numpy_arrays +(\d+) of \1 ", output["make seeds N=24"])
    assert "bitwise identical" in output["make reproduce RUN=ID"]
    assert "is unchanged" in output["make verify-export"]
