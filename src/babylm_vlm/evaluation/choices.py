"""Items with several texts, of which a model should find the first one more probable than the others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..data import features as data_features
from ..model import BabylmVlmConfig
from .engine import score_requests
from .scoring import make_requests, sums


@dataclass(frozen=True)
class Item:
    """A choice between texts.

    Attributes:
        uid: name of the paradigm (the subset) that the item belongs to.
        pair: cluster for the bootstrap; items that are alone in theirs have `file:line` here.
        options: (prefix, completion) of each text; the completion is scored. The first option is the right one.
        image: the picture that the texts are about, if any.
        facts: other numbers that the task's statistic needs.
    """

    uid: str
    pair: str
    options: tuple[tuple[str, str], ...]
    image: Path | None = None
    facts: dict[str, float] = field(default_factory=dict)


def takes_pictures(model: PreTrainedModel) -> bool:
    """Whether the model takes pictures; a language-only model does not."""
    return model.config.model_type == BabylmVlmConfig.model_type


def picture_features(
    model: PreTrainedModel, processor: ProcessorMixin, items: Sequence[Item]
) -> dict[Path, torch.Tensor]:
    """Pooled vision features of every picture in `items`, each computed once.

    They depend on the frozen tower alone, so all models of a sweep share them.

    Args:
        items: minimal pairs, or other items with an `image`.

    Returns:
        for each picture its features (g*g, vision_hidden_size), fp32, on the CPU; nothing for items of text alone.

    Raises:
        FileNotFoundError, ValueError: a picture is missing or cannot be read.
    """
    paths = list(dict.fromkeys(item.image for item in items if item.image is not None))
    if not paths:
        return {}
    pooled = data_features.picture_features(model, processor.image_processor, paths)
    return dict(zip(paths, pooled, strict=True))


def score_choices(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    items: Sequence[Item],
    features: dict[Path, torch.Tensor] | None = None,
    batch_tokens: int = 4096,
    progress: bool = True,
    official: bool = False,
    prepared: dict | None = None,
) -> list[np.ndarray]:
    """Log-probability of every option's completion, given its prefix, and the item's picture where it has one.

    A language-only model scores the texts without the pictures.

    Args:
        model: language-only or multimodal.
        processor: a tokenizer, or for a multimodal model its processor.
        items: n items.
        features: `picture_features` of the same tower for at least these items; computed here when None.
        batch_tokens: see `sequence_scores`.
        progress: show a bar while scoring.
        official: see `make_requests`.
        prepared: an empty dict, which then keeps tokens and picture features; given again with the same items, it
            saves a model of the same tokenizer and tower (another checkpoint) their making.

    Returns:
        n float64 arrays (number of options,), nats.
    """
    scores: list[np.ndarray] = [np.zeros(0)] * len(items)
    looks = takes_pictures(model)
    grounded = [i for i, item in enumerate(items) if looks and item.image is not None]
    text_only = [i for i, item in enumerate(items) if not (looks and item.image is not None)]
    prepared = {} if prepared is None else prepared
    if grounded and features is None and "grounded" not in prepared:
        features = picture_features(model, processor, [items[i] for i in grounded])
    for kind, chosen in (("grounded", grounded), ("text", text_only)):
        if kind not in prepared:
            texts = [option for i in chosen for option in items[i].options]
            shown = (
                [features[items[i].image] for i in chosen for _ in items[i].options] if kind == "grounded" else None
            )
            prepared[kind] = make_requests(model, processor, texts, shown, official)
        totals = sums(score_requests(model, *prepared[kind], batch_tokens, progress))
        ends = np.cumsum([len(items[i].options) for i in chosen])
        for i, part in zip(chosen, np.split(totals, ends[:-1]), strict=bool(chosen)):
            scores[i] = part
    return scores
