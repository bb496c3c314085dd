"""`make export RUN=ID`: a run with all that belongs to it, as a folder; `make verify-export`: is it still that?"""

import sys
from pathlib import Path

from pipeline.archive.export import EXPORTED, export, verify
from pipeline.errors import UserError
from stages import run


def main(what: str = "", which: str = "") -> None:
    if what == "verify":
        folders = [Path(which)] if which else sorted(EXPORTED.glob("*"))
        if not folders:
            raise UserError("Nothing was exported here. make export RUN=ID, or name a folder: EXPORT=…")
        wrong = [f"{folder}: {each}" for folder in folders for each in verify(folder)]
        print("\n".join(wrong or [f"{folder} is as it was exported" for folder in folders]))
        sys.exit(bool(wrong))
    if not which:
        raise UserError("Which run? make export RUN=ID, with an id from MLflow, or its beginning.")
    print(f"{export(which)} stands on its own; make verify-export checks it")


if __name__ == "__main__":
    run(main, alone=False)
