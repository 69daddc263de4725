"""Merge a multimodal and a language-only model: read the plan, a mergekit YAML, and carry it out."""

from collections.abc import Callable

from .linear import merge
from .plan import MergePlan, linear_plan_yaml, read_plan

__all__ = ["MergePlan", "interpolate", "linear_plan_yaml", "merge", "read_plan"]


def __getattr__(name: str) -> Callable:
    """`interpolate`, imported when it is asked for: it needs PyTorch, a merge of small files does not (PEP 562)."""
    if name != "interpolate":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .in_memory import interpolate

    return interpolate
