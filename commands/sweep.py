"""`make sweep`: the experiments in DVC's queue, side by side; SHARE=N gives each N CPUs in place of a whole node."""

import sys

from pipeline.errors import UserError
from pipeline.sweep.driver import sweep
from stages import run


def main(share: str = "", *targets: str) -> None:
    if share and not (share.isdigit() and int(share)):
        raise UserError(f"SHARE={share} is not a number of CPUs. SHARE=1 gives each experiment one.")
    sys.exit(not sweep(int(share or 0), targets))


if __name__ == "__main__":
    run(main, alone=False)
