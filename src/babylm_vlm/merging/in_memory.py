"""The arithmetic of a linear merge on tensors: for state dicts, for large files and for GPUs.

It sums in fp32 (fp64 for fp64 tensors), from zero, in the order of the plan, and rounds once, as mergekit 0.1.5 does;
the results agree bit for bit, and `kernel.weighted_sum` gives the same without PyTorch. `w*A + v*B`, `lerp` and
`B + w*(A - B)` round differently.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor

from .plan import PROJECTOR, check_alpha
from .steps import shape_error
from .weights import Room


def weighted_sum(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    normalize: bool = True,
    room: Callable[[str, torch.dtype], Tensor] | None = None,
) -> Tensor:
    """`sum(weights[i] * tensors[i])`, divided by the sum of the weights where `normalize`.

    Integer and boolean tensors cannot be summed: they must be equal.

    Args:
        tensors: of one shape.
        weights: one for each tensor.
        normalize: divide by the sum of the weights.
        room: gives tensors of that shape to compute in, by name and dtype; by default they are new.

    Returns:
        A new tensor, or one of `room`, in the widest of the dtypes.

    Raises:
        ValueError: integer tensors differ, or the weights to be normalized sum to 0.
    """
    first, dtype = tensors[0], reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    if not dtype.is_floating_point:
        if any(tensor.dtype != first.dtype or not torch.equal(tensor, first) for tensor in tensors):
            raise ValueError("The models hold different integers here, which cannot be interpolated.")
        return first.clone()
    if room is None:
        room = partial(_new, first)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    merged, zero = room("sum", exact), torch.zeros((), dtype=exact, device=first.device)
    for place, (tensor, weight) in enumerate(zip(tensors, weights, strict=True)):
        if tensor.dtype != exact:
            tensor = room("part", exact).copy_(tensor)
        torch.add(merged if place else zero, tensor, alpha=weight, out=merged)
    if normalize:
        total = torch.tensor([list(weights)], dtype=exact).sum(dim=1).item()
        if total == 0:
            raise ValueError("The weights of the models sum to 0 here, so they cannot be normalized.")
        if total != 1:
            merged.div_(total)
    return merged if dtype == exact else room("rounded", dtype).copy_(merged)


def _new(like: Tensor, _name: str, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(like, dtype=dtype)


def blend(a: Tensor, b: Tensor, weights: tuple[float, float], normalize: bool = True) -> Tensor:
    """`weighted_sum` of two tensors."""
    return weighted_sum((a, b), weights, normalize)


def interpolate(multimodal: dict[str, Tensor], language: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Merge two state dicts in memory, bit for bit as `merge` does with the plan of `linear_plan_yaml`.

    Args:
        multimodal: its tensors; those of the projector are copied.
        language: must have every other tensor of `multimodal`, in the same shape, and none besides.
        alpha: weight of the multimodal model; at 1 its tensors are returned exactly, at 0 the language model's.

    Returns:
        New tensors, under the names of `multimodal`. The inputs are not changed.

    Raises:
        ValueError: alpha is not between 0 and 1, or the tensors do not match.
    """
    check_alpha(alpha)
    alpha = float(alpha)
    decoder = {name for name in multimodal if PROJECTOR not in name}
    unmatched = sorted(decoder ^ {name for name in language if PROJECTOR not in name})
    if unmatched:
        raise ValueError(f"Only one of the two models has {_some(unmatched)}; both need the same decoder tensors.")
    merged = {}
    for name, tensor in multimodal.items():
        if name not in decoder or alpha == 1.0:
            merged[name] = tensor.clone()
            continue
        if tensor.shape != language[name].shape:
            raise ValueError(shape_error(name, tensor.shape, language[name].shape))
        if alpha == 0.0:
            merged[name] = language[name].clone()
        else:
            merged[name] = _blend_named(name, tensor, language[name], (alpha, 1 - alpha))
    return merged


def _blend_named(name: str, a: Tensor, b: Tensor, weights: tuple[float, float], normalize: bool = True) -> Tensor:
    """`blend`, with the tensor's name in its errors."""
    try:
        return blend(a, b, weights, normalize)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"


def weighted_sum_of_arrays(
    arrays: Sequence[np.ndarray], weights: Sequence[float], normalize: bool, room: Room
) -> np.ndarray:
    """`weighted_sum` of flat arrays, in the memory of `room`, where the result stands until the next call."""

    def tensor(name: str, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(room.array(name, arrays[0].size * dtype.itemsize)).view(dtype)

    merged = weighted_sum([as_tensor(array) for array in arrays], weights, normalize, tensor)
    return merged.view(torch.int16).numpy().view(arrays[0].dtype) if merged.itemsize == 2 else merged.numpy()


@contextmanager
def one_thread_each() -> Iterator[Callable[[], None]]:
    """Around threads that compute side by side: yields what keeps PyTorch from starting more of them in each."""
    threads = torch.get_num_threads()
    try:
        yield lambda: torch.set_num_threads(1)
    finally:
        torch.set_num_threads(threads)


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor on an array's memory; NumPy knows bf16 only through ml_dtypes, which PyTorch does not know."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
