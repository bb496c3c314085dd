"""The random data of a problem: written once, in bounded memory, and read back in chunks of batches.

data/PROBLEM/ holds train_KEY.npy and test_KEY.npy for each array of a batch, initial.safetensors with the initial
weights, and manifest.json with the sha256 of each file. Everything is drawn from streams of random numbers that depend
on the seed and the stream's own name alone: more training examples do not change the first ones, nor the test set.

Inputs, weights and targets are rounded to float32 whatever the dtype. So float64 works on the very numbers that float32
does, and the last bit of a matrix product, in which processors differ, does not show in the data.
"""

import hashlib
import io
import shutil
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline import files
from pipeline.array_files import read_arrays, write_arrays
from pipeline.contract import Array, Weights, load_problem
from pipeline.errors import UserError
from pipeline.params import Data

DRAW = 1024  # examples drawn at a time; part of what defines the data, so changing it changes them
CHUNK_BYTES = 256 * 2**20  # what a chunk of batches takes in memory, at most, unless one batch is larger


def generate(problem: str, data: Data, *, seed: int, dtype: str) -> None:
    """Draw the data and initial weights of `problem`; they stand in their folder all at once, when complete."""
    module, sizes = load_problem(problem), getattr(data, problem)
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
            scale = data.noise if teacher else 1.0
            draws = (module.draw_inputs(sizes, min(DRAW, count - start), inputs) for start in range(0, count, DRAW))
            for batch in _ahead(draws):
                y = noise.standard_normal((len(batch["x"]), sizes.outputs)) * scale
                if teacher:
                    y += module.predict(teacher, *batch.values())
                batch["y"] = y.astype(np.float32)
                for key, array in batch.items():
                    name = f"{split}_{key}.npy"
                    stored = array.astype(dtype, copy=False) if array.dtype == np.float32 else array
                    if name not in checksums:
                        append(name, _header(stored, count))
                    append(name, stored)
        manifest = {name: checksum.hexdigest() for name, checksum in checksums.items()}
        manifest["initial.safetensors"] = _sha256(temporary / "initial.safetensors")
        files.write_json(temporary / "manifest.json", dict(sorted(manifest.items())))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)


class DataSet:
    """The data of one problem, its files checked against their manifest when it is opened.

    Arrays are mapped, not read: what is not looked at takes no memory. Raises UserError when a file is missing or is
    not what was generated.
    """

    def __init__(self, problem: str) -> None:
        folder = files.data_folder(problem)
        remedy = f"`dvc repro -f generate@{problem}` makes the data again."
        checksums = files.read_json(folder / "manifest.json")
        self.keys = [key for key in ("x", "lengths", "y") if (folder / f"train_{key}.npy").exists()]
        arrays = [f"{split}_{key}.npy" for split in ("train", "test") for key in self.keys]
        for name in ("initial.safetensors", *arrays, *checksums):
            path = folder / Path(name).name
            if not path.is_file():
                raise UserError(f"{path} is missing. {remedy}")
            if _sha256(path) != checksums.get(name):
                raise UserError(f"{path} is not what was generated: its checksum does not match. {remedy}")
        self.initial: Weights = read_arrays(folder / "initial.safetensors")
        try:
            self.train = {key: _mapped(folder / f"train_{key}.npy") for key in self.keys}
            self.test = {key: _mapped(folder / f"test_{key}.npy") for key in self.keys}
        except ValueError as error:
            raise UserError(f"{folder} holds an array that cannot be read: {error}. {remedy}") from None

    def chunks(self, batch_size: int) -> list[slice]:
        """The training examples of each chunk of whole batches, every batch exactly once."""
        batches = len(self.train["y"]) // batch_size
        batch_bytes = batch_size * sum(array[:1].nbytes for array in self.train.values())
        per_chunk = min(batches, max(1, CHUNK_BYTES // batch_bytes))
        starts = range(0, batches, per_chunk)
        return [slice(start * batch_size, min(batches, start + per_chunk) * batch_size) for start in starts]

    def read(self, chunk: slice, batch_size: int) -> dict[str, Array]:
        """A chunk's batches: each array (batches, batch_size, …), mapped; what is written to it stays in memory.

        A copy-on-write map of the whole file would be promised memory for all of it, which a machine with less refuses.
        """
        return {
            key: _mapped_chunk(array, chunk).reshape(-1, batch_size, *array.shape[1:])
            for key, array in self.train.items()
        }

    def test_inputs(self) -> Iterator[Array]:
        """The arrays of the test set, but y."""
        return (np.array(array) for key, array in self.test.items() if key != "y")


def _stream(seed: int, problem: str, name: str) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(f"{problem} {name}".encode())))


def _ahead(draws: Iterator[dict[str, Array]]) -> Iterator[dict[str, Array]]:
    """The same draws, each made in a thread while the one before it is worked on: NumPy draws without Python's lock."""
    # More BLAS threads would take from the draw what they save, and wait for work with a core to themselves.
    with ThreadPoolExecutor(1) as thread, threadpool_limits(1):
        following = thread.submit(next, draws, None)
        while (draw := following.result()) is not None:
            following = thread.submit(next, draws, None)
            yield draw


def _header(array: Array, count: int) -> bytes:
    """What an .npy file of `count` examples such as those in `array` begins with."""
    header = io.BytesIO()
    content = np.lib.format.header_data_from_array_1_0(array) | {"shape": (count, *array.shape[1:])}
    np.lib.format.write_array_header_1_0(header, content)
    return header.getvalue()


def _mapped(path: Path) -> Any:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _mapped_chunk(array: Any, chunk: slice) -> Array:
    offset, shape = array.offset + chunk.start * array[:1].nbytes, (chunk.stop - chunk.start, *array.shape[1:])
    return np.asarray(np.memmap(array.filename, array.dtype, "c", offset, shape))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
