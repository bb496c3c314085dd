"""Ray, on this machine alone or on the cluster that RAY_ADDRESS names."""

import logging
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import Any

import pipeline
from pipeline.clock import now
from pipeline.errors import UserError
from pipeline.running.machine import available_cpus
from pipeline.running.processes import end_with_parent

WHOLE = "node"  # each node offers one unit, and an experiment with a benchmark takes it
STARTS = 3  # of Ray, at most
ANSWERS_WITHIN = 4  # seconds, the head of a cluster
# Seconds, for the head of the compose cluster: its name resolves once its container runs, and Ray starts after that.
STARTS_WITHIN = {"head:6379": 60}
JOINS_WITHIN = 30  # seconds, for a node that was started together with the head
# gRPC uses HTTP/2: a client's first bytes, and the type of the frame with which every server answers.
PREFACE, SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 4
LONGEST_FOLDER = 38  # bytes: a socket's path has at most 107, of which Ray needs up to 69


@contextmanager
def cluster(cpus: int) -> Iterator[Any]:
    """Ray, connected to a cluster that can give an experiment `cpus` CPUs, or a whole node if `cpus` is 0.

    Raises UserError when RAY_ADDRESS is no address, when no cluster answers there, or when the cluster is too small.
    """
    address = cluster_address()
    if address and not os.environ.get("RAY_USE_TLS"):
        _check_cluster(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None and "RAY_AUTH_MODE" not in os.environ:  # otherwise Ray sets it, with a notice and a file in HOME
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex()}
    # Hides Ray's notices, such as the one on the size of /dev/shm, which do not help a user here.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        _make_folder_short(stack)
        import ray
        import ray.util.queue
        import ray.util.scheduling_strategies
        from ray import cloudpickle

        try:
            options: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
            if address is None:
                resources = {"num_cpus": available_cpus(), "resources": {WHOLE: 1}}
                stack.callback(ray.shutdown)
                _start_here(ray, include_dashboard=False, **resources, **options)
            else:
                if not _is_node_of(address):  # then it becomes a node that runs nothing
                    _join(address, stack)
                stack.callback(ray.shutdown)
                ray.init(address, **options)
        except Exception as error:  # Ray raises a plain Exception when a node does not start in time
            where = f"on the cluster at RAY_ADDRESS={address}" if address else "on this machine"
            raise UserError(f"Ray cannot be started {where}: {error} Everything stays queued; try again.") from None
        cloudpickle.register_pickle_by_value(pipeline)  # a node needs no checkout
        _check_resources(ray, cpus, address)
        yield ray


def _check_resources(ray: Any, cpus: int, address: str | None) -> None:
    """Waits for nodes that join after the head has started. Raises UserError when too few join."""
    resource, needed = ("CPU", cpus) if cpus else (WHOLE, 1)
    began = now()
    while (available := ray.cluster_resources().get(resource, 0)) < needed:
        waited = now() - began
        if address is None or waited >= JOINS_WITHIN:
            break
        if waited < 1:
            print(f"Waiting for nodes to join the Ray cluster at {address}", flush=True)
        Event().wait(1)
    if cpus > available:
        raise UserError(
            f"SHARE={cpus} asks for more CPUs than the cluster has ({available:.0f}). Set SHARE to at most that number."
        )
    if available < needed:
        raise UserError(
            "No node of the Ray cluster runs whole experiments. Start one with "
            "`ray start --resources '{\"node\": 1}'`, or set SHARE."
        )


def cluster_address() -> str | None:
    """HOST:PORT of the cluster's head, from RAY_ADDRESS. None if the sweep runs on this machine alone."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address in ("", "local"):
        return None
    if not re.fullmatch(r"(\[[\da-fA-F:.]+\]|[^\s:/]+):\d{1,5}", address) or int(address.rpartition(":")[2]) > 65535:
        raise UserError(
            f"RAY_ADDRESS={address} names no head of a cluster. Set it to HOST:PORT, as `ray start --head` prints it, "
            "or unset it to use this machine alone."
        )
    return address


def _check_cluster(address: str) -> None:
    began = now()
    while (waited := now() - began) < STARTS_WITHIN.get(address, ANSWERS_WITHIN):
        try:
            _connection(address).close()
            break
        except OSError:
            if waited < 1:
                print(f"Waiting for the head of the Ray cluster at {address}", flush=True)
            Event().wait(1)
    answer = b""
    try:
        with _connection(address) as connection:
            connection.settimeout(ANSWERS_WITHIN)
            connection.sendall(PREFACE)
            answer = connection.recv(9)
        reason = "the program at this address is not a Ray cluster"
    except OSError as error:
        reason = _words(error)
    if answer[3:4] != bytes([SETTINGS]):
        raise UserError(
            f"No Ray cluster answers at RAY_ADDRESS={address} ({reason}). Everything stays queued. Start the cluster's "
            "head, or unset RAY_ADDRESS to use this machine alone."
        )


def _connection(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), ANSWERS_WITHIN)


def _words(error: OSError) -> str:
    late = isinstance(error, TimeoutError)
    return f"it did not answer within {ANSWERS_WITHIN} s" if late else error.strerror or str(error)


def _is_node_of(address: str) -> bool:
    """Whether a node of this cluster runs on this machine. Ray itself waits for one for a minute."""
    from ray._private.services import canonicalize_bootstrap_address, find_node_ids

    ids = find_node_ids()
    if not ids:
        return False
    head = import_module("ray._raylet").GcsClient(address=canonicalize_bootstrap_address(address))
    nodes = head.get_all_node_info(timeout=ANSWERS_WITHIN)
    return any(node.node_id.hex() in ids and node.state == node.ALIVE for node in nodes.values())


def _start_here(ray: Any, **options: Any) -> None:
    """Start Ray on this machine alone. Ray waits 30 s for its own start; on a busy machine it may need more."""
    import psutil

    for attempt in range(1, STARTS + 1):
        try:
            ray.init("local", **options)
            return
        except Exception as error:
            if attempt == STARTS or "timed out" not in str(error):
                raise
            print("Ray has not started within 30 s, because this machine is busy. Starting it again.", flush=True)
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def _make_folder_short(stack: ExitStack) -> None:
    """Give Ray's sockets another folder where the temporary folder's path is too long for them."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(folder)) <= LONGEST_FOLDER:
        return
    for parent in ("/tmp", os.environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm"):  # noqa: S108
        if parent and os.access(parent, os.W_OK | os.X_OK):
            short = tempfile.TemporaryDirectory(prefix="ray-", dir=parent, ignore_cleanup_errors=True)
            os.environ["RAY_TMPDIR"] = stack.enter_context(short)
            return
    raise UserError(
        f"Ray's sockets need a folder whose path has at most {LONGEST_FOLDER} bytes, and {folder} has more. "
        "Set TMPDIR, or RAY_TMPDIR for Ray alone, to a shorter one."
    )


def progress_queue(ray: Any) -> Any:
    """A queue on the driver's node, into which tasks put their progress."""
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    here = strategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.util.queue.Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def _join(address: str, stack: ExitStack) -> None:
    """Make this machine a node of the cluster that runs nothing, until `stack` is left."""
    options = ["--address", address, "--num-cpus", "0", "--num-gpus", "0", "--block"]
    process = stack.enter_context(
        subprocess.Popen(
            [Path(sys.prefix, "bin/ray"), "start", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            preexec_fn=lambda: end_with_parent(signal.SIGTERM),  # noqa: PLW1509 (a killed sweep leaves no node)
            start_new_session=True,
        )
    )
    # Only the processes of this node: `ray stop` would end every node of this machine.
    stack.callback(process.terminate)
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        if "Ray runtime started" in line:
            return
    raise RuntimeError(" ".join("".join(lines[-3:]).split()))


def check_head() -> None:
    """Raises UserError when the cluster's head does not answer. Ray itself would wait for a minute, then abort."""
    if address := cluster_address():
        try:
            _connection(address).close()
        except OSError as error:
            raise UserError(
                f"The head of the Ray cluster at {address} is gone ({_words(error)}). Finished experiments are kept. "
                "Start the cluster again, then run `make sweep` for the rest."
            ) from None


def place(ray: Any, cpus: int, count: int) -> str:
    """A line on where this number of experiments runs."""
    experiments = f"{count} experiment{'s' * (count > 1)}"
    share = f"{cpus} CPU{'s' * (cpus > 1)} each, without a benchmark" if cpus else "one at a time on a node"
    resource = "CPU" if cpus else WHOLE
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(resource)]
    total = f"{sum(node['Resources'].get('CPU', 0) for node in nodes):.0f} CPUs"
    if address := cluster_address():
        number = f"{len(nodes)} node{'s' * (len(nodes) != 1)} with {total}"
        return f"{experiments} on the cluster at {address}, {number}: {share}"
    return f"{experiments} on this machine, {total}: {share if cpus else 'one at a time'}"


def elsewhere(ray: Any, nodes: set[str], resource: str) -> Any:
    """The strategy that schedules a task on a node that offers `resource` and is not in `nodes`, a set of Ray's node
    ids. None if the cluster has no such node."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(resource)}
    others = sorted(alive - nodes)
    # The strategy names one node. Labels for "any node but these" do not work: Ray gives a task with labels to a worker
    # that it has already leased, on any node. With soft=True Ray chooses another node if this one is lost.
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    return strategy(random.choice(others), soft=True) if others else None  # noqa: S311


def neighbours(ray: Any, machine: Any) -> frozenset[str]:
    """The ids of the nodes for whole experiments that share their machine with another node. `machine` is a task that
    returns the machine of a node."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(WHOLE)]
    if len(nodes) < 2:
        return frozenset()
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    tasks = [machine.options(num_cpus=0, scheduling_strategy=strategy(node, soft=True)).remote() for node in nodes]
    machines = ray.get(tasks)
    return frozenset(node for node, at in zip(nodes, machines, strict=True) if machines.count(at) > 1)
