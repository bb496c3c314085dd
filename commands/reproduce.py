"""`make reproduce RUN=ID`: a run again, from its id in MLflow, with a verdict."""

import sys

from pipeline.archive.reproduce import EXIT, reproduce, table
from pipeline.errors import UserError
from stages import run


def main(beginning: str = "") -> None:
    if not beginning:
        raise UserError("Which run? make reproduce RUN=ID, with an id from MLflow, or its beginning.")
    verdict = reproduce(beginning)
    print(table(verdict))
    sys.exit(EXIT[verdict.verdict])


if __name__ == "__main__":
    run(main, alone=False)
