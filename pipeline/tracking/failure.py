"""A training that failed, as a run in MLflow: `python -m pipeline.tracking.failure ERROR NAME`."""

import os
import sys
from contextlib import suppress

from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.tracking.runs import log_failure


def main(error: str, name: str) -> None:
    with suppress(UserError):  # the stage has already reported what is wrong with params.yaml or the name
        if "PIPELINE_SWEEP" not in os.environ:  # a sweep logs its failures itself
            log_failure(name, error, load_params())


if __name__ == "__main__" and len(sys.argv) == 3:
    main(*sys.argv[1:])
