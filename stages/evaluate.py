"""Write parity/NAME.json: the evaluation of each implementation, without its framework; results/curves and
results/predictions."""

from pipeline.parity.evaluation import main
from stages import run

if __name__ == "__main__":
    run(main)
