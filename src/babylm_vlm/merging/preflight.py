"""What is checked before a merge: what would give a checkpoint that loads and is worthless is an error here.

Tensors are checked where the steps are planned (`steps.py`); here are configurations, tokenizers and common descent.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_json, weights_sha256
from .plan import MergePlan, Source
from .weights import Weights

STATE_FILE = "training_state.json"

MEANING = (
    *(
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    ),
    *("hidden_act", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "attention_bias", "mlp_bias"),
    *("tie_word_embeddings", "sliding_window", "partial_rotary_factor"),
)
"""Configuration keys that change what the same weights compute; where two models both say one, they must agree."""

SAMPLED_MATRICES = 4
SAMPLED_ELEMENTS = 1 << 18


def check_models(plan: MergePlan) -> None:
    """Check that the models of a plan compute the same thing with their weights and number their tokens alike.

    Raises:
        ValueError: they do not.
    """
    check_configurations(plan.sources)
    if not plan.align_tokens:
        _check_tokenizers(plan.sources)


def check_configurations(sources: Sequence[Source]) -> None:
    """Raise ValueError where two models' configurations say different things of `MEANING` or rotary embeddings."""
    said: dict[str, tuple[Any, str]] = {}  # the first that says it
    for source in sources:
        for key, value in _decoder_config(source.folder).items():
            first, name = said.setdefault(key, (value, source.name))
            if value != first:
                raise ValueError(
                    f"{key} is {first!r} in {name} and {value!r} in {source.name}, so the same weights mean different "
                    "things there; merge models of one architecture."
                )


def warn_of_strangers(plan: MergePlan, weights: Sequence[Weights]) -> str | None:
    """A warning with numbers where no common ancestor is on record; None where one is, or for a single model.

    Models that do not descend from the same weights lie in different loss basins, and the weights between them are
    no good (Frankle et al. 2020, linear mode connectivity). Unrelated matrices have a cosine near 0.
    """
    if len(plan.sources) == 1 or common_ancestor(plan.sources):
        return None
    cosine, distance = _likeness(weights[0], weights[1])
    names = " and ".join(source.name for source in plan.sources)
    return (
        f"No common ancestor of {names} is on record ({STATE_FILE}). Over a sample of the first two models' matrices "
        f"the mean cosine is {cosine:.3f} and the mean relative distance {distance:.3f}; a cosine near 0 means that "
        "they do not descend from the same weights, and then their merge is worse than either."
    )


def common_ancestor(sources: Sequence[Source], known: Mapping[Path, str] | None = None) -> str | None:
    """Name of the checkpoint that all models come from: their recorded ancestor, or one of them; None if unknown.

    Checkpoints are known by the hash of their weights, as `training_state.json` records it; `known` are hashes of
    files, if there are. A model with an adapter comes from the model without.
    """
    recorded = [_recorded_ancestor(source.folder) for source in sources]
    for ancestor in recorded:
        if not ancestor.get("sha256"):
            continue
        others = [s for s, own in zip(sources, recorded, strict=True) if own.get("sha256") != ancestor["sha256"]]
        if all(weights_sha256(s.unfolded or s.folder, known) == ancestor["sha256"] for s in others):
            itself = [s.name for s in others if not (s.adapter or s.unfolded)]
            return itself[0] if itself else ancestor["name"]
    return None


def _recorded_ancestor(folder: Path) -> dict[str, Any]:
    file = folder / STATE_FILE
    return (read_json(file).get("ancestor") if file.is_file() else None) or {}


def _decoder_config(folder: Path) -> dict[str, Any]:
    """What a configuration says of `MEANING`, and of rotary embeddings under `rope_theta` and `rope_scaling`."""
    config = read_json(folder / "config.json")
    config = config.get("text_config") or config
    said = {key: config[key] for key in MEANING if config.get(key) is not None}
    rope = dict(config.get("rope_parameters") or {})
    theta = rope.pop("rope_theta", config.get("rope_theta"))
    if (rotated := rope.pop("partial_rotary_factor", config.get("partial_rotary_factor"))) is not None:
        said["partial_rotary_factor"] = rotated
    scaling = rope or config.get("rope_scaling") or {}
    if theta is not None:
        said["rope_theta"] = float(theta)
    default = scaling.get("rope_type", scaling.get("type", "default")) == "default"
    said["rope_scaling"] = None if default else {key: scaling[key] for key in sorted(scaling) if key != "type"}
    return said


def _check_tokenizers(sources: Sequence[Source]) -> None:
    """Models that number their tokens differently have embeddings that do not belong together."""
    files = [file for source in sources if (file := source.folder / "tokenizer.json").is_file()]
    read = [read_json(file) for file in files]
    tokens = [json.dumps([one["model"].get("vocab"), one.get("added_tokens")], sort_keys=True) for one in read]
    for file, other in zip(files[1:], tokens[1:], strict=True):
        if other != tokens[0]:
            raise ValueError(
                f"{files[0]} and {file} number their tokens differently: merge models that share a tokenizer, or "
                "write tokenizer: {source: base} in the plan to match tokens by their strings."
            )


def _likeness(a: Weights, b: Weights) -> tuple[float, float]:
    """Mean cosine and mean relative distance `|A - B| / |A|` over some matrices, of each its first elements."""
    names = sorted(name for name in a.names & b.names if len(a.shape(name)) == 2 and a.shape(name) == b.shape(name))
    chosen = names[:: max(1, len(names) // SAMPLED_MATRICES)][:SAMPLED_MATRICES]
    cosines, distances = [], []
    for name in chosen:
        count = min(a.stored[name].elements, SAMPLED_ELEMENTS)
        one, other = (weights.stored[name].read(0, count).astype(np.float64) for weights in (a, b))
        # not `@`: BLAS would wake threads, which then spin beside the merge's own
        a_a, a_b, b_b = (float((x * y).sum()) for x, y in ((one, one), (one, other), (other, other)))
        if a_a and b_b:
            cosines.append(a_b / (a_a * b_b) ** 0.5)
            distances.append((float(((one - other) ** 2).sum()) / a_a) ** 0.5)
    mean = [sum(values) / len(values) if values else float("nan") for values in (cosines, distances)]
    return mean[0], mean[1]
