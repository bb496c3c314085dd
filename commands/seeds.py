"""`make seeds N=24`: the experiment on seeds 0 … N - 1, side by side; and a table of all seeds that are here."""

import sys

from pipeline import files
from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.report import seeds as shown
from pipeline.sweep import seeds
from pipeline.sweep.driver import sweep
from stages import run


def main(count: str = "", share: str = "1") -> None:
    if not (count.isdigit() and int(count)):
        raise UserError(f"N={count} is not a number of seeds: make seeds N=24.")
    if not (share.isdigit() and int(share)):
        raise UserError(f"SHARE={share} is not a number of CPUs. SHARE=1 gives each seed one.")
    params = load_params()
    seeds.enqueue(int(count))
    succeeded = sweep(int(share), seeds.stages(params))
    if not seeds.collect():
        raise UserError("No seed came home: .dvc/tmp/sweep/*.log say why.")
    print(shown.table(shown.read(params)))
    print(f"{files.SEEDS} holds them; `dvc repro` puts them on the report's page")
    sys.exit(not succeeded)


if __name__ == "__main__":
    run(main, alone=False)
