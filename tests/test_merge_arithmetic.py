"""The arithmetic of merging: in memory and in files, with PyTorch and without, all of it mergekit's to the bit.

Run: pytest tests/test_merge_arithmetic.py
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_weights import DTYPES, EMBED, NORM, PROJECTOR, assert_same, same_bits, tensors, write_checkpoint

from babylm_vlm.merging import interpolate, kernel, linear_plan_yaml, merge, read_plan
from babylm_vlm.merging.in_memory import blend, weighted_sum_of_arrays
from babylm_vlm.merging.weights import Room, dtype_of


@settings(max_examples=25, deadline=None)
@given(alpha=st.floats(0, 1) | st.sampled_from([0.0, 1e-05, 0.1, 0.7, 1.0]), dtype=st.sampled_from(sorted(DTYPES)))
def test_memory_and_file_merges_agree_bit_for_bit(tmp_path_factory, alpha, dtype):
    folder = tmp_path_factory.mktemp("merge")
    multimodal, language = tensors(1, DTYPES[dtype], projector=True), tensors(2, DTYPES[dtype])
    before = {name: tensor.clone() for name, tensor in multimodal.items()}
    write_checkpoint(folder / "multimodal", multimodal)
    write_checkpoint(folder / "language", language)
    plan = folder / "plan.yaml"
    plan.write_text(linear_plan_yaml(str(folder / "multimodal"), str(folder / "language"), alpha))

    merge(read_plan(plan), folder / "merged")
    merged = interpolate(multimodal, language, alpha)

    assert_same(load_file(folder / "merged" / "model.safetensors"), merged)
    assert same_bits(merged[PROJECTOR], multimodal[PROJECTOR])
    assert_same(multimodal, before)
    if alpha in (0.0, 1.0):
        end = multimodal if alpha else language
        assert same_bits(merged[NORM], end[NORM]) and same_bits(merged[EMBED], end[EMBED])


def test_ends_are_exact_even_where_the_other_model_is_not_finite():
    broken = {name: torch.full_like(tensor, float("inf")) for name, tensor in tensors(2).items()}
    assert_same(interpolate(tensors(1), broken, 1.0), tensors(1))
    assert_same(interpolate(broken, tensors(1), 0.0), tensors(1))


def test_interpolate_weighs_the_multimodal_model_with_alpha():
    merged = interpolate({NORM: torch.tensor([8.0])}, {NORM: torch.tensor([4.0])}, 0.75)
    assert merged[NORM].tolist() == [7.0]


def test_interpolate_refuses_what_it_cannot_merge():
    with pytest.raises(ValueError, match=r"alpha is 1\.5"):
        interpolate(tensors(1), tensors(2), 1.5)
    with pytest.raises(ValueError, match="Only one of the two models has lm_head"):
        interpolate(tensors(1), tensors(2) | {"lm_head.weight": torch.ones(1)}, 0.5)
    with pytest.raises(ValueError, match=r"model\.norm\.weight has the shape"):
        interpolate(tensors(1), tensors(2) | {NORM: torch.ones(3)}, 0.5)
    with pytest.raises(ValueError, match="ids: The models hold different integers"):
        interpolate({"ids": torch.tensor([1])}, {"ids": torch.tensor([2])}, 0.5)


@settings(max_examples=60, deadline=None)
@given(
    weights=st.tuples(st.floats(0, 3), st.floats(0, 3)).filter(lambda pair: sum(pair) > 1e-3),
    normalize=st.booleans(),
    dtype=st.sampled_from(sorted(DTYPES)),
    length=st.sampled_from([1, 7, 64, 1001]),
)
def test_kernel_is_mergekits(weights, normalize, dtype, length):
    from mergekit.merge_methods import get
    from mergekit.merge_methods.base import TensorGroup

    generator = torch.Generator().manual_seed(length)
    a, b = ((torch.randn(length, generator=generator) * 0.05).to(DTYPES[dtype]) for _ in range(2))
    parameters = {"weight": {"a": weights[0], "b": weights[1]}, "normalize": normalize}
    (expected,) = get("linear")((TensorGroup.from_tensors([a, b], ids=["a", "b"]),), parameters=parameters)
    assert torch.equal(blend(a, b, weights, normalize), expected)


def short_numbers(seed: int, length: int, bits: int, exponents: tuple[int, int]) -> torch.Tensor:
    """fp32 numbers whose mantissas end after some bits, so that sums of them often lie halfway between two numbers."""
    generator = torch.Generator().manual_seed(seed)
    mantissas = torch.randint(-(1 << bits), 1 << bits, (length,), generator=generator, dtype=torch.float64)
    powers = torch.randint(min(exponents), max(exponents) + 1, (length,), generator=generator, dtype=torch.float64)
    return (mantissas * 2.0 ** (powers - bits)).float()


exponents = st.sampled_from([(-3, 3), (-30, 30), (-149, -120), (-150, -60), (-149, 60)]) | st.tuples(
    st.integers(-149, 60), st.integers(-149, 60)
)


@settings(max_examples=300, deadline=None)
@given(
    weights=st.lists(
        st.floats(-3, 3, width=32) | st.sampled_from([0.0, 0.5, 1.0, 2**-12, 3 * 2**-13]), min_size=1, max_size=4
    ),
    bits=st.integers(1, 24),
    exponents=exponents,
    dtype=st.sampled_from(sorted(DTYPES)),
    normalize=st.booleans(),
)
def test_arithmetic_without_pytorch_is_the_same_to_the_bit(weights, bits, exponents, dtype, normalize):
    tensors = [short_numbers(seed, 2001, bits, exponents).to(DTYPES[dtype]) for seed in range(len(weights))]
    numpy_type = dtype_of(dtype)
    arrays = [tensor.view(torch.uint8).numpy().view(numpy_type) for tensor in tensors]
    try:
        expected = weighted_sum_of_arrays(arrays, weights, normalize, Room())
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)):
            kernel.weighted_sum(arrays, weights, normalize)
        return
    found = kernel.weighted_sum(arrays, weights, normalize)
    unlike = found.view(np.uint8).reshape(2001, -1) != expected.view(np.uint8).reshape(2001, -1)
    assert found.dtype == expected.dtype == numpy_type
    assert not (unlike.any(axis=1) & ~(np.isnan(found) & np.isnan(expected))).any()


@pytest.mark.parametrize(
    ("odd", "factor"),
    [(1 + 2**-23, 1 + 2**-23), ((2**22 + 1) * 2**-149, 2**-126 * (1 + 2**-23))],
    ids=["normal", "subnormal"],
)
def test_arithmetic_without_pytorch_does_not_round_twice(odd, factor):
    """An odd number plus a hair less than half a unit: fp64 rounds the sum to the half, fp32 would round that up."""
    odd, factor, weight = np.float32([odd]), np.float32([factor]), 2**-24 * (1 - 2**-23)
    twice = np.float32(np.float64(weight) * factor + odd)
    once = kernel.weighted_sum([odd, factor], [1.0, weight], normalize=False)
    assert once == odd != twice
    assert once == torch.add(torch.from_numpy(odd), torch.from_numpy(factor), alpha=weight).numpy()
