"""Validate an RO-Crate without a network: .venv-export/bin/python tests/validate_crate.py FOLDER CACHE

The validator reads the vocabulary's definition from w3id.org; ro-crate-py brings the same file, which is put into the
validator's cache here.
"""

import importlib.resources
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

from requests import PreparedRequest, Response  # pyright: ignore[reportMissingModuleSource]
from requests.adapters import BaseAdapter  # pyright: ignore[reportMissingModuleSource]
from requests_cache import CachedSession  # pyright: ignore[reportMissingImports]
from urllib3 import HTTPResponse

CONTEXT = "https://w3id.org/ro/crate/1.3/context"


class Bundled(BaseAdapter):
    def send(self, request: PreparedRequest, *_: Any, **__: Any) -> Response:
        content = importlib.resources.files("rocrate").joinpath("data/ro-crate.jsonld").read_bytes()
        response = Response()
        response.status_code, response.url, response.request = 200, CONTEXT, request
        response.headers["Content-Type"] = "application/ld+json"
        response.raw = HTTPResponse(io.BytesIO(content), headers=response.headers, status=200, preload_content=False)
        return response

    def close(self) -> None:
        pass


folder, cache = sys.argv[1:]
session = CachedSession(cache, backend="sqlite", expire_after=-1)
session.mount(CONTEXT, Bundled())
session.get(CONTEXT, headers={"Accept": "application/ld+json"})
session.get(CONTEXT)
validator = Path(sys.executable).with_name("rocrate-validator")
options = ["--no-interactive", "--disable-color", "validate", "--offline", "--cache-path", cache, "--verbose"]
sys.exit(subprocess.run([validator, *options, *sys.argv[3:], folder], check=False).returncode)
