"""environment.json: what the experiment runs on. Runs in every `dvc repro`, and checks params.yaml."""

import sys
from dataclasses import asdict

from pipeline import files
from pipeline.environment import resolve
from pipeline.params import load_params
from pipeline.provenance import begin_run
from stages import run


def main() -> None:
    begin_run()
    params = load_params()
    environment = resolve(params, on_fallback=say_why)
    files.write_json(files.ENVIRONMENT, asdict(environment))
    print(
        f"device {params.device} is {environment.device}: {environment.device_name}, {environment.threads} CPU threads"
    )


def say_why(reason: str, doubtful: bool) -> None:
    if doubtful:
        print(f"WARNING: device auto falls back to the CPU: {reason}.", file=sys.stderr)
    else:
        print(f"device auto takes the CPU: {reason}")


if __name__ == "__main__":
    run(main)
