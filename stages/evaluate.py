"""parity/NAME.json: each implementation, judged without its framework; results/curves and results/predictions."""

from pipeline.parity.evaluation import main
from stages import run

if __name__ == "__main__":
    run(main)
