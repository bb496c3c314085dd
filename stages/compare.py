"""Write results/parity.json, the parity report. It records a failed check; the last stage, gate, then ends the
pipeline."""

from pipeline.parity.report import compare as main
from stages import run

if __name__ == "__main__":
    run(main)
