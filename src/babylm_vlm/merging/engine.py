"""The streaming engine: read a block of every model, compute, hand on; memory does not grow with the checkpoint.

- Two threads each read, compute and write whole blocks, so that reading, arithmetic and writing overlap. Arithmetic
  and system calls release the interpreter's lock; PyTorch's own threads are off, blocks are small enough.
- A thread reads and computes every block in the same memory. What is read can be hashed on the way.
- Importing PyTorch takes as long as merging hundreds of millions of weights without it: it is used for more than that.
- A NaN or an infinity anywhere is an error that names the tensor and the model.
- Embeddings that are matched by token need rows from anywhere, so those tensors are one block each.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from threading import Event, Lock

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from tqdm import tqdm

from ..files import INDEX
from .hashing import HashedReads
from .kernel import MOST_MODELS, convert, weighted_sum
from .plan import MergePlan
from .steps import Step
from .weights import DTYPES, Room, Weights, dtype_of, is_float

BLOCK = 1 << 19
"""Elements of a block for PyTorch: 2 MB in fp32, which stays in the processor's cache."""

NUMPY_BLOCK = 1 << 16
"""For NumPy, whose steps have room of their own for results: of larger ones the system takes it back every time."""

THREADS = 2

PYTORCH_PAYS = 500_000_000
"""Elements from which on a merge is faster with PyTorch, its import included."""

WeightedSum = Callable[[Sequence[np.ndarray], Sequence[float], bool], np.ndarray]

MAX_SHARD_SIZE = "5GB"
"""Largest weights file, as in huggingface_hub."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def stream(
    steps: Sequence[Step],
    plan: MergePlan,
    weights: Sequence[Weights],
    consume: Callable[[Step, int, np.ndarray], None],
    label: str,
    hashed: HashedReads | None = None,
) -> None:
    """Compute every tensor block by block and hand each block on.

    Args:
        steps: what to do.
        plan: gives normalization, dtype and the models' names.
        weights: of the plan's sources.
        consume: called as `consume(step, first, block)` with `block` holding the elements from `first` on, flat; from
            several threads, in any order. The block's memory is used again afterwards.
        label: of the progress bar, which appears after two seconds.
        hashed: gets every block that is read.

    Raises:
        ValueError: a tensor is not finite, integers differ, or a file ends early.
    """
    hashed = hashed or HashedReads((), ())
    room, lock, stop = Room(), Lock(), Event()
    add, block_size, context = _choose_kernel(steps, plan, weights, room)
    blocks = _blocks(steps, block_size)

    def work() -> None:
        while not stop.is_set():
            with lock:
                block = next(blocks, None)
            if block is None:
                return
            step, first, count = block
            read = _read(step, plan, weights, first, count, room, hashed)
            consume(step, first, _compute(step, plan, read, add))
            if step.vocabulary:
                room.clear()  # it has grown as large as the tensor
            with lock:
                bar.update(count * step.dtype.itemsize)

    total = sum(step.bytes for step in steps)
    bar = tqdm(total=total, desc=label, unit="B", unit_scale=True, disable=None, delay=2)
    with bar, context as initializer, ThreadPoolExecutor(THREADS, initializer=initializer) as pool:
        try:
            for thread in as_completed([pool.submit(work) for _ in range(THREADS)]):
                thread.result()
        finally:  # after an error the other thread must neither go on nor wait for its turn
            stop.set()
            hashed.stop()


def _choose_kernel(
    steps: Sequence[Step], plan: MergePlan, weights: Sequence[Weights], room: Room
) -> tuple[WeightedSum, int, AbstractContextManager]:
    """The arithmetic without PyTorch, but for what is large, of many models or in fp64: that with PyTorch.

    With it the elements of a block, and a context for the threads, which yields what each is to begin with.
    """
    elements = sum(step.elements for step in steps if not step.copied)
    dtypes = {tensor.dtype.name for one in weights for tensor in one.stored.values()} | {plan.dtype}
    if elements <= PYTORCH_PAYS and len(plan.sources) <= MOST_MODELS and "float64" not in dtypes:
        return weighted_sum, NUMPY_BLOCK, nullcontext()
    from .in_memory import one_thread_each, weighted_sum_of_arrays

    return partial(weighted_sum_of_arrays, room=room), BLOCK, one_thread_each()


def write_weights(
    steps: Sequence[Step],
    plan: MergePlan,
    weights: Sequence[Weights],
    folder: Path,
    max_shard_size: str | int = MAX_SHARD_SIZE,
    hashed: HashedReads | None = None,
) -> None:
    """Carry out the steps into safetensors files in a folder: one, or several with an index; `hashed` as in `stream`.

    Raises:
        OSError: the files cannot be written; the message says which.
        ValueError: as `stream`, or `max_shard_size` cannot be read.
    """
    split = split_state_dict_into_shards_factory(
        {step.name: step for step in steps},
        get_storage_size=lambda step: step.bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    by_name = {step.name: step for step in steps}
    files: dict[str, int] = {}
    places: dict[str, tuple[int, int]] = {}

    def write(step: Step, first: int, block: np.ndarray) -> None:
        file, offset = places[step.name]
        with _said(folder):
            _write_all(file, block, offset + first * step.dtype.itemsize)

    try:
        with _said(folder):
            for name, tensors in split.filename_to_tensors.items():
                files[name] = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                offsets = _write_header(files[name], [by_name[tensor] for tensor in tensors])
                places |= {tensor: (files[name], offset) for tensor, offset in offsets.items()}
        stream(steps, plan, weights, write, "Merging", hashed)
        with _said(folder):
            for file in files.values():
                os.fsync(file)
    finally:
        for file in files.values():
            os.close(file)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _said(folder: Path) -> Iterator[None]:
    """Say what could not be written where, in one sentence."""
    try:
        yield
    except OSError as error:
        raise OSError(f"The merged weights cannot be written to {folder.parent}: {error.strerror}.") from error


def _blocks(steps: Sequence[Step], block_size: int) -> Iterator[tuple[Step, int, int]]:
    for step in steps:
        size = step.elements if step.vocabulary else block_size
        for first in range(0, step.elements, max(size, 1)):
            yield step, first, min(size, step.elements - first)


def _read(
    step: Step,
    plan: MergePlan,
    weights: Sequence[Weights],
    first: int,
    count: int,
    room: Room,
    hashed: HashedReads,
) -> list[np.ndarray]:
    """Elements `first` to `first + count` of a tensor in each of its sources, flat, in the plan's dtype."""
    if step.vocabulary:
        return [_aligned(step, plan, weights, place) for place in step.sources]
    blocks = []
    for place in step.sources:
        tensor = weights[place].stored[step.name]
        block = tensor.read(first, count, room.array(place, count, tensor.dtype))
        hashed.add(tensor, first, block)
        blocks.append(_to_plan(block, plan))
    return blocks


def _compute(step: Step, plan: MergePlan, blocks: Sequence[np.ndarray], add: WeightedSum) -> np.ndarray:
    """The same elements of the merged tensor."""
    if step.copied:
        merged = blocks[0]
    else:
        try:
            merged = add(blocks, step.weights, plan.normalize)
        except ValueError as error:
            raise ValueError(f"{step.name}: {error}") from error
    merged = convert(merged, step.dtype)
    if not _is_finite(merged):
        _raise_not_finite(step, plan, blocks)
    return merged


def _to_plan(array: np.ndarray, plan: MergePlan) -> np.ndarray:
    """In the dtype that the plan merges in; integers stay."""
    return convert(array, dtype_of(plan.dtype)) if plan.dtype else array


def _aligned(step: Step, plan: MergePlan, weights: Sequence[Weights], place: int) -> np.ndarray:
    vocabulary = step.vocabulary
    own, base = (_to_plan(weights[model].tensor(step.name), plan) for model in (place, vocabulary.base))
    return vocabulary.align(own, place, base).flatten()


def _is_finite(block: np.ndarray) -> bool:
    """Whether no exponent is all ones: from the bits, without memory and for 16 bits faster than `isfinite`.

    As signed integers, infinity and positive NaNs are the largest numbers; as unsigned ones, the negative ones are.
    """
    if not is_float(block.dtype):
        return True
    for kind, infinity in (("i", np.inf), ("u", -np.inf)):
        bits = f"{kind}{block.dtype.itemsize}"
        if block.view(bits).max(initial=0) >= np.array(infinity, block.dtype).view(bits):
            return False
    return True


def _raise_not_finite(step: Step, plan: MergePlan, blocks: Sequence[np.ndarray]) -> None:
    for place, block in zip(step.sources, blocks, strict=True):
        if not np.isfinite(block).all():
            too_large = f", or a number that does not fit into {plan.dtype}, the plan's dtype" if plan.dtype else ""
            raise ValueError(
                f"{plan.sources[place].name} holds NaN or infinity in the tensor {step.name}{too_large}; its training "
                "went wrong or the file is damaged, so it is not merged."
            )
    raise ValueError(f"The merged tensor {step.name} does not fit into {step.dtype.name}.")


def _write_header(file: int, steps: Sequence[Step]) -> dict[str, int]:
    """Write the header of a safetensors file; returns the offset of every tensor in the file."""
    header, offsets, end = {"__metadata__": {"format": "pt"}}, {}, 0
    for step in steps:
        offsets[step.name] = end
        header[step.name] = {
            "dtype": NAMES[step.dtype],
            "shape": list(step.shape),
            "data_offsets": [end, end + step.bytes],
        }
        end += step.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the library pads so: data then starts at a multiple of 8 bytes
    os.pwrite(file, len(text).to_bytes(8, "little") + text, 0)
    return {name: 8 + len(text) + offset for name, offset in offsets.items()}


def _write_all(file: int, block: np.ndarray, offset: int) -> None:
    buffer = memoryview(block.view(np.uint8))
    while buffer:
        size = os.pwrite(file, buffer, offset)
        buffer, offset = buffer[size:], offset + size
