"""Items with several texts, or texts with pictures, of which a model should find the first the most probable."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..data import features as data_features
from ..data.pictures import HubPicture
from ..model import BabylmVlmConfig
from .engine import score_requests
from .scoring import make_requests, sums

Picture = Path | HubPicture


@dataclass(frozen=True)
class Item:
    """A choice between texts, between pictures for a text, or both.

    Attributes:
        uid: name of the paradigm (the subset) that the item belongs to.
        pair: cluster for the bootstrap; items that are alone in theirs have `file:line` here.
        options: (prefix, completion) of each text; the completion is scored. The first option is the right one.
        images: the picture of each option, which may be the same one; none for items of text alone.
        facts: other numbers that the task's statistic needs.
    """

    uid: str
    pair: str
    options: tuple[tuple[str, str], ...]
    images: tuple[Picture, ...] = ()
    facts: dict[str, float] = field(default_factory=dict)


def takes_pictures(model: PreTrainedModel) -> bool:
    """Whether the model takes pictures; a language-only model does not."""
    return model.config.model_type == BabylmVlmConfig.model_type


def picture_features(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    items: Sequence[Item],
    known: dict[Picture, torch.Tensor] | None = None,
) -> dict[Picture, torch.Tensor]:
    """Pooled vision features of every picture in `items`, each computed once.

    They depend on the frozen tower alone, so all models of a sweep share them.

    Args:
        items: minimal pairs, or other items with `images`.
        known: features that are there already, of the same tower.

    Returns:
        those that are known, and for each other picture its features (g*g, vision_hidden_size), fp32, on the CPU.

    Raises:
        FileNotFoundError, ValueError: a picture is missing or cannot be read.
    """
    known = known or {}
    new = [image for image in dict.fromkeys(image for item in items for image in item.images) if image not in known]
    if not new:
        return known
    pooled = data_features.picture_features(model, processor.image_processor, new)
    return known | dict(zip(new, pooled, strict=True))


def score_choices(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    items: Sequence[Item],
    features: dict[Picture, torch.Tensor] | None = None,
    batch_tokens: int = 4096,
    progress: bool = True,
    official: bool = False,
    mean: bool = False,
    prepared: dict | None = None,
) -> list[np.ndarray]:
    """Log-probability of every option's completion, given its prefix, and its picture where it has one.

    A language-only model scores the texts without the pictures.

    Args:
        model: language-only or multimodal.
        processor: a tokenizer, or for a multimodal model its processor.
        items: n items.
        features: `picture_features` of the same tower for at least these items; computed here when None.
        batch_tokens: see `sequence_scores`.
        progress: show a bar while scoring.
        official: see `make_requests`.
        mean: the mean over the completion's tokens in place of their sum.
        prepared: an empty dict, which then keeps tokens and picture features; given again with the same items, it
            saves a model of the same tokenizer and tower (another checkpoint) their making.

    Returns:
        n float64 arrays (number of options,), nats.
    """
    scores: list[np.ndarray] = [np.zeros(0)] * len(items)
    looks = takes_pictures(model)
    grounded = [i for i, item in enumerate(items) if looks and item.images]
    text_only = [i for i, item in enumerate(items) if not (looks and item.images)]
    prepared = {} if prepared is None else prepared
    if grounded and features is None and "grounded" not in prepared:
        features = picture_features(model, processor, [items[i] for i in grounded])
    for kind, chosen in (("grounded", grounded), ("text", text_only)):
        if kind not in prepared:
            texts = [option for i in chosen for option in items[i].options]
            shown = [features[image] for i in chosen for image in items[i].images] if kind == "grounded" else None
            prepared[kind] = make_requests(model, processor, texts, shown, official)
        per_token = iter(score_requests(model, *prepared[kind], batch_tokens, progress))
        for i in chosen:
            tokens = list(islice(per_token, len(items[i].options)))
            scores[i] = sums(tokens) / ([max(1, len(one)) for one in tokens] if mean else 1)
    return scores
