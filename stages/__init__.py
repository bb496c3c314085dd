"""The commands of dvc.yaml: each parses its argument, calls the pipeline and writes what it leaves.

`run` is how each of them starts and ends: one stage of a checkout at a time, which ends when its DVC is killed; a
user's mistake is a sentence and exit status 1; and after any failure the stage's last good outputs are there again
(stages/failure.py).
"""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

if find_spec("pydantic") is None:
    sys.exit(f"{sys.executable} does not have the pipeline's packages. Run `make setup`, then `. .venv/bin/activate`.")

from pipeline.checkout import LAST_GOOD, LOCKFILE, RUN_LOCK, STAGE_LOCK, acquire, holder, write_holder
from pipeline.errors import UserError, out_of_memory
from pipeline.files import remove_parts, write_bytes
from pipeline.processes import end_with_parent

# They wait until `run` can clean up after them, also while a stage imports NumPy: its outputs are gone by then.
SIGNALS = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

# What the operating system refuses for a reason that a user can fix.
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def run(stage: Callable[..., None], *, alone: bool = True) -> None:
    """Call `stage` with the command line's arguments, then exit; `alone`: while no other stage of the checkout runs."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if "DVC_STAGE" in os.environ:
        end_with_parent(signal.SIGTERM)
    with _checkout_to_itself(alone):
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            stage(*sys.argv[1:])
        except UserError as error:
            _clean_up(error)
            sys.exit("\n".join(f"ERROR: {line}" for line in str(error).splitlines()))
        except OSError as error:
            _clean_up(error)
            if error.errno not in REFUSALS:
                raise
            where = error.filename or "a result"
            sys.exit(f"ERROR: {where} cannot be written: {error.strerror}. Make room or allow it, then run again.")
        except KeyboardInterrupt as error:
            _clean_up(error)
            sys.exit(130)
        except BaseException as error:
            _clean_up(error)
            if sentence := out_of_memory(error):
                sys.exit(f"ERROR: {sentence}")
            raise


def _clean_up(error: BaseException) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # an impatient second Ctrl-C
    # In a process of its own: it needs DVC and MLflow, and the environment that a framework brings may have neither.
    python = os.environ.get("PIPELINE_PYTHON", sys.executable)
    stage, arguments = Path(sys.argv[0]).stem, sys.argv[1:2]
    subprocess.run([python, "-m", "stages.failure", f"{type(error).__name__}: {error}", stage, *arguments], check=False)


@contextmanager
def _checkout_to_itself(alone: bool) -> Iterator[None]:
    """Hold the locks of the checkout (pipeline/checkout.py has them), and put right what a killed stage left."""
    if not alone or not STAGE_LOCK.parent.is_dir():
        yield
        return
    with RUN_LOCK.open("a+") as run_lock, STAGE_LOCK.open("a+") as stage_lock:
        if os.environ.get("PIPELINE_LOCK") != "held":  # not started by the `dvc` of the project's environments
            try:
                fcntl.flock(run_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                sys.exit(f"ERROR: {holder(run_lock)} is using this checkout. Wait until it has ended, then run again.")
            write_holder(run_lock, f"python -m stages.{Path(sys.argv[0]).stem}")
        acquire(stage_lock)
        write_holder(stage_lock, f"stage {os.environ.get('DVC_STAGE', Path(sys.argv[0]).stem)}")
        remove_parts()
        if "DVC_STAGE" in os.environ and LOCKFILE.is_file():  # DVC is waiting for this stage, so it is whole
            write_bytes(LAST_GOOD, LOCKFILE.read_bytes())
        yield
