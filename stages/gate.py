"""Ends the pipeline with exit status 1 when an implementation fails the parity check."""

from pipeline.parity.report import gate as main
from stages import run

if __name__ == "__main__":
    run(main)
