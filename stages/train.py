"""Train one implementation, and write models/NAME and results/NAME."""

from functools import partial

from pipeline.tracking.store import live_log
from pipeline.training.train import main
from stages import run

if __name__ == "__main__":
    run(partial(main, live_log=live_log), after_failure="pipeline.tracking.failure")
