"""Write data/PROBLEM: random data and initial weights."""

from pipeline.training.generate import main
from stages import run

if __name__ == "__main__":
    run(main)
