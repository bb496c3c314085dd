"""The stages of dvc.yaml. Each parses its argument, calls the pipeline and writes its results.

Import `run` from here: signals are then blocked before a stage imports NumPy (see pipeline/running/stage.py).
"""

from pipeline.running.stage import run as run
