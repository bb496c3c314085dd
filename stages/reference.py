"""Write reference/PROBLEM.safetensors: the training in float64 by the equations, with which all others are compared."""

from pipeline.training.reference import main
from stages import run

if __name__ == "__main__":
    run(main)
