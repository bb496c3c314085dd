"""The commands beside `dvc repro`: `python -m commands --help`. Make's targets call them."""

import sys
from importlib.util import find_spec

from pipeline.errors import NO_PACKAGES

if find_spec("click") is None:
    sys.exit(NO_PACKAGES)
