"""The command line for everything besides `dvc repro`. Each command imports its modules when it runs."""

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import click

from pipeline.errors import UserError, shown_to_the_user
from pipeline.running.processes import OF_REPOSITORIES, end_with_parent

CPUS = click.IntRange(min=1)
HOST = "127.0.0.1"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """Run experiments and work with their results."""


@commands.command()
def params() -> None:
    """Check params.yaml and the git repository.

    `make repro` does so before DVC starts, because DVC's own messages name no remedy.
    """
    from pipeline.git import check_repository
    from pipeline.params import load_params

    check_repository()
    load_params()


@commands.command()
@click.option("--share", type=CPUS, help="CPUs for each experiment; by default each has a whole node.")
@click.argument("stages", nargs=-1)
def sweep(share: int | None, stages: tuple[str, ...]) -> None:
    """Run the queued experiments in parallel.

    They run here, or on the Ray cluster that RAY_ADDRESS names. STAGES are the stages to run, such as
    train@numpy_arrays; by default all. make sweep SHARE=1 ARGS="STAGES"
    """
    from pipeline.sweep.driver import sweep

    sys.exit(not sweep(share or 0, stages))


@commands.command()
@click.argument("n", type=click.IntRange(min=1))
@click.option("--share", type=CPUS, default=1, show_default=True, help="CPUs for each seed.")
def seeds(n: int, share: int) -> None:
    """Run the experiment on many seeds.

    The seeds 0 to N - 1 run in parallel, and a table of all seeds is printed: make seeds N=24
    """
    from pipeline import files
    from pipeline.params import load_params
    from pipeline.report import seeds as statistics
    from pipeline.sweep import seeds
    from pipeline.sweep.driver import sweep

    loaded = load_params()
    seeds.enqueue(n)
    succeeded = sweep(share, seeds.stages())
    if not seeds.collect(n):
        raise UserError("No seed has finished. Correct the errors in .dvc/tmp/sweep/*.log, then run make seeds again.")
    print(statistics.table(statistics.read(loaded)))
    print(f"{files.SEEDS} holds them; `dvc repro` puts them on the report's page")
    sys.exit(not succeeded)


@commands.command()
@click.argument("run")
def reproduce(run: str) -> None:
    """Run an MLflow run again, and print a verdict.

    make reproduce RUN=ID. RUN is an id from MLflow, or its beginning. The exit status is 0 for identical results or a
    difference within tolerance, 1 for a larger difference, and 2 if the run cannot be reproduced here. Make itself ends
    with 2 in both of these cases, and prints which it was: Error 1 or Error 2.
    """
    from pipeline.archive.reproduce import CANNOT, EXIT, reproduce

    try:
        verdict = reproduce(run)
    except UserError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        sys.exit(EXIT[CANNOT])
    print(verdict)
    sys.exit(EXIT[verdict.verdict])


@commands.command()
@click.argument("run")
def export(run: str) -> None:
    """Write an MLflow run to a folder.

    Its code, data and results go to exported/: make export RUN=ID. RUN is an id from MLflow, or its beginning.
    """
    from pipeline.archive.export import export

    print(f"{export(run)} is complete; make verify-export checks it")


@commands.command()
@click.argument("folders", metavar="[FOLDER]...", nargs=-1, type=Path)
def verify(folders: tuple[Path, ...]) -> None:
    """Verify the checksums of exported runs.

    By default of all in exported/: make verify-export EXPORT=FOLDER
    """
    from pipeline.archive.export import EXPORTED, verify

    folders = folders or tuple(sorted(EXPORTED.glob("*")))
    if not folders:
        raise UserError("Nothing was exported here. Run `make export RUN=ID`, or name a folder with EXPORT=FOLDER.")
    wrong = [f"{folder}: {fault}" for folder in folders for fault in verify(folder)]
    print("\n".join(wrong or [f"{folder} is unchanged" for folder in folders]))
    sys.exit(bool(wrong))


@commands.command()
@click.argument("name")
@click.option("--problem", help="The problem of a new lesson, which params.yaml does not name yet.")
@click.option("--device", default="cpu", show_default=True, help="cpu, or cuda.")
def explain(name: str, problem: str | None, device: str) -> None:
    """Name the first line of a lesson that is wrong.

    Every quantity of a step is compared with the equations: make explain NAME=torch_autograd DEVICE=cuda. In a lesson
    that is not finished, it names the next quantity. With PROBLEM, a lesson that is missing is written as a skeleton.
    The exit status is 0 where every quantity agrees, and 1 otherwise.
    """
    from pipeline.parity.lesson_file import find_or_write

    problem = find_or_write(name, problem)
    # In a separate process with the framework, which a container may start with another Python.
    os.execv(sys.executable, [sys.executable, "-m", "pipeline.parity.explain", name, problem, device])


@commands.command()
def track() -> None:
    """Send the MLflow store the current results that it lacks. It asks the store, so runs that were deleted there are
    sent again. `dvc repro` relies on its receipt instead.
    """
    from pipeline.params import load_params
    from pipeline.tracking.runs import log_results

    log_results(load_params(), again=True)


@commands.command()
@click.argument("port", type=click.IntRange(0, 65535), default=5000)  # 0: one that is free
def ui(port: int) -> None:
    """Start the MLflow UI on 127.0.0.1.

    It shows the runs of this checkout: make ui PORT=5001
    """
    from pipeline.tracking import store

    try:
        with socket.create_server((HOST, port)) as probe:
            port = probe.getsockname()[1]
    except OSError as error:
        cause = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {os.strerror(error.errno or 0)}"
        raise UserError(f"Port {port} of {HOST} {cause}. Take another port: make ui PORT=5001.") from None
    uri = store.tracking_uri()
    if uri.startswith("http"):
        server = os.environ.get("MLFLOW_UI", store.store_name())
        raise UserError(f"MLFLOW_TRACKING_URI names a server. Open its page: {server}")
    _, experiment = store.connect()
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # eight helper processes that nothing here uses
    # Not as an argument: `ps` shows arguments, and the address may contain a password.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri
    address = f"http://{HOST}:{port}/#/experiments/{experiment}/runs?{store.TRAINING}"
    print(f"{address} (Ctrl-C stops it)", flush=True)
    command = ["mlflow", "server", "--artifacts-destination", (store.root() / "mlruns").as_uri(), "--host", HOST]
    sys.exit(_serve([*command, "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level error"]))


@commands.command()
@click.argument("version")
def release(version: str) -> None:
    """Make a release.

    make release VERSION=1.2.0 updates the version, commits and tags. docs/releasing.md says what follows.
    """
    from commands.release import release

    print(release(version))
    print(f"The commit and the tag v{version} are in this checkout alone. docs/releasing.md says how to publish them.")


def _serve(command: list[str]) -> int:
    """Run MLflow's server until it ends or is interrupted. Returns its exit status, or 0 after Ctrl-C.

    The server's output is shown only if it fails, because its hints and warnings are for MLflow's developers.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only this process, which then ends the server
            preexec_fn=lambda: end_with_parent(signal.SIGTERM),  # noqa: PLW1509 (a closed terminal ends the server, too)
        )
        try:
            status = server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                server.wait(5)
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
        output.seek(0)
        print(output.read().strip(), file=sys.stderr)
        return status or 1


def main() -> None:
    try:
        commands(prog_name="python -m commands", standalone_mode=False)
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "python -m commands"
        raise UserError(f"{error.format_message()} `{command} --help` lists what the command takes.") from None


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for name in OF_REPOSITORIES:  # libraries of DVC, which some commands call, would read these variables
        os.environ.pop(name, None)
    with shown_to_the_user():
        main()
