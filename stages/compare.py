"""results/parity.json: the parity report. A failed check is recorded here; the last stage, gate, ends the pipeline."""

from pipeline.parity.report import compare as main
from stages import run

if __name__ == "__main__":
    run(main)
