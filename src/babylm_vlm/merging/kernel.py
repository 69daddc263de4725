"""The arithmetic of a linear merge, one function for files and for memory: a sweep scores exactly what a merge writes.

It sums in fp32 (fp64 for fp64 tensors), from zero, in the order of the plan, and rounds once, as mergekit 0.1.5 does;
the results agree bit for bit. `w*A + v*B`, `lerp` and `B + w*(A - B)` round differently, and so does any arithmetic
without fused multiply-add, such as numpy's.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float], normalize: bool = True) -> Tensor:
    """`sum(weights[i] * tensors[i])`, divided by the sum of the weights where `normalize`.

    Integer and boolean tensors cannot be summed: they must be equal.

    Args:
        tensors: of one shape.
        weights: one for each tensor.
        normalize: divide by the sum of the weights.

    Returns:
        A new tensor in the widest of the dtypes.

    Raises:
        ValueError: integer tensors differ, or the weights to be normalized sum to 0.
    """
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    if not dtype.is_floating_point:
        first = tensors[0]
        if any(tensor.dtype != first.dtype or not torch.equal(tensor, first) for tensor in tensors):
            raise ValueError("The models hold different integers here, which cannot be interpolated.")
        return first.clone()
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    merged = torch.zeros(tensors[0].shape, dtype=exact, device=tensors[0].device)
    for tensor, weight in zip(tensors, weights, strict=True):
        merged.add_(tensor.to(exact), alpha=weight)
    if normalize:
        total = torch.tensor([list(weights)], dtype=exact).sum(dim=1).item()
        if total == 0:
            raise ValueError("The weights of the models sum to 0 here, so they cannot be normalized.")
        if total != 1:
            merged.div_(total)
    return merged.to(dtype)


def blend(a: Tensor, b: Tensor, weights: tuple[float, float], normalize: bool = True) -> Tensor:
    """`weighted_sum` of two tensors."""
    return weighted_sum((a, b), weights, normalize)
