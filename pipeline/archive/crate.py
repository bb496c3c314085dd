"""What an exported folder says of itself, for programs: ro-crate-metadata.json and croissant/PROBLEM.json.

Run in an environment of its own by export.py: python crate.py FOLDER FACTS, where FACTS is JSON (export.py's `_facts`).
Formats: RO-Crate 1.3, with the run as a CreateAction; Croissant 1.0.
"""

import hashlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlcroissant as mlc  # pyright: ignore[reportMissingImports]
from rocrate.model import ContextEntity  # pyright: ignore[reportMissingImports]
from rocrate.rocrate import ROCrate  # pyright: ignore[reportMissingImports]

TYPES = {
    ".json": "application/json",
    ".yaml": "application/yaml",
    ".html": "text/html",
    ".svg": "image/svg+xml",
    ".csv": "text/csv",
    ".py": "text/x-python",
    ".md": "text/markdown",
    ".png": "image/png",
}
RESULTS = ("models", "results", "parity", "reference", "report", "report.html", "lessons.html", "summary.json")
SAYS = {
    "params.yaml": "What the experiment was run with",
    "dvc.lock": "The checksum of everything that each stage read and wrote",
    "environment.json": "What it ran on: hardware, driver, versions",
    "changes.patch": "What differed from the commit, as a patch",
    "repository.bundle": "The commit with its history: git clone repository.bundle",
    "report.html": "What was run and what came of it, as a page",
    "lessons.html": "The lessons as a page: idea, equations, code, graph and cost of each",
}
LICENSE = "https://spdx.org/licenses/CC0-1.0"  # of random numbers


def main(folder: Path, facts: dict[str, Any]) -> None:
    for data in sorted(path for path in (folder / "data").iterdir() if path.is_dir()):
        _write_croissant(folder, data, _time(facts["ended"]), facts["commit"])
    crate = ROCrate(version="1.3")
    root = crate.root_dataset
    root["name"] = f"One experiment, told seven ways: {facts['name']}"
    root["description"] = "Two small networks, trained by several implementations: code, data, weights, results"
    root["datePublished"] = _time(facts["ended"]).isoformat()
    root["license"] = "No licence is given for the whole; see the repository"
    entities = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        name = path.relative_to(folder).as_posix()
        properties = {"name": name, "contentSize": str(path.stat().st_size), "sha256": _sha256(path)}
        properties |= {"encodingFormat": TYPES.get(path.suffix, "application/octet-stream")}
        if name in SAYS:
            properties["description"] = SAYS[name]
        entities[name] = crate.add_file(dest_path=name, properties=properties)
    software = {"@type": "SoftwareApplication", "name": "DVC", "url": "https://dvc.org", "version": facts["dvc"]}
    results = [entity for name, entity in entities.items() if name.split("/")[0] in RESULTS]
    inputs = [entity for name, entity in entities.items() if name == "params.yaml" or name.startswith("data/")]
    where = ", ".join(facts[key] for key in ("device", "device_name", "image.digest") if key in facts)
    ran = {
        "@type": "CreateAction",
        "name": f"MLflow run {facts['run']}",
        "description": f"dvc repro at commit {facts['commit']} with changes.patch, on {where}",
        "startTime": _time(facts["began"]).isoformat(),
        "endTime": _time(facts["ended"]).isoformat(),
        "instrument": crate.add(ContextEntity(crate, "#dvc", software)),
        "object": inputs,
        "result": results,
    }
    root["mentions"] = crate.add(ContextEntity(crate, f"#{facts['run']}", ran))
    crate.metadata.write(folder)


def _write_croissant(folder: Path, data: Path, published: datetime, commit: str) -> None:
    files = [
        mlc.FileObject(
            id=path.name,
            name=path.name,
            content_url=f"../data/{data.name}/{path.name}",
            encoding_formats=[TYPES.get(path.suffix, "application/octet-stream")],
            sha256=_sha256(path),
        )
        for path in sorted(data.iterdir())
    ]
    metadata = mlc.Metadata(
        name=data.name,
        description=f"Random data of the problem {data.name}, with its initial weights: manifest.json has the shapes.",
        license=[LICENSE],
        url=f"../data/{data.name}/",
        version="1.0.0",
        date_published=published,
        cite_as=f"{data.name}, drawn by commit {commit}",
        distribution=files,
    )
    path = folder / "croissant" / f"{data.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(metadata.to_json(), indent=2, default=str) + "\n")
    mlc.Dataset(jsonld=path)  # raises where it is not Croissant


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds // 1000, UTC)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
