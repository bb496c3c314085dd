"""Write graphs/NAME.json: graphs and numbers of each implementation's step. Each interpreter has one process."""

import os
import sys
from dataclasses import replace

from pipeline import files
from pipeline.environment import enter_interpreter, framework_of, runs_here
from pipeline.graphs.graph import write_graphs
from pipeline.graphs.record import record_lesson
from pipeline.params import load_params
from pipeline.runtimes import open_implementation
from stages import run


def main(*names: str) -> None:
    """Without `names`, record all implementations of params.yaml."""
    params = load_params()
    names = names or tuple(params.implementations)
    enter_interpreter(framework_of(names[0]))
    # A graph is the same on every device, and every machine has a CPU.
    environment = files.read_environment()
    environment = replace(environment, device="cpu", device_name=environment.cpu_name)
    here = [name for name in names if runs_here(framework_of(name))]
    for name in here:
        problem = params.problem_of(name)
        write_graphs(name, *record_lesson(name, problem, open_implementation(name, problem, environment)))
    if others := [name for name in names if name not in here]:
        os.execv(sys.executable, [sys.executable, "-m", "stages.graphs", *others])


if __name__ == "__main__":
    run(main)
