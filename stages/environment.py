"""Check params.yaml, and write environment.json (device, threads, versions). Runs in every `dvc repro`. It also writes
benchmark_plan.json: the parts of params.yaml that the benchmark depends on. This is a file because dvc.yaml cannot name
keys of every problem.
"""

import sys
from contextlib import suppress
from dataclasses import asdict

from pipeline import files
from pipeline.environment import differences, resolve
from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.provenance import begin_run
from stages import run


def main() -> None:
    begin_run()
    params = load_params()
    environment = resolve(params, on_fallback=say_why)
    with suppress(UserError):  # there is no earlier environment.json, or it is damaged
        if changes := differences(asdict(files.read_environment()), asdict(environment)):
            print(f"The environment has changed, so trainings run again: {'; '.join(changes)}")
    files.write_json(files.ENVIRONMENT, asdict(environment))
    sections = {problem: params.problems[problem] for problem in params.used_problems}
    plan = params.model_dump(include={"implementations", "dtype", "benchmark"}) | {
        problem: {"training": section.sizes, "cases": section.cases} for problem, section in sections.items()
    }
    files.write_json(files.BENCHMARK_PLAN, plan)
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
