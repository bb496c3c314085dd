"""`make bench-scale`: data larger than memory, drawn, written, trained on by every lesson; its cost in time and memory.

For each problem and a range of sizes, up to 2 · 10⁶ examples, which are 8 GB: the stages `generate` and `train` as a
user runs them, in a folder of their own, for one epoch. Watched meanwhile is RssAnon, memory that is no file's
(proc(5)); mapped pages of the data are the kernel's to drop. At the largest size chunks of data are trained on,
interleaved, in several processes: streamed from the file's map while the kernel holds it in memory; streamed when it
does not, from the disk; and kept in memory. Generation is set beside the generator of random numbers alone.

    python -m benchmarks.scale --examples 20000 --only torch_autograd
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from benchmarks.table import columns, heading, mark
from pipeline import files
from pipeline.benchmark.intervals import Estimate, ratio
from pipeline.clock import other_processes, timed
from pipeline.contract import Array, load_problem
from pipeline.environment import resolve
from pipeline.errors import UserError
from pipeline.params import PARAMS, load_params
from pipeline.provenance import beside, provenance
from pipeline.runtimes import load_runtime, open_implementation
from pipeline.training.data import DRAW, DataSet, generate

SIZES = (10_000, 100_000, 1_000_000, 2_000_000)
# Bytes of an example: two_layer as params.yaml has it by default, recurrent with time steps to make it the same.
DATA = {
    "two_layer": {"inputs": 1000, "hidden": 100, "outputs": 10},
    "recurrent": {"inputs": 64, "hidden": 128, "outputs": 10, "min_length": 1, "max_length": 16},
}
BATCH_SIZES = {"two_layer": 64, "recurrent": 256}
TEST_EXAMPLES = 1024
PROCESSES = 4
ROUNDS = 4
SECONDS_BETWEEN_LOOKS = 0.02
FRAMEWORK_AND = 1.5e9  # bytes
SHARE_OF_MEMORYS_SPEED = 0.8
SHARE_OF_THE_GENERATORS_SPEED = 0.5
MEGABYTE = 1e6


class Run(NamedTuple):
    """A stage, from the start of its process to its end; for `framework`, the same process before it has any data."""

    problem: str
    stage: str  # generate, train@NAME, framework@NAME
    examples: int
    seconds: float
    rss_anon: int  # bytes, the largest seen


class Turn(NamedTuple):
    """A turn: `candidate` took so many seconds for so many examples."""

    problem: str
    name: str
    candidate: str  # memory, streamed, disk; of generation: generate, generator
    process: int
    round: int
    examples: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description="Data larger than memory.")
    parser.add_argument("--examples", type=int, default=SIZES[-1], metavar="N", help="of the largest data set")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="implementations; all by default")
    parser.add_argument("--folder", type=Path, default=Path("data"), help="with room for the data (data)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="every figure, with the machine's facts")
    parser.add_argument("--inside", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        turns = INSIDE[options.inside[0]](*options.inside[1:])
        print(json.dumps(list(turns)))
        return
    try:
        params = load_params()
        names = {name: params.problem_of(name) for name in options.only or params.implementations}
        found = resolve(params)
        sizes = [size for size in SIZES if size < options.examples] + [options.examples]
        with other_processes() as others:
            runs, turns = _measure(names, sizes, options.folder)
    except UserError as error:
        sys.exit(f"ERROR: {error}")
    environment = replace(found, device="cpu", device_name=found.cpu_name, driver=None)
    where = provenance(environment, "cpu", environment.cpu_name)
    where |= beside(others)
    if options.output:
        files.write_rows(options.output / "runs.csv", ",".join(Run._fields), runs)
        files.write_rows(options.output / "turns.csv", ",".join(Turn._fields), turns)
        files.write_json(options.output / "machine.json", where)
    print("\n".join([*heading(where), *_report(runs, turns)]))


def _measure(names: Mapping[str, str], sizes: Sequence[int], folder: Path) -> tuple[list[Run], list[Turn]]:
    runs: list[Run] = []
    turns: list[Turn] = []
    for problem in dict.fromkeys(names.values()):
        own = [name for name in names if names[name] == problem]
        with _checkout(problem, sizes[-1], folder) as checkout:
            for examples in sizes:
                _write_params(checkout, problem, examples)
                _run(checkout, "stages.environment")
                runs.append(Run(problem, "generate", examples, *_watched(checkout, "stages.generate", problem)))
                os.sync()  # or the disk is still being written to while the first lesson trains
                for name in own:
                    stage = f"train@{name}"
                    runs.append(Run(problem, stage, examples, *_watched(checkout, "stages.train", name)))
            for name in own:
                turns += _inside(checkout, problem, name, "streaming")
                seconds, anonymous = _watched(checkout, "benchmarks.scale", "--inside", "framework", problem, name)
                runs.append(Run(problem, f"framework@{name}", 0, seconds, anonymous))
            shutil.rmtree(checkout / "data")
            turns += _inside(checkout, problem, "generate", "generation")
    return runs, turns


@contextmanager
def _checkout(problem: str, examples: int, folder: Path) -> Iterator[Path]:
    """A folder in which the stages find all they need, and leave data and results."""
    folder.mkdir(parents=True, exist_ok=True)
    needed = 1.05 * (examples + TEST_EXAMPLES) * _bytes_of_an_example(problem) + 1e9
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free; {examples} examples of {problem} need {needed / 1e9:.1f} GB. "
            "Name a --folder with more, or fewer --examples."
        )
    with tempfile.TemporaryDirectory(dir=folder, prefix="scale-") as name:
        for package in ("pipeline", "stages", "benchmarks", "dvc.yaml"):
            Path(name, package).symlink_to(Path(package).resolve())
        yield Path(name)


def _bytes_of_an_example(problem: str) -> int:
    sizes = DATA[problem]
    return 4 * (sizes["inputs"] * sizes.get("max_length", 1) + sizes["outputs"])


def _write_params(checkout: Path, problem: str, examples: int) -> None:
    params = yaml.safe_load(PARAMS.read_text())
    params["device"] = "cpu"
    params["data"][problem] = DATA[problem] | {"train_examples": examples, "test_examples": TEST_EXAMPLES}
    batch_size = BATCH_SIZES[problem]
    params["train"][problem] = {"batch_size": batch_size, "steps": examples // batch_size}
    (checkout / PARAMS).write_text(yaml.safe_dump(params))


def _run(checkout: Path, *command: str) -> str:
    print("running", *command, file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", *command], cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _watched(checkout: Path, *command: str) -> tuple[float, int]:
    """Seconds and the largest RssAnon of a process."""
    print("running", *command, file=sys.stderr, flush=True)
    largest = 0
    with tempfile.TemporaryFile("w+") as said, timed(lambda: None) as seconds:
        process = subprocess.Popen([sys.executable, "-m", *command], cwd=checkout, stdout=said, stderr=said)
        while process.poll() is None:
            largest = max(largest, _rss_anon(process.pid))
            try:
                process.wait(SECONDS_BETWEEN_LOOKS)
            except subprocess.TimeoutExpired:
                continue
        if process.returncode:
            said.seek(0)
            raise UserError(f"{' '.join(command)} ended with {process.returncode}: {said.read().strip()}")
    return seconds[0], largest


def _rss_anon(process: int) -> int:
    """Bytes; 0 once the process has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except ProcessLookupError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


def _inside(checkout: Path, problem: str, name: str, measurement: str) -> Iterator[Turn]:
    for process in range(PROCESSES):
        done = _run(checkout, "benchmarks.scale", "--inside", measurement, problem, name)
        for candidate, *turn in json.loads(done):
            yield Turn(problem, name, candidate, process, *turn)


def _framework(problem: str, name: str) -> Iterator[tuple]:
    """A framework without data: what `train` imports and starts before it reads any."""
    open_implementation(name, problem, files.read_environment())
    yield from ()


def _streaming(problem: str, name: str) -> Iterator[tuple[str, int, int, float]]:
    """Examples from the map and from the disk, beside examples in memory: one chunk after the other."""
    batch_size, runtime, data = BATCH_SIZES[problem], load_runtime(name), DataSet(problem)
    loop = open_implementation(name, problem, files.read_environment()).create(data.initial, 1e-3)
    chunks = data.chunks(batch_size)
    kept = {key: np.array(array) for key, array in data.read(chunks[0], batch_size).items()}

    def memory(chunk: slice) -> float:
        loop.place(kept)
        with timed(runtime.synchronize) as seconds:
            runtime.to_host(loop.run((chunk.stop - chunk.start) // batch_size))
        return seconds[0]

    def streamed(chunk: slice) -> float:
        with timed(runtime.synchronize) as seconds:
            loop.place(data.read(chunk, batch_size))
            runtime.to_host(loop.run((chunk.stop - chunk.start) // batch_size))
        return seconds[0]

    def disk(chunk: slice) -> float:
        for array in data.train.values():
            _forget(array, chunk)
        return streamed(chunk)

    candidates = {"memory": memory, "streamed": streamed, "disk": disk}
    memory(chunks[0])  # compiles, and wakes the machine up
    for number, chunk in enumerate(islice(cycle(chunks), ROUNDS)):
        for candidate in _shuffled(candidates):
            loop.place(kept)  # lets go of the map, whose pages the kernel keeps while they are looked at
            yield candidate, number, chunk.stop - chunk.start, candidates[candidate](chunk)


def _shuffled(candidates: Mapping[str, Any]) -> list[str]:
    return np.random.default_rng().permutation(list(candidates)).tolist()


def _forget(array: Any, chunk: slice) -> None:
    """Have the kernel drop what it holds of a chunk in memory."""
    stride = array[:1].nbytes
    with Path(array.filename).open("rb") as file:
        length = (chunk.stop - chunk.start) * stride
        os.posix_fadvise(file.fileno(), array.offset + chunk.start * stride, length, os.POSIX_FADV_DONTNEED)


def _generation(problem: str, _: str) -> Iterator[tuple[str, int, int, float]]:
    """Drawing, writing and hashing data, beside the generator's standard normal numbers alone, as many."""
    params = load_params()
    sizes = getattr(params.data, problem)
    examples = min(sizes.train_examples, 50 * DRAW)
    data = params.data.model_copy(update={problem: sizes.model_copy(update={"train_examples": examples})})
    generator = np.random.default_rng(0)
    drawn = load_problem(problem).draw_inputs(sizes, DRAW, generator)["x"]

    def generator_alone() -> None:
        for start in range(0, examples + TEST_EXAMPLES, DRAW):
            count = min(DRAW, examples + TEST_EXAMPLES - start)
            generator.standard_normal(out=drawn[:count], dtype=np.float32)

    candidates = {
        "generate": lambda: generate(problem, data, seed=params.seed, dtype="float32"),
        "generator": generator_alone,
    }
    for number in range(ROUNDS + 1):
        for candidate in _shuffled(candidates):
            with timed(lambda: None) as seconds:
                candidates[candidate]()
            if number:  # the first wakes the machine up
                yield candidate, number, examples + TEST_EXAMPLES, seconds[0]


INSIDE = {"framework": _framework, "streaming": _streaming, "generation": _generation}


def _report(runs: Sequence[Run], turns: Sequence[Turn]) -> Iterator[str]:
    seconds = {(run.problem, run.stage, run.examples): run.seconds for run in runs}
    memory = {(run.problem, run.stage): run.rss_anon for run in runs}  # of the largest size, which is the last
    for problem in dict.fromkeys(run.problem for run in runs):
        sizes = list(dict.fromkeys(run.examples for run in runs if run.problem == problem and run.examples))
        stages = list(dict.fromkeys(run.stage for run in runs if run.problem == problem and run.examples))
        yield from (
            "",
            f"{problem}: up to {sizes[-1]:,} examples, {sizes[-1] * _bytes_of_an_example(problem) / 1e9:.1f} GB",
        )
        rows = [["seconds of a stage", *(f"{size:,}" for size in sizes), "the last, an example, over the ones before"]]
        for stage in stages:
            taken = [seconds[problem, stage, size] for size in sizes]
            rows.append([stage, *(f"{each:.1f}" for each in taken), _marginal(sizes, taken)])
        yield from columns(rows)
        yield ""
        rows = [["RssAnon", "MB", "framework", f"and data, ≤ {FRAMEWORK_AND / MEGABYTE:.0f} MB", ""]]
        for stage in stages:
            framework = memory.get((problem, stage.replace("train", "framework")), 0)
            beyond = memory[problem, stage] - framework
            figures = (f"{value / MEGABYTE:.0f}" for value in (memory[problem, stage], framework, beyond))
            rows.append([stage, *figures, mark(beyond <= FRAMEWORK_AND)])
        yield from columns(rows)
        yield ""
        rows = [["examples a second", "in memory", "streamed", "of it", "≥ 80 %", "from disk", "of it"]]
        for name in dict.fromkeys(turn.name for turn in turns if turn.problem == problem and turn.name != "generate"):
            paces = {each: _paces(turns, problem, name, each) for each in ("memory", "streamed", "disk")}
            rates = {each: f"{1 / np.median(np.concatenate(pace)):,.0f}" for each, pace in paces.items()}
            share, cold = (ratio(paces["memory"], paces[each]) for each in ("streamed", "disk"))
            met = mark(share.value >= SHARE_OF_MEMORYS_SPEED)
            shown = [
                rates["memory"],
                rates["streamed"],
                _percent(share),
                met,
                rates["disk"],
                _percent(cold),
            ]
            rows.append([name, *shown])
        yield from columns(rows)
        yield ""
        generating, alone = (_paces(turns, problem, "generate", each) for each in ("generate", "generator"))
        share = ratio(alone, generating)
        millions = _bytes_of_an_example(problem) / 4e6 / np.median(np.concatenate(alone))
        met = mark(share.value >= SHARE_OF_THE_GENERATORS_SPEED)
        yield f"generate: {_percent(share)} of the generator's {millions:.0f} million numbers a second {met}"


def _marginal(sizes: Sequence[int], seconds: Sequence[float]) -> str:
    """What another example costs at the largest size, over what it costs up to the one before: 1 is linear."""
    if len(sizes) < 3:
        return "–"
    last, before = ((seconds[high] - seconds[low]) / (sizes[high] - sizes[low]) for low, high in ((-2, -1), (0, -2)))
    return f"{last / before:.2f}"


def _paces(turns: Sequence[Turn], problem: str, name: str, candidate: str) -> list[Array]:
    """Seconds an example: for each process those of its rounds, in order."""
    mine = [turn for turn in turns if turn[:3] == (problem, name, candidate)]
    return [
        np.array(
            [turn.seconds / turn.examples for turn in sorted(mine, key=lambda turn: turn.round) if turn.process == each]
        )
        for each in sorted({turn.process for turn in mine})
    ]


def _percent(share: Estimate) -> str:
    return f"{share.value:.0%} ({share.low:.0%} … {share.high:.0%})"


if __name__ == "__main__":
    main()
