"""The start and end of a stage. A checkout runs one stage at a time, and a stage ends when the `dvc` that started it is
killed. A user's mistake gives a sentence and exit status 1. DVC removes a stage's outputs before it starts the stage.
So after a failure `python -m pipeline.running.stage` restores the last good outputs from DVC's cache."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path

# Block signals until `run` can restore the outputs, which DVC has already removed.
SIGNALS = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

from pipeline.errors import NO_PACKAGES, shown_to_the_user  # noqa: E402

if find_spec("pydantic") is None:
    sys.exit(NO_PACKAGES)

from pipeline.files import PART, remove_parts, scratch, write_bytes  # noqa: E402
from pipeline.running.checkout import LAST_GOOD, LOCKFILE, RUN_LOCK, STAGE_LOCK  # noqa: E402
from pipeline.running.locks import HELD, acquire, holder, open_lock, take, write_holder  # noqa: E402
from pipeline.running.processes import end_with_parent  # noqa: E402


def run(main: Callable[..., None], *, alone: bool = True, after_failure: str = "") -> None:
    """Call `main` with the arguments of the command line, and restore the last good outputs if it fails. With `alone`,
    wait until no other stage of the checkout runs. `after_failure` is a module that runs after a failure: `python -m`
    MODULE ERROR ARGUMENTS.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if "DVC_STAGE" in os.environ:
        end_with_parent(signal.SIGTERM)
    command = f"stages.{Path(sys.argv[0]).stem}"
    with _checkout_to_itself(command) if alone and RUN_LOCK.parent.is_dir() else nullcontext():
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            with shown_to_the_user():
                main(*sys.argv[1:])
        except BaseException as error:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # ignore a second Ctrl-C
            cause = error.__context__ if isinstance(error, SystemExit) and error.__context__ else error
            # These run in other processes. They need DVC and MLflow, which a framework's environment may lack.
            python = os.environ.get("PIPELINE_PYTHON", sys.executable)
            subprocess.run([python, "-m", "pipeline.running.stage"], check=False)
            if after_failure:
                message = f"{type(cause).__name__}: {cause}"
                subprocess.run([python, "-m", after_failure, message, *sys.argv[1:]], check=False)
            raise


@contextmanager
def _checkout_to_itself(command: str) -> Iterator[None]:
    """Hold the locks of the checkout (pipeline/running/checkout.py), and remove what a killed stage left."""
    with shown_to_the_user():
        run_lock, stage_lock = open_lock(RUN_LOCK), open_lock(STAGE_LOCK)
    with run_lock, stage_lock:
        if os.environ.get(HELD) != "held":  # not started by the `dvc` of the project's environments
            if not take(run_lock, wait=False):
                sys.exit(f"ERROR: {holder(run_lock)} is using this checkout. Wait until it has ended, then run again.")
            write_holder(run_lock, f"python -m {command}")
        acquire(stage_lock)
        write_holder(stage_lock, f"stage {os.environ.get('DVC_STAGE', command)}")
        remove_parts()
        if "DVC_STAGE" in os.environ and LOCKFILE.is_file():  # DVC waits for this stage, so the file is complete
            write_bytes(LAST_GOOD, LOCKFILE.read_bytes())
        yield


def _restore_outputs() -> None:
    """Restore this stage's outputs in dvc.lock from DVC's cache. If DVC did not start the stage, nothing was
    removed."""
    name = os.environ.get("DVC_STAGE")
    if not name or not LOCKFILE.is_file():
        return
    import yaml

    outputs = yaml.load(LOCKFILE.read_text(encoding="utf-8"), yaml.CSafeLoader)["stages"].get(name, {}).get("outs", [])
    missing = [path for output in outputs if not (path := Path(output["path"])).exists()]
    if missing:
        from dvc.api import DVCFileSystem  # half a second

        for path in missing:
            # A fresh clone has the dvc.lock of another machine and no cache. DVC raises several exceptions for that.
            with suppress(Exception), scratch(path.with_name(f".{path.name}{PART}")) as folder:
                DVCFileSystem(".").get(path.as_posix(), str(folder / path.name), recursive=True)
                (folder / path.name).replace(path)


if __name__ == "__main__":
    _restore_outputs()
