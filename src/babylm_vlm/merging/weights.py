"""The weights of a checkpoint folder: one safetensors file, or several with an index.

- Headers are read at once, tensors block by block with `pread`: no file is mapped, so memory stays small however large
  the checkpoint is, and a block costs one system call and no page fault.
- The safetensors library checks every header (sizes, gaps, overlaps, the file's length); nothing is pickled.
"""

import json
import os
import threading
from collections.abc import Hashable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from ..files import INDEX, weight_files, weight_map

FLOATS = {
    **{"F64": np.dtype(np.float64), "F32": np.dtype(np.float32)},
    **{"F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)},
}
DTYPES = FLOATS | {
    **{"I64": np.dtype(np.int64), "I32": np.dtype(np.int32), "I16": np.dtype(np.int16), "I8": np.dtype(np.int8)},
    **{"U8": np.dtype(np.uint8), "BOOL": np.dtype(bool)},
}
"""By their names in a safetensors header."""

BYTE = DTYPES["U8"]


def is_float(dtype: np.dtype) -> bool:
    """Whether a dtype is one of floating-point numbers, bfloat16 included."""
    return dtype in FLOATS.values()


def dtype_of(name: str) -> np.dtype:
    """The dtype of a name as PyTorch and plans have it, such as "bfloat16"."""
    return next(dtype for dtype in DTYPES.values() if dtype.name == name)


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        file: the safetensors file.
        start: offset of its first byte in the file.
        dtype: as stored.
        shape: as stored.
    """

    file: Path
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return prod(self.shape)

    def read(self, first: int = 0, count: int | None = None, block: np.ndarray | None = None) -> np.ndarray:
        """`count` elements from the element `first` on, as a flat array; all of them by default.

        Args:
            first: place of the first element.
            count: of elements.
            block: where to read them to; by default a new array.

        Raises:
            ValueError: the file has become shorter than its header says.
        """
        count = self.elements - first if count is None else count
        block = np.empty(count, self.dtype) if block is None else block
        buffer = memoryview(block.view(np.uint8))
        offset, done = self.start + first * self.dtype.itemsize, 0
        with open(self.file, "rb", buffering=0) as file:
            while done < len(buffer):
                size = os.preadv(file.fileno(), [buffer[done:]], offset + done)
                if size == 0:
                    raise ValueError(f"{self.file} ended while it was read; was it changed meanwhile?")
                done += size
        return block


class Room(threading.local):
    """Memory of a thread that every block uses again: the first touch of fresh memory costs more than the arithmetic.

    What lies there stands until the next block.
    """

    def __init__(self):
        self._bytes: dict[Hashable, np.ndarray] = {}

    def array(self, name: Hashable, elements: int, dtype: np.dtype = BYTE) -> np.ndarray:
        """A flat array of one dtype, not cleared, in the part of that name."""
        size = elements * dtype.itemsize
        if name not in self._bytes or self._bytes[name].size < size:
            self._bytes[name] = np.empty(size, BYTE)
        return self._bytes[name][:size].view(dtype)

    def clear(self) -> None:
        """Give the memory back."""
        self._bytes.clear()


class Weights:
    """Tensors of a checkpoint by name. Headers are read at once, a tensor when it is asked for.

    Attributes:
        folder: of the checkpoint.
        stored: tensor name -> where it lies.
        names: of all tensors.

    Raises:
        FileNotFoundError: there is no weights file, or a shard is missing.
        ValueError: the weights are pickled, or a file is damaged, or the index does not fit its files.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.stored: dict[str, StoredTensor] = {}
        for path in weight_files(folder):
            shard = _read_header(path)
            if twice := sorted(shard.keys() & self.stored.keys()):
                raise ValueError(
                    f"{folder} stores the tensor {twice[0]} twice, last in {path.name}; remove one of them."
                )
            self.stored.update(shard)
        self.names = set(self.stored)
        if (folder / INDEX).is_file():
            _check_index(folder, self.stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self.stored[name].shape

    def tensor(self, name: str) -> np.ndarray:
        """A tensor as it is stored."""
        stored = self.stored[name]
        return stored.read().reshape(stored.shape)


def _read_header(path: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(path, framework="np"):
            pass  # the library has checked the file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no complete safetensors file ({error}); save it again.") from error
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise ValueError(
                f"{path} holds {name} as {entry['dtype']}, which is not merged; known: {', '.join(DTYPES)}."
            )
        start = 8 + length + entry["data_offsets"][0]
        tensors[name] = StoredTensor(path, start, DTYPES[entry["dtype"]], tuple(entry["shape"]))
    return tensors


def _check_index(folder: Path, stored: dict[str, StoredTensor]) -> None:
    """The index and the files must name the same tensors in the same places."""
    placed = {name: tensor.file.name for name, tensor in stored.items()}
    wrong = sorted(name for name, file in weight_map(folder).items() ^ placed.items())
    if wrong:
        raise ValueError(f"{folder / INDEX} and the files that it names disagree on where the tensor {wrong[0]} is.")
