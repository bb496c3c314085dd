"""Named arrays in safetensors files. The header holds a checksum, and reading checks it, the names, shapes and
values."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pipeline.contract import Array, Weights
from pipeline.errors import UserError
from pipeline.files import write_bytes


def write_arrays(path: Path, arrays: Weights) -> None:
    """Write named arrays as safetensors. The header holds a checksum of the arrays and of the file's name."""
    arrays = {key: np.ascontiguousarray(arrays[key]) for key in sorted(arrays)}
    write_bytes(path, save(arrays, metadata={"sha256": _checksum(path.name, arrays)}))


def read_arrays(path: Path, shapes: Mapping[str, tuple[int, ...] | None] | None = None) -> dict[str, Array]:
    """The arrays of a file that `write_arrays` wrote. Raises UserError when the file is missing or damaged, when names
    or shapes differ from `shapes` (None allows any shape), or when a value is not finite.
    """
    remedy = f"Delete it and run `dvc repro`, which makes {path} again."
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {key: file.get_tensor(key) for key in sorted(file.keys())}
            recorded = (file.metadata() or {}).get("sha256")
    except FileNotFoundError:
        raise UserError(f"{path} is missing. `dvc repro` makes it.") from None
    except (SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). {remedy}") from None
    actual = {key: array.shape for key, array in arrays.items()}
    wanted = actual if shapes is None else {key: shape or actual.get(key) for key, shape in shapes.items()}
    if actual != wanted:
        raise UserError(f"{path} holds {actual}, but {wanted} is needed. {remedy}")
    for key, array in arrays.items():
        if not np.isfinite(array).all():
            count = np.count_nonzero(~np.isfinite(array))
            raise UserError(f"{path}: {key} holds {count} values that are not finite. {remedy}")
    if recorded != _checksum(path.name, arrays):
        raise UserError(f"{path} was changed after it was written: its checksum does not match. {remedy}")
    return arrays


def _checksum(name: str, arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(name.encode())
    for key, array in arrays.items():
        digest.update(f"{key} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
