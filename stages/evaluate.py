"""parity/NAME.json: each implementation, judged without its framework; results/curves: their losses."""

from pipeline.parity.evaluation import main
from stages import run

if __name__ == "__main__":
    run(main)
