"""SHA-256 of the weights files that a merge reads anyway: large files need not be read twice."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Condition

import numpy as np

from .steps import Step
from .weights import StoredTensor, Weights


class HashedReads:
    """Hashes files that are read once, from the first tensor to the last.

    The blocks of a file come from several threads and are hashed in its order: a thread waits for its turn, which
    comes, because threads begin blocks in the order of the steps, and that is the file's.

    Args:
        steps: what will be read, in this order.
        weights: of the plan's sources.
    """

    def __init__(self, steps: Sequence[Step], weights: Sequence[Weights]):
        self._turn = Condition()
        self._stopped = False
        self._digests, self._ends = {}, {}
        for path, tensors in _read_whole(steps, weights).items():
            with open(path, "rb") as file:
                header = file.read(tensors[0].start)
            self._digests[path], self._ends[path] = hashlib.sha256(header), tensors[0].start

    def add(self, tensor: StoredTensor, first: int, block: np.ndarray) -> None:
        """Hash the elements of a tensor from `first` on, if its file is hashed; raises CancelledError after `stop`."""
        if tensor.file not in self._digests:
            return
        start = tensor.start + first * tensor.dtype.itemsize
        with self._turn:
            self._turn.wait_for(lambda: self._stopped or self._ends[tensor.file] == start)
            if self._stopped:
                raise CancelledError
        self._digests[tensor.file].update(block.view(np.uint8))
        with self._turn:
            self._ends[tensor.file] = start + block.nbytes
            self._turn.notify_all()

    def stop(self) -> None:
        """Let no thread wait for one that failed."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()

    def sha256(self) -> dict[Path, str]:
        """Hexadecimal, of the files that were read to their end."""
        whole = (path for path, end in self._ends.items() if end == path.stat().st_size)
        return {path: self._digests[path].hexdigest() for path in whole}


def _read_whole(steps: Sequence[Step], weights: Sequence[Weights]) -> dict[Path, list[StoredTensor]]:
    """The files whose every tensor will be read, in the order in which they lie there, with these tensors."""
    read: dict[Path, list[StoredTensor]] = {}
    for step in steps:
        for place in step.sources if step.vocabulary is None else ():
            tensor = weights[place].stored[step.name]
            read.setdefault(tensor.file, []).append(tensor)
    lying: dict[Path, list[StoredTensor]] = {}
    for one in weights:
        files: dict[Path, list[StoredTensor]] = {}
        for tensor in sorted(one.stored.values(), key=lambda tensor: (tensor.start, tensor.elements)):
            files.setdefault(tensor.file, []).append(tensor)
        lying |= files  # a folder may be two sources; then its files are read twice
    return {path: tensors for path, tensors in lying.items() if read.get(path) == tensors}
