"""The errors that a user can fix, and how a command ends with one."""

import errno
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# The names of the frameworks' exceptions: this file imports no framework.
OUT_OF_MEMORY = {
    "MemoryError": "",
    "_ArrayMemoryError": "",  # NumPy's
    "OutOfMemoryError": " on the GPU",  # PyTorch's, for a device
    "ResourceExhaustedError": "",  # TensorFlow's
}
ASKED = {  # the size that was asked for, in each library's words
    r"(?:[Tt]ried|[Tt]rying|[Uu]nable) to allocate ([\d.]+ ?(?:[KMGTPE]?i?B|bytes))": "{}",  # PyTorch, XLA, NumPy
    r"OOM when allocating tensor with shape ?(\[[\d,]*\])": "a tensor of the shape {}",  # TensorFlow
}
NO_PACKAGES = f"{sys.executable} does not have the pipeline's packages. Run `make setup`, then `. .venv/bin/activate`."
# Errors of the operating system whose cause a user can remove.
FULL = {errno.ENOSPC, errno.EDQUOT}
REFUSALS = FULL | {errno.EACCES, errno.EPERM, errno.EROFS}


class UserError(Exception):
    """What is wrong, where, and what to do, in one or two sentences. Shown without a traceback."""


@contextmanager
def shown_to_the_user() -> Iterator[None]:
    """On an error that the user can fix, print `ERROR:` and the sentence without a traceback, and exit with status 1. A
    character that the terminal lacks is printed as `?` from then on.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # sys.stderr replaces such characters by default
        sys.stdout.reconfigure(errors="replace")
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        sys.exit("\n".join(f"ERROR: {line}" for line in str(error).splitlines()))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            where = error.filename or "a result"
            remedy = "Make room" if error.errno in FULL else "Let this user write into the whole checkout, or copy it"
            sys.exit(f"ERROR: {where} cannot be written: {error.strerror}. {remedy}, then run again.")
        if sentence := out_of_memory(error):
            sys.exit(f"ERROR: {sentence}")
        raise


def out_of_memory(error: BaseException) -> str:
    """If a framework ran out of memory, a sentence on the size that did not fit and what to lower; otherwise empty."""
    text = str(error)
    where = OUT_OF_MEMORY.get(type(error).__name__)
    if where is None:
        if "can't allocate memory" not in text:  # what PyTorch's allocator for the CPU says, in a RuntimeError
            return ""
        where = ""
    if re.search(r"device:GPU:\d|GPU_\d_bfc|CUDA", text):
        where = " on the GPU"
    sizes = [
        words.format(match[1].replace(". ", " "))  # NumPy's 610. MiB
        for pattern, words in ASKED.items()
        if (match := re.search(pattern, text))
    ]
    of_what = f": {sizes[0]} did not fit" if sizes else ""
    others = ", or free the GPU: nvidia-smi shows what else uses it" if where else ""
    return f"there is not enough memory{where}{of_what}. Lower batch_size or the other sizes in params.yaml{others}."
