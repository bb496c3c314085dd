"""The commands besides `dvc repro`: `python -m commands --help`. The targets of the Makefile call them."""

import sys
from importlib.util import find_spec

from pipeline.errors import NO_PACKAGES

if find_spec("click") is None:
    sys.exit(NO_PACKAGES)
