"""With MLFLOW_LIVE=1, a training that is under way as a run in MLflow: `python -m pipeline.tracking.live NAME`.

A process of its own, so that no server makes a training wait: it reads `step loss` lines from its standard input, and
sends what has come in every few seconds. The run is taken away when `track` shows the results in its place.
"""

import os
import select
import signal
import sys

from pipeline import files
from pipeline.params import load_params
from pipeline.processes import end_with_parent
from pipeline.tracking import store
from pipeline.tracking.view import tags_of

SECONDS = 2.0  # between two batches


def main(name: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the training, and its end is seen below
    end_with_parent(signal.SIGTERM)
    os.nice(5)  # the training goes first, but on a busy machine this must get on too
    params, uri = load_params(), store.tracking_uri()
    with store.warning(uri):
        store.probe(uri)
        with store.lock():
            client, experiment = store.open_store(uri)
            store.forget(uri)
        tags = tags_of(name, params.problem_of(name), params, files.read_environment()) | {"role": "live"}
        run_id = client.create_run(experiment, run_name=f"{name} (under way)", tags=tags).info.run_id
        open_end = True
        while open_end:
            open_end, losses = _received()
            if losses:
                store.send_losses(client, run_id, losses)
            select.select([], [], [], SECONDS)
        client.set_terminated(run_id)


def _received() -> tuple[bool, list[tuple[int, float]]]:
    """Whether more may come, and the steps and losses that have come, waiting for the first."""
    content = os.read(sys.stdin.fileno(), 2**15)
    pairs = (line.split() for line in content.decode().splitlines())
    return bool(content), [(int(step), float(loss)) for step, loss in pairs]


if __name__ == "__main__":
    main(*sys.argv[1:])
