"""Compare a merged checkpoint, ours or mergekit's, with its plan: every element of every tensor, bit by bit."""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .delegate import folded_adapters
from .engine import stream
from .linear import merge, preflight
from .plan import MergePlan, Source
from .steps import Step
from .weights import Weights


def verify(
    folder: str | Path, plan: MergePlan, allow_missing: bool = False, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Carry out a plan again and compare the result with a checkpoint.

    A linear plan is computed block by block; for another one mergekit merges into a temporary folder first.

    mergekit turns the -0.0 of a copied tensor into 0.0; there, and only there, the two zeros count as the same.

    Args:
        folder: the merged checkpoint.
        plan: what it should be.
        allow_missing: as it was merged.
        trust_remote_code: run code that comes with a model; only mergekit's methods and adapters need it.

    Returns:
        `{"tensors": number that the plan makes, "different": [{"name", "reason"}], "missing": names, "extra": names}`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the plan does not fit its models, or weights cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no merged checkpoint {folder}.")
    merged = Weights(folder)
    with _carried_out(plan, allow_missing, trust_remote_code) as (folded, steps, weights):
        names = {step.name for step in steps}
        different = {step.name: reason for step in steps if (reason := _other_form(step, merged))}
        wrong = dict.fromkeys(names, 0)
        lock = threading.Lock()

        def compare(step: Step, first: int, block: np.ndarray) -> None:
            count = _count_different(block, merged.stored[step.name].read(first, len(block)), step.copied)
            with lock:
                wrong[step.name] += count

        comparable = [step for step in steps if step.name in merged.names and step.name not in different]
        stream(comparable, folded, weights, compare, "Verifying")
    for step in comparable:
        if wrong[step.name]:
            different[step.name] = f"{wrong[step.name]:,} of {step.elements:,} elements differ"
    return {
        "tensors": len(steps),
        "different": [{"name": name, "reason": reason} for name, reason in sorted(different.items())],
        "missing": sorted(names - merged.names),
        "extra": sorted(merged.names - names),
    }


@contextmanager
def _carried_out(
    plan: MergePlan, allow_missing: bool, trust_remote_code: bool
) -> Iterator[tuple[MergePlan, list[Step], list[Weights]]]:
    """What is to be computed: a linear plan itself, or copies of what mergekit makes of another one."""
    if plan.native:
        with folded_adapters(plan, trust_remote_code) as folded:
            yield folded, *preflight(folded, allow_missing)
        return
    with tempfile.TemporaryDirectory(prefix="babylm-vlm-verify-") as place:
        made = Path(place, "merged")
        merge(plan, made, allow_missing=allow_missing, trust_remote_code=trust_remote_code)
        result = Weights(made)
        steps = [Step(name, (0,), (1.0,), True, one.dtype, one.shape) for name, one in sorted(result.stored.items())]
        sources = (Source("the result of mergekit", made, ()),)
        yield replace(plan, sources=sources, dtype=None, out_dtype=None), steps, [result]


def _other_form(step: Step, merged: Weights) -> str | None:
    """How a tensor's dtype or shape differs from the plan's; None where it does not or is not there."""
    stored = merged.stored.get(step.name)
    if stored is None or (stored.dtype == step.dtype and stored.shape == step.shape):
        return None
    here, there = (f"{one.dtype.name} {list(one.shape)}" for one in (stored, step))
    return f"it is {here}, but the plan makes {there}"


def _count_different(expected: np.ndarray, found: np.ndarray, zeros_alike: bool) -> int:
    """Number of elements whose bits differ."""
    bits = f"u{expected.dtype.itemsize}"
    differ = expected.view(bits) != found.view(bits)
    if zeros_alike:
        differ &= ~((expected == 0) & (found == 0))
    return int(differ.sum())
