"""The machine-readable description of an exported folder: ro-crate-metadata.json and croissant/PROBLEM.json. export.py
runs it in a separate environment: python -m pipeline.archive.crate FOLDER FACTS, where FACTS is JSON. Formats: RO-Crate
1.3, with the run as a CreateAction; Croissant 1.0.
"""

import json
import sys
from datetime import UTC, datetime
from mimetypes import MimeTypes
from pathlib import Path
from typing import Any

import mlcroissant as mlc  # pyright: ignore[reportMissingImports]
from rocrate.model import ContextEntity  # pyright: ignore[reportMissingImports]
from rocrate.rocrate import ROCrate  # pyright: ignore[reportMissingImports]

from pipeline.files import sha256

TYPES = MimeTypes()  # independent of the types that this machine's files define
TYPES.add_type("application/yaml", ".yaml")
RESULTS = ("models", "results", "parity", "reference", "report", "report.html", "lessons.html", "summary.json")
DESCRIPTIONS = {
    "params.yaml": "What the experiment was run with",
    "dvc.lock": "The checksum of everything that each stage read and wrote",
    "environment.json": "What it ran on: hardware, driver, versions",
    "changes.patch": "What differed from the commit, as a patch",
    "repository.bundle": "The commit with its history: git clone repository.bundle",
    "report.html": "What was run and what came of it, as a page",
    "lessons.html": "The lessons as a page: idea, equations, code, graph and cost of each",
}
LICENSE, DATA_LICENSE = "https://spdx.org/licenses/MIT", "https://spdx.org/licenses/CC0-1.0"  # random numbers


def main(folder: Path, facts: dict[str, Any]) -> None:
    for data in sorted(path for path in (folder / "data").iterdir() if path.is_dir()):
        _write_croissant(folder, data, _time(facts["ended"]), facts["commit"])
    crate = ROCrate(version="1.3")
    root = crate.root_dataset
    root["name"] = f"One experiment, told seven ways: {facts['name']}"
    root["description"] = "Two small networks, trained by several implementations: code, data, weights, results"
    root["datePublished"] = _time(facts["ended"]).isoformat()
    root["license"] = LICENSE
    entities = {}
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = path.relative_to(folder).as_posix()
        properties = {"name": name, "contentSize": str(path.stat().st_size), "sha256": sha256(path)}
        properties["encodingFormat"] = _type(path)
        if name in DESCRIPTIONS:
            properties["description"] = DESCRIPTIONS[name]
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
            encoding_formats=[_type(path)],
            sha256=sha256(path),
        )
        for path in sorted(data.iterdir())
    ]
    metadata = mlc.Metadata(
        name=data.name,
        description=f"Random data of the problem {data.name}, with its initial weights: manifest.json has the shapes.",
        license=[DATA_LICENSE],
        url=f"../data/{data.name}/",
        version="1.0.0",
        date_published=published,
        cite_as=f"{data.name}, drawn by commit {commit}",
        distribution=files,
    )
    path = folder / "croissant" / f"{data.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(metadata.to_json(), indent=2, default=str) + "\n", encoding="utf-8")
    mlc.Dataset(jsonld=path)  # raises where it is not Croissant


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds // 1000, UTC)


def _type(path: Path) -> str:
    return TYPES.guess_type(path.name)[0] or "application/octet-stream"


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
