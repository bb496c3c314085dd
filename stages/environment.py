"""environment.json: what the experiment runs on. Runs in every `dvc repro`, and checks params.yaml."""

from dataclasses import asdict

from pipeline import records
from pipeline.environment import resolve
from pipeline.params import load_params
from stages import run


def main() -> None:
    params = load_params()
    environment = resolve(params)
    records.write_json(records.ENVIRONMENT, asdict(environment))
    print(
        f"device {params.device} is {environment.device}: {environment.device_name}, {environment.threads} CPU threads"
    )


if __name__ == "__main__":
    run(main)
