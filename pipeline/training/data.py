"""The data of a problem that `generate` wrote: checked when opened, and read in chunks of batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files
from pipeline.array_files import read_arrays
from pipeline.contract import Array, Weights
from pipeline.errors import UserError

CHUNK_BYTES = 256 * 2**20  # the memory of a chunk of batches, at most, unless one batch is larger


class DataSet:
    """The data of one problem, its files checked against their manifest when it is opened.

    Arrays are memory-mapped, so only the parts in use take memory. Raises UserError when a file is missing or was
    changed.
    """

    def __init__(self, problem: str) -> None:
        folder = files.data_folder(problem)
        remedy = f"`dvc repro -f generate@{problem}` makes the data again."
        checksums = files.read_json(folder / "manifest.json")
        # The manifest names the files in the order in which they were drawn: the inputs, and last the targets.
        self.keys = [name[len("train_") : -len(".npy")] for name in checksums if name.startswith("train_")]
        if "y" not in self.keys:
            raise UserError(f"{folder / 'manifest.json'} is damaged: it names no training targets. {remedy}")
        arrays = [f"{split}_{key}.npy" for split in ("train", "test") for key in self.keys]
        for name in ("initial.safetensors", *arrays, *checksums):
            path = folder / Path(name).name
            if not path.is_file():
                raise UserError(f"{path} is missing. {remedy}")
            if files.sha256(path) != checksums.get(name):
                raise UserError(f"{path} was changed after it was generated: its checksum does not match. {remedy}")
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
        """A chunk's batches: each array (batches, batch_size, …), memory-mapped. Changes stay in memory. Only the chunk
        is mapped copy-on-write: for the whole file, the kernel would demand enough memory for all of it.
        """
        return {
            key: _mapped_chunk(array, chunk).reshape(-1, batch_size, *array.shape[1:])
            for key, array in self.train.items()
        }

    def test_inputs(self) -> Iterator[Array]:
        """The arrays of the test set without y."""
        return (np.array(array) for key, array in self.test.items() if key != "y")


def _mapped(path: Path) -> Any:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _mapped_chunk(array: Any, chunk: slice) -> Array:
    offset, shape = array.offset + chunk.start * array[:1].nbytes, (chunk.stop - chunk.start, *array.shape[1:])
    return np.asarray(np.memmap(array.filename, array.dtype, "c", offset, shape))
