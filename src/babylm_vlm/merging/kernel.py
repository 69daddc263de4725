"""The arithmetic of a linear merge on arrays, without PyTorch, whose import takes longer than merging a small model.

It sums in fp32, from zero, in the order of the plan, with one rounding for each model (fused multiply-add), and rounds
once to the result's dtype, as mergekit 0.1.5 and `in_memory.weighted_sum` do; the three agree bit for bit. NumPy has
no fused multiply-add: the product of two fp32 numbers is exact in fp64, and a sum in fp64 is rounded to odd where a
second rounding, to fp32, could go the wrong way (Boldo & Melquiond 2008, Emulation of FMA and correctly rounded sums).
"""

from collections.abc import Sequence

import numpy as np

from .weights import FLOATS, is_float

MOST_MODELS = 4
"""PyTorch adds up to as many weights in their order; of more it adds parts of the list first."""

LOW_BITS = np.int64((1 << 29) - 1)  # the bits of an fp64 number that fp32 has no room for
HALF = np.int64(1 << 28)
SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal


def weighted_sum(arrays: Sequence[np.ndarray], weights: Sequence[float], normalize: bool = True) -> np.ndarray:
    """`sum(weights[i] * arrays[i])`, divided by the sum of the weights where `normalize`.

    Integer and boolean arrays cannot be summed: they must be equal.

    Args:
        arrays: up to four of one shape and one dtype, fp32, fp16 or bf16; not fp64.
        weights: one for each array.
        normalize: divide by the sum of the weights.

    Returns:
        A new array in their dtype.

    Raises:
        ValueError: integers differ, or the weights to be normalized sum to 0.
    """
    first = arrays[0]
    if not is_float(first.dtype):
        if any(array.dtype != first.dtype or not np.array_equal(array, first) for array in arrays):
            raise ValueError("The models hold different integers here, which cannot be interpolated.")
        return first.copy()
    weights = [np.float32(weight) for weight in weights]
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is an error elsewhere, with its name
        product = np.multiply(first.astype(np.float32, copy=False), weights[0], dtype=np.float64)  # exact
        merged = (product + 0.0).astype(np.float32)  # of the zeros here, zero and -0 add up to zero
        for array, weight in zip(arrays[1:], weights[1:], strict=True):
            merged = _multiply_add(array.astype(np.float32, copy=False), weight, merged)
        if normalize:
            total = sum(weights, np.float32(0))
            if total == 0:
                raise ValueError("The weights of the models sum to 0 here, so they cannot be normalized.")
            if total != 1:
                merged /= total
    return convert(merged, first.dtype)


def convert(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """An array in another dtype, rounded as PyTorch does: to 16 bits by way of fp32. Integers stay."""
    if not is_float(array.dtype) or array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        if dtype != FLOATS["F64"]:
            array = array.astype(np.float32, copy=False)
        return array.astype(dtype, copy=False)


def _multiply_add(array: np.ndarray, weight: np.float32, addend: np.ndarray) -> np.ndarray:
    """`array * weight + addend` in fp32, rounded once."""
    product = np.multiply(array, weight, dtype=np.float64)  # exact
    total = product + addend
    rounded = total.astype(np.float32)
    unsure = (total.view(np.int64) & LOW_BITS) == HALF
    unsure |= np.abs(rounded) <= SMALLEST_NORMAL
    if unsure.any():
        rounded[unsure] = _sum_to_odd(product[unsure], addend[unsure].astype(np.float64)).astype(np.float32)
    return rounded


def _sum_to_odd(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`a + b` in fp64; if that is not exact, the one of the two fp64 numbers around the sum whose last bit is 1."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)  # exact (Knuth's two-sum)
    inexact_and_even = (error != 0) & (total.view(np.int64) & 1 == 0)
    return np.where(inexact_and_even, np.nextafter(total, np.copysign(np.inf, error)), total)
