"""The objects of DVC's cache, by their md5 in dvc.lock."""

import json
from collections.abc import Iterable
from pathlib import Path


def path_of(md5: str, cache: Path) -> Path:
    return cache / "files/md5" / md5[:2] / md5[2:]


def in_cache(cache: Path) -> frozenset[str]:
    return frozenset(f"{path.parent.name}{path.name}" for path in cache.glob("files/md5/??/*"))


def entries(md5: str, cache: Path) -> dict[str, str]:
    """The md5 of each file of a folder, by its path there; empty if the folder is not in the cache."""
    path = path_of(md5, cache)
    return (
        {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_text(encoding="utf-8"))}
        if path.exists()
        else {}
    )


def with_files(md5s: Iterable[str], cache: Path) -> set[str]:
    """These objects, and of each folder that is in the cache also its files."""
    folders = (entries(md5, cache) for md5 in md5s if md5.endswith(".dir"))
    return {*md5s, *(md5 for folder in folders for md5 in folder.values())}
