"""The commands of dvc.yaml: each parses its argument, calls the pipeline and writes what it leaves.

`run` is how each of them starts and ends: a user's mistake is a sentence and exit status 1, and after any failure the
stage's last good outputs are there again, which DVC took away before it started the stage.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

if find_spec("pydantic") is None:
    sys.exit(f"{sys.executable} does not have the pipeline's packages. Run `make setup`, then `. .venv/bin/activate`.")

import yaml

from pipeline.errors import UserError


def run(stage: Callable[..., None]) -> None:
    """Call `stage` with the command line's arguments, then exit."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        stage(*sys.argv[1:])
    except UserError as error:
        _restore_outputs()
        sys.exit("\n".join(f"ERROR: {line}" for line in str(error).splitlines()))
    except KeyboardInterrupt:
        _restore_outputs()
        sys.exit(130)
    except BaseException:
        _restore_outputs()
        raise


def _restore_outputs() -> None:
    """Bring back, from DVC's cache, what dvc.lock says the running stage last left. Without DVC nothing was taken."""
    name, lock = os.environ.get("DVC_STAGE"), Path("dvc.lock")
    if not name or not lock.is_file():
        return
    from dvc.api import DVCFileSystem  # 0.5 s, and needed after a failure only

    files = DVCFileSystem(".")
    for output in yaml.safe_load(lock.read_text())["stages"].get(name, {}).get("outs", []):
        path = output["path"]
        if not Path(path).exists():
            with suppress(FileNotFoundError):  # a fresh clone has the lock, but never had the results
                files.get(path, path, recursive=True)
