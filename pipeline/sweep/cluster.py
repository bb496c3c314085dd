"""Ray, on this machine alone or on the cluster that RAY_ADDRESS names."""

import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pipeline
from pipeline.errors import UserError

WHOLE = "node"  # each node offers one of it, and an experiment that times itself takes it


@contextmanager
def cluster(cpus: int) -> Iterator[Any]:
    """Ray, connected to a cluster that can give an experiment `cpus` CPUs, or a node where it is 0."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.util.queue
    import ray.util.scheduling_strategies
    from ray import cloudpickle

    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
    alone = {"num_cpus": len(os.sched_getaffinity(0)), "resources": {WHOLE: 1}, "include_dashboard": False}
    joined = False
    try:
        try:
            ray.init(address or "local", **options, **({} if address else alone))
        except (ConnectionError, RuntimeError):
            # No node of the cluster is on this machine: it becomes one, which runs nothing.
            joined = _ray("start", "--address", str(address), "--num-cpus", "0", "--num-gpus", "0")
            ray.init(address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"no Ray cluster answers at RAY_ADDRESS={address} ({error}).") from None
    try:
        cloudpickle.register_pickle_by_value(pipeline)  # a node needs no checkout
        resources = ray.cluster_resources()
        if not cpus and not resources.get(WHOLE):
            raise UserError("No node of the cluster offers itself whole: ray start --resources '{\"node\": 1}'.")
        if cpus > resources.get("CPU", 0):
            raise UserError(f"SHARE={cpus} asks for more CPUs than the cluster has ({resources.get('CPU', 0):.0f}).")
        yield ray
    finally:
        ray.shutdown()
        if joined:
            _ray("stop")


def progress_queue(ray: Any) -> Any:
    """A queue on the driver's node, into which tasks put how far they are."""
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    here = strategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.util.queue.Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def _ray(*arguments: str) -> bool:
    return not subprocess.run([Path(sys.prefix, "bin/ray"), *arguments], check=False, capture_output=True).returncode


def check_head() -> None:
    """Raises UserError when the cluster's head does not answer: without it Ray waits for a minute, then aborts."""
    host, _, port = os.environ.get("RAY_ADDRESS", "").removeprefix("ray://").rpartition(":")
    if host:
        try:
            socket.create_connection((host, int(port)), 5).close()
        except OSError as error:
            raise UserError(
                f"the head of the Ray cluster at {host}:{port} is gone ({error.strerror or error}). Finished "
                "experiments are kept. Start the cluster again, then `make sweep` goes on with the rest."
            ) from None


def elsewhere(ray: Any, nodes: set[str], resource: str) -> Any:
    """The strategy that schedules a task on a node which offers `resource` and is not in `nodes`, a set of Ray's node
    ids. None if the cluster has no such node."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(resource)}
    others = sorted(alive - nodes)
    # One node by name, not "any node but these" by label: Ray hands a task with labels to a worker that it has already
    # leased, whatever node that is on. Soft: if this node is lost, Ray chooses another.
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    return strategy(random.choice(others), soft=True) if others else None  # noqa: S311
