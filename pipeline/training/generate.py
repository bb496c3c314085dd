"""The stage `generate`: the random data of a problem, drawn in bounded memory.

data/PROBLEM/ holds train_KEY.npy and test_KEY.npy for each array of a batch, initial.safetensors with the initial
weights, and manifest.json with the sha256 of each file. Each stream of random numbers depends only on the seed and the
stream's name. So more training examples change neither the first ones nor the test set. Inputs, weights and targets are
rounded to float32 for every dtype. So float64 uses the same numbers as float32, and the last bit of a matrix product,
in which processors differ, does not change the data.
"""

import hashlib
import io
import shutil
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline import files
from pipeline.array_files import write_arrays
from pipeline.contract import Array, load_problem
from pipeline.environment import check_imported
from pipeline.params import Data, load_params
from pipeline.training.resource_check import DRAW, check_disk, check_memory


def main(problem: str) -> None:
    params = load_params()
    check_imported(files.read_environment())
    check_memory(params)
    check_disk(params, problem)
    generate(problem, params.data, params.problems[problem].data, seed=params.seed, dtype=params.dtype)


def generate(problem: str, data: Data, sizes: Any, *, seed: int, dtype: str) -> None:
    """Draw the data and initial weights of `problem`. Their folder appears when all files are complete.

    `data` and `sizes` are the sections data and problems.PROBLEM.data of params.yaml.
    """
    module = load_problem(problem)
    folder = files.data_folder(problem)
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    checksums = defaultdict(hashlib.sha256)

    def append(name: str, content: Any) -> None:
        with (temporary / name).open("ab") as file:
            file.write(content)
        checksums[name].update(content)

    try:
        initial = module.draw_weights(sizes, _stream(seed, problem, "initial"))
        write_arrays(temporary / "initial.safetensors", {key: array.astype(dtype) for key, array in initial.items()})
        teacher = module.draw_weights(sizes, _stream(seed, problem, "teacher")) if data.target == "teacher" else None
        for split, count in (("train", sizes.train_examples), ("test", sizes.test_examples)):
            inputs = _stream(seed, problem, f"{split} inputs")
            noise = _stream(seed, problem, f"{split} noise")
            # Draw DRAW examples and cut. In a shorter draw, all arrays after the first would get other numbers.
            draws = (module.draw_inputs(sizes, DRAW, inputs) for _ in range(0, count, DRAW))
            for start, draw in zip(range(0, count, DRAW), _ahead(draws), strict=True):
                batch = {key: array[: count - start] for key, array in draw.items()}
                batch["y"] = module.draw_targets(sizes, batch, teacher, data.noise, noise)
                for key, array in batch.items():
                    name = f"{split}_{key}.npy"
                    stored = array.astype(dtype, copy=False) if array.dtype == np.float32 else array
                    if name not in checksums:
                        append(name, _header(stored, count))
                    append(name, stored)
        manifest = {name: checksum.hexdigest() for name, checksum in checksums.items()}
        manifest["initial.safetensors"] = files.sha256(temporary / "initial.safetensors")
        files.write_json(temporary / "manifest.json", manifest)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)


def _stream(seed: int, problem: str, name: str) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(f"{problem} {name}".encode())))


def _ahead(draws: Iterator[dict[str, Array]]) -> Iterator[dict[str, Array]]:
    """The same draws, each made in a thread while the caller uses the one before: NumPy releases Python's lock."""
    # More BLAS threads would take a core from the draw.
    with ThreadPoolExecutor(1) as thread, threadpool_limits(1):
        following = thread.submit(next, draws, None)
        while (draw := following.result()) is not None:
            following = thread.submit(next, draws, None)
            yield draw


def _header(array: Array, count: int) -> bytes:
    """The header of an .npy file of `count` examples such as those in `array`."""
    header = io.BytesIO()
    content = np.lib.format.header_data_from_array_1_0(array) | {"shape": (count, *array.shape[1:])}
    np.lib.format.write_array_header_1_0(header, content)
    return header.getvalue()
