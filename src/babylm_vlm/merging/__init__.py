"""Merge a multimodal and a language-only model: read the plan, a mergekit YAML, and carry it out."""

from .linear import interpolate, merge
from .plan import MergePlan, linear_plan_yaml, read_plan

__all__ = ["MergePlan", "interpolate", "linear_plan_yaml", "merge", "read_plan"]
