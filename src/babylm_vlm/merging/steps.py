"""What a plan does with every single tensor: the explicit form of a merge, made from the headers of the checkpoints.

- A tensor that one model has with weight 1, and that the others lack or weigh 0, is copied, never computed.
- Every other tensor must be in every model. With `allow_missing` it is merged from the models that have it, and copied
  where only one has it.
- Every tensor of any model is merged, copied or an error. Nothing is dropped.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from .plan import MergePlan
from .vocabulary import Vocabulary, is_indexed_by_token
from .weights import Weights, dtype_of, is_float

LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Step:
    """What happens to one tensor.

    Attributes:
        name: of the tensor.
        sources: the models that it comes from, by their place in the plan.
        weights: of these models.
        copied: taken over as it is, from the only model in `sources`; else the weighted sum.
        dtype: of the result.
        shape: of the result.
        vocabulary: which rows of each model the rows of the result come from; None where all have the same rows.
    """

    name: str
    sources: tuple[int, ...]
    weights: tuple[float, ...]
    copied: bool
    dtype: np.dtype
    shape: tuple[int, ...]
    vocabulary: Vocabulary | None = None

    @property
    def operation(self) -> str:
        return "copied from" if self.copied else "interpolated from"

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.itemsize


def plan_steps(
    plan: MergePlan,
    weights: Sequence[Weights],
    vocabulary: Vocabulary | None = None,
    allow_missing: bool = False,
) -> list[Step]:
    """What a plan does with every tensor of its models, in the order of the output file.

    Of a plan that mergekit carries out, the steps only say which tensors all models have, so that mergekit merges
    them, and which one model alone has, so that they are copied.

    Args:
        plan: of any method.
        weights: of the plan's sources.
        vocabulary: how the models' tokens match, where embeddings are aligned by token.
        allow_missing: do not insist that every model has every tensor.

    Raises:
        ValueError: a tensor to be merged is missing from a model, or differs in shape or dtype, or has no weight.
    """
    names = sorted(set().union(*(one.names for one in weights)))
    depths = layer_depths(names)
    steps = [_step(name, plan, weights, depths[name], vocabulary, allow_missing) for name in names]
    return in_file_order(steps)


def layer_depths(names: Sequence[str]) -> dict[str, float]:
    """Depth of every tensor, which gradients of weights go by: 0 in the first layer and 1 in the last.

    As in mergekit it is 1 in an only layer and 0 outside the layers. A tensor is in the layer that the first number in
    its name says; layers are counted by what comes before that number.
    """
    layers = {name: (name[: match.start()], int(match[1])) for name in names if (match := LAYER.search(name))}
    last: dict[str, int] = {}
    for stack, layer in layers.values():
        last[stack] = max(last.get(stack, 0), layer)
    depths = {name: layer / last[stack] if last[stack] else 1.0 for name, (stack, layer) in layers.items()}
    return {name: depths.get(name, 0.0) for name in names}


def in_file_order(steps: Sequence[Step]) -> list[Step]:
    """Steps as the safetensors library orders tensors in a file: wide dtypes first, which keeps all aligned."""
    return sorted(steps, key=lambda step: (-step.dtype.itemsize, step.name))


def describe(steps: Sequence[Step], plan: MergePlan) -> list[dict[str, Any]]:
    """The steps as plain dictionaries: name, operation, sources by name, weights, dtype, shape."""
    return [
        {
            "name": step.name,
            "operation": "copy" if step.copied else "interpolate" if plan.native else plan.method,
            "sources": [plan.sources[place].name for place in step.sources],
            "weights": list(step.weights),
            "dtype": step.dtype.name,
            "shape": list(step.shape),
        }
        for step in sorted(steps, key=lambda step: step.name)
    ]


def _step(
    name: str,
    plan: MergePlan,
    weights: Sequence[Weights],
    depth: float,
    vocabulary: Vocabulary | None,
    allow_missing: bool,
) -> Step:
    having = [place for place, one in enumerate(weights) if name in one.names]
    if not plan.native:
        return _delegated_step(name, plan, weights, having, allow_missing)
    shares = {place: plan.sources[place].weight(name, depth) for place in having}
    whole = [place for place in having if shares[place] == 1.0 and not any(shares[o] for o in having if o != place)]
    if not whole and len(having) < len(weights):
        if not allow_missing:
            raise ValueError(_missing_error(name, plan, weights, having[0]))
        if len(having) == 1:
            whole = having
    sources = tuple(whole or having)
    aligned = vocabulary if is_indexed_by_token(name) else None
    shape = _common_shape(name, plan, weights, sources, aligned)
    return Step(
        name=name,
        sources=sources,
        weights=tuple(shares[place] for place in sources),
        copied=bool(whole),
        dtype=_dtype(name, plan, weights, sources),
        shape=shape,
        vocabulary=aligned,
    )


def _delegated_step(
    name: str, plan: MergePlan, weights: Sequence[Weights], having: list[int], allow_missing: bool
) -> Step:
    """A tensor that all models have is mergekit's; what the base alone has may be copied without further ado."""
    alone_in_base = having == [plan.sources.index(plan.base)]
    if len(having) < len(weights) and not alone_in_base and not allow_missing:
        raise ValueError(_missing_error(name, plan, weights, having[0]))
    if plan.align_tokens and is_indexed_by_token(name):
        shape = weights[having[0]].shape(name)
    else:
        shape = _common_shape(name, plan, weights, tuple(having), None)
    return Step(name, tuple(having), (), len(having) == 1, _dtype(name, plan, weights, tuple(having)), shape)


def _missing_error(name: str, plan: MergePlan, weights: Sequence[Weights], having: int) -> str:
    lacking = next(place for place, one in enumerate(weights) if name not in one.names)
    here, there = plan.sources[having].name, plan.sources[lacking].name
    if name == "lm_head.weight":
        return (
            f"The tensor {name} is in {here} but not in {there}: one has output embeddings of its own, the other ties "
            "them to its input embeddings; save both in the same way."
        )
    return (
        f"The tensor {name} is in {here} but not in {there}, so it cannot be interpolated; to copy it, give "
        f"{here} a filter for it with the value 1.0, or pass --allow-missing."
    )


def _common_shape(
    name: str, plan: MergePlan, weights: Sequence[Weights], sources: tuple[int, ...], aligned: Vocabulary | None
) -> tuple[int, ...]:
    shapes = [weights[place].shape(name) for place in sources]
    if aligned:
        shapes = [(aligned.size, *shape[1:]) for shape in shapes]
    for place, shape in zip(sources, shapes, strict=True):
        if shape != shapes[0]:
            models = plan.sources[sources[0]].name, plan.sources[place].name
            raise ValueError(shape_error(name, shapes[0], shape, models))
    return shapes[0]


def shape_error(
    name: str, a: Sequence[int], b: Sequence[int], models: tuple[str, str] = ("one model", "the other")
) -> str:
    """The sentence for two tensors of one name that differ in shape."""
    rows = len(a) == len(b) == 2 and tuple(a[1:]) == tuple(b[1:]) and is_indexed_by_token(name)
    hint = " (do the models share one tokenizer? If not, write tokenizer: {source: base} in the plan)" if rows else ""
    return f"The tensor {name} has the shape {tuple(a)} in {models[0]} and {tuple(b)} in {models[1]}{hint}."


def _dtype(name: str, plan: MergePlan, weights: Sequence[Weights], sources: tuple[int, ...]) -> np.dtype:
    stored = [weights[place].stored[name].dtype for place in sources]
    if len(set(stored)) > 1 and not (plan.dtype and all(map(is_float, stored))):
        other = next(place for place, dtype in zip(sources, stored, strict=True) if dtype != stored[0])
        names = [dtype.name for dtype in (stored[0], weights[other].stored[name].dtype)]
        raise ValueError(
            f"The tensor {name} is {names[0]} in {plan.sources[sources[0]].name} and {names[1]} in "
            f"{plan.sources[other].name}; say in the plan to what both are converted first, such as dtype: float32."
        )
    wanted = plan.out_dtype or plan.dtype
    return dtype_of(wanted) if wanted and is_float(stored[0]) else stored[0]
